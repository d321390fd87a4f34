"""The page that puts TRL's losses beside ours, from what was measured (`benchmarks/trl_parity.py`) and the registry."""

from __future__ import annotations

from typing import Any

from uftlab.files import DATA
from uftlab.objectives.registry import OBJECTIVES
from uftlab.reports.tables import linked, markdown

STORED = DATA / "results" / "benchmarks" / "trl_parity.json"
HEAD = "<!-- made by `python benchmarks/trl_parity.py --page docs/trl.md` -->"
CLOSE = 1e-5  # values may be so far apart, and gradients by that share of the largest entry

ABSENT = {
    ("DPOTrainer", "hinge"): "SLiC's hinge; [how to add a loss](how_to_add_a_loss.md) adds it",
    ("DPOTrainer", "exo_pair"): "EXO, arXiv 2402.00856",
    ("DPOTrainer", "nca_pair"): "NCA: each side of a pair by itself",
    ("DPOTrainer", "robust"): "DPO corrected for flipped labels; `cdpo` expects them instead",
    ("DPOTrainer", "sppo_hard"): "SPPO, arXiv 2405.00675",
    ("DPOTrainer", "aot"): "AOT: sorted log-ratios of a batch",
    ("DPOTrainer", "aot_unpaired"): "AOT: sorted log-ratios of a batch, each side by itself",
    ("DPOTrainer", "apo_down"): "APO for chosen completions that are worse than the model",
    ("DPOTrainer", "discopop"): "DiscoPOP, arXiv 2406.08414",
    ("CPOTrainer", "hinge"): "SLiC's hinge without a reference",
    ("CPOTrainer", "ipo"): "IPO without a reference",
    ("TPOTrainer", "hinge"): "TPO with SLiC's hinge",
    ("TPOTrainer", "ipo"): "TPO with IPO's square, on means over tokens",
    ("TPOTrainer", "tpo-l"): "TPO with SimPO's preference term",
}
"""What the losses are that we lack."""


def trl_page(stored: dict[str, Any]) -> str:
    """The page as Markdown: what agrees, what differs and how, what only one of the two has."""
    agree = [row for row in stored["rows"] if row["agrees"]]
    differ = [row for row in stored["rows"] if not row["agrees"]]
    matched = {row["ours"] for row in stored["rows"]}
    alone = [objective for name, objective in OBJECTIVES.items() if name not in matched]
    parts = [
        HEAD,
        "# TRL's losses and ours",
        f"> A script for TRL {stored['trl']}: which equation is it, and where is it here?",
        "Measured on the same random log-probabilities of 64 bits, by TRL's own lines: the loss of a batch in TRL's "
        "trainer beside that of the registered objective, so averages over the batch are compared too. *Agree* means "
        f"that the values are within {CLOSE:g}, and the gradients at all tokens within {CLOSE:g} of the largest. What "
        "comes before the loss (chat templates, truncation) and after it (optimiser, schedule) is not compared.",
        f"## Agree in value and gradient ({len(agree)})",
        markdown(["TRL's trainer", "loss", "ours", ""], [[*_start(row), row["how"]] for row in agree]),
        f"## Differ ({len(differ)})",
        markdown(
            ["TRL's trainer", "loss", "ours", "how", "values apart by"],
            [[*_start(row), row["how"], f"{row['value_away']:.2g}"] for row in differ],
        ),
        f"## Absent here ({len(stored['absent'])})",
        markdown(
            ["TRL's trainer", "loss", "what it is"],
            [[r["trainer"], _loss(r["loss"]), ABSENT.get((r["trainer"], r["loss"]), "")] for r in stored["absent"]],
        ),
        "The DPO trainer also has options we lack: other f-divergences, `ld_alpha` (LD-DPO), `use_weighting` (WPO) "
        "and `sync_ref_model` (TR-DPO). The CPO trainer has AlphaPO.",
        "Not compared are trainers that train a reward model, sample or distil: "
        + ", ".join(f"`{name}`" for name in stored["others"])
        + ". Recipes of that kind here are the methods of the group *online* ([all methods](methods/README.md)).",
        f"## Absent there ({len(alone)})",
        markdown(["ours", "what it is"], [[linked(o.name, "methods"), o.summary.replace("|", "\\|")] for o in alone]),
        "Trainers of earlier versions that are no longer in the package: "
        + ", ".join(f"`{name}`" for name in stored["gone"])
        + ". CPO and ORPO are among the experimental ones.",
    ]
    return "\n\n".join(parts) + "\n"


def _start(row: dict[str, Any]) -> list[str]:
    return [row["trainer"], _loss(row["loss"]), linked(row["ours"], "methods")]


def _loss(name: str) -> str:
    return f"`{name}`" if name not in ("-", "odds term", "the whole") else name
