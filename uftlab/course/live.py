"""Explorers that move in an exported page: offline, from a file, without a server and without a kernel.

An executed notebook holds the static twin of its explorer. The twin's `layout.meta` has the controls, see
`uftlab.plots.widgets.explore`. `explorer` puts beside it what a script needs to make the other figures: for notebooks
01 and 02 a few equations, for 05 and 06 stored numbers. The scripts are in the folder `scripts`, one model for each
explorer. In the page of notebook 03 the base model itself answers: `asking` puts its weights there. All are tested
against the functions of the notebooks. `write_script` joins them to one file.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from nbformat import NotebookNode
from scipy import stats

from uftlab.course import mixing, snapshots, texts
from uftlab.course.held_out import held_out
from uftlab.course.notebooks import has_explorer
from uftlab.course.snapshots import Run
from uftlab.files import write_atomically
from uftlab.models.generation import MAX_NEW_TOKENS
from uftlab.models.policies import load_base, tiny_config, tiny_tokenizer
from uftlab.plots import theme, widgets
from uftlab.study import maps
from uftlab.study.results import HEADLINES
from uftlab.study.trials import profile_named
from uftlab.world import wording
from uftlab.world.world import World

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = "live.js"

STYLE = (
    widgets.STYLE.removeprefix("<style>").removesuffix("</style>")
    + """
.output_html:has(.uftlab-live) { background: none; color: inherit; padding: 0; overflow: visible; }
.uftlab-live { --wide: min(1200px, 100vw - 4rem); width: var(--wide); margin: 1rem 0 1rem calc(50% - var(--wide) / 2);
  font-size: 16px; accent-color: var(--link); }
.uftlab-live:not(.uftlab-on) .uftlab-desk { display: block; overflow-x: auto; }
.uftlab-live .uftlab-figure { display: grid; grid-template-columns: minmax(0, 1fr); align-items: start; }
.uftlab-live .uftlab-figure > * { grid-area: 1 / 1; }
.uftlab-live .plotly-graph-div:not(.uftlab-plot) { background: #fff; color: #222; }
.uftlab-live .uftlab-coming { visibility: hidden; }
.uftlab-live label, .uftlab-live .uftlab-buttons > span { display: block; line-height: 1.3; }
.uftlab-live .uftlab-number { align-items: center; }
.uftlab-live .uftlab-number > label { grid-area: label; }
.uftlab-live .uftlab-number > [type=number] { grid-area: field; min-width: 0; }
.uftlab-live .uftlab-number > [type=range] { grid-area: slider; min-width: 0; margin: 0 0 0 12px; height: 28px; }
.uftlab-live .uftlab-options { display: flex; flex-wrap: wrap; gap: 4px; }
.uftlab-live .uftlab-controls :is(button, select, [type=number]) { font: inherit; color: var(--ink);
  background: var(--paper); border: 1px solid #767676; border-radius: 4px; padding: 2px 8px; min-height: 30px;
  box-sizing: border-box; }
.uftlab-live select { width: 100%; }
.uftlab-live .uftlab-controls [aria-pressed=true] { color: var(--paper); background: var(--link);
  border-color: var(--link); }
.uftlab-ask { font-size: 18px; margin: 1rem 0; }
.uftlab-ask form { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.uftlab-ask form label { flex-basis: 100%; }
.uftlab-ask input { flex: 1 1 12rem; min-width: 0; }
.uftlab-ask :is(button, input) { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid #767676;
  border-radius: 4px; padding: 2px 8px; min-height: 40px; box-sizing: border-box; }
.uftlab-ask .uftlab-options { display: flex; flex-wrap: wrap; gap: 4px; margin: 8px 0; }
.uftlab-ask .uftlab-options button { font-size: 15px; min-height: 30px; }
.uftlab-ask .uftlab-answer p { margin: .4rem 0; }
.uftlab-ask .uftlab-word { display: inline-block; vertical-align: top; text-align: center; margin-right: 10px;
  line-height: 1.2; }
.uftlab-ask .uftlab-word > * { display: block; }
:is(.uftlab-live, .uftlab-ask).uftlab :focus-visible { outline: 3px solid var(--link) !important; outline-offset: 2px; }
@media (max-width: 700px) {
  .uftlab-live { --wide: (100vw - 2rem); width: calc(var(--wide)); }
  .uftlab-live .modebar { display: none; }
  .uftlab-live.uftlab-on .uftlab-desk { grid-template: "figure" auto "line" auto "controls" auto / minmax(0, 1fr);
    overflow: visible; }
  .uftlab-live.uftlab-on .uftlab-figure { position: sticky; top: 0; z-index: 1; }
  .uftlab-live .uftlab-controls :is(button, select, [type=number]), .uftlab-live [type=range] { min-height: 40px; }
}
"""
)
"""Added to the style of a page with explorers: it takes its colours from there. On a phone the figure stays in sight
while the controls below it are moved."""


def _packed(values: np.ndarray) -> dict[str, str]:
    """An array as plotly packs it, in 4 bytes per number, which is all that log-probabilities have."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()}


# ------------------------------------------------------------------------------ what the models are given


def margins_data(profile: str) -> dict[str, Any]:
    """Notebook 05: log pi(y | x) of each held-out row at each snapshot, by run and role, in nats.

    They are read from where the notebook has stored them. What is not there is trained first, in half a minute.
    """
    runs = [Run("sft-then-dpo"), Run("sft-plus-dpo"), Run("uft"), Run("uft", (("beta", 0.25),))]
    sizes = profile_named(profile)
    roles = held_out(World(0), sizes.sizes)["role"].to_numpy()
    return {
        "runs": {
            name: {
                "steps": list(own.steps),
                "starts": list(own.starts),
                "logps": {
                    role: [_packed(logps[roles == role]) for logps in own.logps.numpy()]
                    for role in ("chosen", "rejected", "demonstration")
                },
            }
            for name, own in snapshots.snapshots_of(runs, sizes, watched=False).items()
        }
    }


def mixing_data(profile: str) -> dict[str, Any]:
    """Notebook 06: the stored trials of the map, a value per world, and the layout of the figure for each outcome."""
    first = {name: control.value for name, control in mixing.controls().items()}
    pictures = {m: json.loads(mixing.picture(**{**first, "metric": m}).to_json()) for m in mixing.OUTCOMES}

    def keyed(places: dict[tuple, np.ndarray]) -> dict[str, list[float]]:
        return {" | ".join(map(_javascript, at)): values.tolist() for at, values in places.items()}

    worlds = {len(values) for metric in mixing.OUTCOMES for values in mixing.by_order(metric).values()}
    return {
        "orders": {metric: keyed(mixing.by_order(metric)) for metric in mixing.OUTCOMES},
        "methods": {metric: keyed(mixing.by_method(metric)) for metric in mixing.OUTCOMES},
        "names": {"orders": mixing.ORDERS, "methods": maps.SIX},
        "rates": maps.RATES,
        "nats": maps.NATS,
        "moved": mixing.RATE_OF,
        "quantile": float(stats.t.ppf(0.975, max(worlds) - 1)),
        "outcomes": {
            metric: {
                "layout": picture["layout"],
                "floor": [{key: trace[key] for key in ("x", "y", "showlegend")} for trace in picture["data"][3:]],
                "higher": HEADLINES[metric][2],
            }
            for metric, picture in pictures.items()
        },
    }


def _javascript(value: Any) -> str:
    """A value as JavaScript writes it into a text: 0.5, 1, true."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return value if isinstance(value, str) else f"{value:.12g}"


# notebook -> model, what its data are made by (from the profile), and what a stranger is told
MODELS: dict[str, tuple[str, Callable[[str], dict[str, Any]], str]] = {
    "01_implicit_reward": (
        "bandit",
        lambda profile: {},
        "Five answers to one question: set a reward for each, and the price β of leaving the reference. See the best "
        "policy.",
    ),
    "02_losses": (
        "losses",
        lambda profile: {"nats_per_token": 2.5},
        "Build a loss from its parts, draw one of the published methods over it, and see whether they are the same.",
    ),
    "05_reward_margins": (
        "margins",
        margins_data,
        "Four trained policies: follow the implicit rewards of unseen answers through training, and turn β.",
    ),
    "06_mixing": (
        "mixing",
        mixing_data,
        "Mix demonstrations and feedback, or give one after the other, at the learning rates that you choose.",
    ),
}


CHAT = "03_tiny_world"  # the notebook with a chat
TOLD = {  # notebook -> the anchor of what moves in its page, and what a stranger is told
    **{name: (f"explorer-{model}", told) for name, (model, _, told) in MODELS.items()},
    CHAT: (
        "ask",
        "A model of 0.14 million parameters that has read the text of a small world. Ask it, and see how sure it is of "
        "each word.",
    ),
}


def write_script(folder: Path) -> Path:
    """Write the scripts of all explorers as one file into a folder of exported pages."""
    models = [SCRIPTS / f"{model}.js" for model, _, _ in MODELS.values()]
    page = [SCRIPTS / name for name in ("live.js", "llama.js", "ask.js")]
    paths = [Path(widgets.__file__).parent / "painter.js", SCRIPTS / "tools.js", *models, *page]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    write_atomically(folder / SCRIPT, text)
    return folder / SCRIPT


def explorer(name: str, figure: go.Figure, profile: str) -> str:
    """The explorer of a notebook as HTML: sentence and static twin, and what `scripts/live.js` needs to move them.

    Args:
        name: of the notebook, a key of `MODELS`.
        figure: the static twin that `widgets.explore` returns.
        profile: the one with which the notebook was executed.
    """
    model, data, _ = MODELS[name]
    own = {
        "model": model,
        "data": data(profile),
        "twin": json.loads(figure.to_json()),
        "config": theme.CONFIG | {"responsive": False},
    }
    line = html.escape(figure.layout.meta["words"])
    return (
        f'<div class="uftlab uftlab-live" id="explorer-{model}"><div class="uftlab-desk">'
        f'<div class="uftlab-line uftlab-spoken" role="status" aria-live="polite">{line}</div>'
        f'<div class="uftlab-figure">{theme.page_html(figure)}</div></div>'
        f'<script type="application/json">{theme.json_for_page(own)}</script></div>'
    )


def asking(exchanges: str) -> str:
    """The chat of notebook 03 as HTML: the base model of world 0 itself, with what `scripts/ask.js` needs.

    Args:
        exchanges: what the notebook shows without widgets, as `texts.Reply.as_html` writes it. Its questions are those
            to try.
    """
    world, config, tokenizer = World(0), tiny_config(), tiny_tokenizer()
    tensors = dict(load_base(0).model.state_dict())
    halves = np.concatenate([own.numpy().astype("<f2").ravel() for own in tensors.values()])  # no digit is lost
    own = {
        "words": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        "special": len(tokenizer.all_special_ids),
        "facts": [[f.creature, f.attribute, f.truth, f.error, f.kind] for f in world.facts],
        "values": wording.ATTRIBUTES,
        "most": {"question": texts.MAX_QUESTION, "answer": MAX_NEW_TOKENS},
        "weights": base64.b64encode(halves.tobytes()).decode(),
        "sizes": {name.removesuffix(".weight"): own.numel() for name, own in tensors.items()},
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "epsilon": config.rms_norm_eps,
        "theta": config.rope_parameters["rope_theta"],  # type: ignore[index]
        "examples": [html.unescape(asked) for asked in re.findall(r"<b>you</b> (.*?)<br>", exchanges)],
    }
    script = f'<script type="application/json">{theme.json_for_page(own)}</script>'
    return f'<div class="uftlab uftlab-ask" id="ask">{exchanges}{script}</div>'


def make_live(notebook: NotebookNode, name: str) -> str:
    """Make the explorer of an executed notebook move, or its chat answer. Returns its HTML, empty if nothing moves.

    The output of its cell is replaced.
    """

    def outputs(wanted: Callable[[str], bool]) -> Iterator[NotebookNode]:
        cells = (cell for cell in notebook.cells if wanted(cell.source))
        return (output for cell in cells for output in cell.get("outputs", []) if "data" in output)

    if name == CHAT:
        for output in outputs(lambda source: "texts.chat(" in source):
            output.data["text/html"] = asking(output.data.get("text/html", ""))
            return output.data["text/html"]
    for output in outputs(has_explorer) if name in MODELS else ():
        stored = output.data.get(theme.MIMETYPE, {})
        if "controls" in (stored.get("layout", {}).get("meta") or {}):
            figure = go.Figure({"data": stored["data"], "layout": stored["layout"]})
            output.data["text/html"] = explorer(name, figure, _profile(notebook))
            return output.data["text/html"]
    return ""


# plotly.js is a third as long when packed. It is unpacked when all text is painted; figures wait for this promise
_UNPACK = """<script>
window.uftlabPlotly = new Promise((found, missing) => addEventListener("DOMContentLoaded", async () => {
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const text = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(text).text();
    document.head.append(script);
    found();
  } catch (error) {
    missing(error);
  }
}));
</script>"""


def alone(page: str, script: str) -> str:
    """The page of all explorers as one file that needs no other: `script` and plotly.js are inside, links are not.

    Args:
        page: the page that `export.write_site` makes.
        script: what `write_script` writes.
    """
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    page = page.replace(f'<script src="{SCRIPT}" defer></script>', _UNPACK)
    page = re.sub(r"<footer>.*?</footer>|<nav[^>]*>.*?</nav>\n?", "", page, flags=re.S)
    page = re.sub(r"<a href=[^>]*>(.*?)</a>", r"\1", page)
    numbers: dict[str, str] = {}  # in place of random names, so that the same page is the same file
    page = re.sub(
        r"uftlab-[0-9a-f]{8}-[0-9a-f-]{27}", lambda m: numbers.setdefault(m[0], f"uftlab-{len(numbers)}"), page
    )
    end = f'<script>{script}</script>\n<script id="plotly" type="text/plain">{packed}</script>\n</body>'
    return page.replace("</body>", end)


def _profile(notebook: NotebookNode) -> str:
    """The profile that an executed notebook was given: what papermill noted, else the default in its cell."""
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return given.get("profile") or re.findall(r"^profile: str = \"(\w+)\"", source, re.M)[0]
