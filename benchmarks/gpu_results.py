"""Checks the files of `benchmarks/gpu.sh` and makes committed results, the lines of docs/speed.md and a page of them.

    python benchmarks/gpu_results.py build/gpu            show: measured numbers and their limits
    python benchmarks/gpu_results.py build/gpu --commit   and write them, docs/gpu.md and lines of docs/speed.md
    python benchmarks/gpu_results.py build/gpu --again    write them beside the first GPU's, as far as they go
    python benchmarks/gpu_results.py data/results/gpu     show what is committed

Files of a dry run, or of several devices, are refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "data" / "results" / "gpu"
PAGE = ROOT / "docs" / "gpu.md"
SPEED = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- written by benchmarks/gpu_results.py -->", "<!-- end -->"
NEEDED, OPTIONAL = ("right", "fast", "grid", "study"), ("real",)

Parts = dict[str, dict[str, Any]]


def parts_of(folder: Path, needed: Sequence[str] = NEEDED) -> Parts:
    """The files of a run, of which some must be there.

    Raises:
        SystemExit: for a part that is missing, interrupted or dry, and for files of different devices.
    """
    parts: Parts = {}
    for name in (*NEEDED, *OPTIONAL):
        path = folder / f"{name}.json"
        if path.is_file():
            parts[name] = json.loads(path.read_text())
        elif name in needed:
            raise SystemExit(f"{path} must be there; got nothing. Run benchmarks/gpu.sh --parts {name}.")
    for name, part in parts.items():
        if part["dry"]:
            raise SystemExit(
                f"{name}.json must come from a GPU; got a dry run. Run benchmarks/gpu.sh without --dry-run."
            )
        if not part["whole"] and not (name in OPTIONAL and _measured(part)):
            raise SystemExit(f"{name}.json must be whole; got a cut run. Run benchmarks/gpu.sh --parts {name}.")
    devices = sorted({part["device"] for part in parts.values()})
    if len(devices) != 1:
        raise SystemExit(f"The files must come from one device; got {', '.join(devices)}. Run all parts on one.")
    return parts


def _measured(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of the real model that ended. The time limit may have stopped the last one."""
    return {name: run for name, run in part.get("runs", {}).items() if "after" in run}


Check = tuple[str, str, Callable[[dict[str, Any]], float], str, float]  # the part, and what it is asked

CHECKS: tuple[Check, ...] = (
    ("fast", "64 members over ObjectiveTrainer one after another", lambda own: _gain(own, 64), ">=", 25),
    ("fast", "1,024 members over ObjectiveTrainer one after another", lambda own: _gain(own, 1024), ">=", 100),
    ("grid", "the grid, trained and measured, in seconds", lambda own: own["seconds"], "<=", 20),
    ("study", "the study of sixteen seeds in seconds", lambda own: own["seconds"], "<=", 60),
    ("right", "distance of the GPU's weights from the CPU's, share of the way", lambda own: _distance(own), "<=", 0.01),
    ("right", "answers of the GPU that equal the CPU's", lambda own: own["generation"]["greedy_equal"], ">=", 0.99),
    ("right", "reference log-probabilities, GPU against CPU, in nats", lambda own: own["reference_nats"], "<=", 1e-3),
)  # fmt: skip


def _gain(fast: dict[str, Any], members: int) -> float:
    return fast["sizes"][str(members)]["speedup_over_trainer"]


def _distance(right: dict[str, Any]) -> float:
    return max(entry["distance"] for entry in right["trajectories"].values())


def checked(parts: Parts) -> list[tuple[str, float, str, bool]]:
    """Each check of the parts that are there: its name, the value, the limit, and whether the value is within it."""
    found = [(what, ask(parts[part]), sign, limit) for part, what, ask, sign, limit in CHECKS if part in parts]
    found.append(("faults", float(sum(len(own["faults"]) for own in parts.values())), "<=", 0))
    return [
        (what, value, f"{sign} {limit:g}", value >= limit if sign == ">=" else value <= limit)
        for what, value, sign, limit in found
    ]


def speed_lines(parts: Parts) -> str:
    """The lines of docs/speed.md about the GPU. Every number is from the files."""
    fast, grid, study = parts["fast"], parts["grid"], parts["study"]
    small, large = (fast["sizes"][name] for name in ("64", "1024"))
    return "\n".join(
        [
            f"On one {fast['device']} ([all numbers](gpu.md); `benchmarks/gpu.sh` measures them again):",
            "",
            f"- **{small['speedup_over_trainer']:.0f}** times as fast as `ObjectiveTrainer` for 64 models, one after"
            f" the other; **{large['speedup_over_trainer']:.0f}** times for 1,024 models.",
            f"- **{grid['seconds']:.0f}** s for a grid of {grid['members']} models, {grid['steps']:,} steps each,"
            " measured at the end.",
            f"- **{study['seconds']:.0f}** s for the study: {study['trials']} trials in sixteen worlds.",
        ]
    )


def page(parts: Parts) -> str:
    """All numbers, as Markdown."""
    right, fast, grid, study = (parts[name] for name in NEEDED)
    awkward = right["repeated"]["without_a_graph"]["largest_difference"]
    lines = [
        "# On a GPU",
        "",
        f"{fast['device']}, torch {fast['torch']}, transformers {fast['transformers']}, Python {fast['python']}.",
        "`OUT=build/gpu bash benchmarks/gpu.sh` measures everything in nine minutes at most, and",
        "`python benchmarks/gpu_results.py build/gpu --commit` writes this page.",
        "",
        "## What was to be reached",
        "",
        *_table(
            ["what", "measured", "limit", "reached"],
            [[what, _number(value), limit, "yes" if ok else "**no**"] for what, value, limit, ok in checked(parts)],
        ),
        "",
        "## Is it right?",
        "",
        f"{len(right['trajectories'])} objectives were trained by the engine of the studies on the CPU and on the GPU,",
        "with the same data. Distance: how far the two ends lie apart, as a share of the way from the start. Logs: the",
        "largest relative difference of a logged number.",
        "",
        *_table(
            ["objective", "distance", "logs"],
            [[name, f"{e['distance']:.1e}", f"{e['logs']:.1e}"] for name, e in right["trajectories"].items()],
        ),
        "",
        "`ObjectiveTrainer` on the GPU against the engine on the CPU, distance: "
        + ", ".join(f"{name} {value:.1e}" for name, value in right["trainer"].items())
        + ".",
        "",
        "Reference log-probabilities differ by at most "
        f"{right['reference_nats']:.1e} nats. Equal answers, GPU against CPU: greedy "
        f"{right['generation']['greedy_equal']:.1%}, sampled {right['generation']['sampled_equal']:.1%}; the engine "
        f"against transformers' own generation {right['generation']['as_the_library']:.1%}.",
        "",
        "The same seed again on the GPU:",
        "",
        *_table(
            ["second run", "weights equal to the bit", "logs equal to the bit", "largest difference"],
            [
                [_REPEATED[name], _yes(e["weights_bitwise"]), _yes(e["histories_bitwise"]), _small(e)]
                for name, e in right["repeated"].items()
                if name in _REPEATED
            ],
        ),
        "",
        "A loss that looks at a value on the CPU cannot be held by a graph. It is trained step by step, with the",
        f"message “{_said(right)}”; its weights differ by {awkward:.1e}.",
        "",
        "## How fast?",
        "",
        f"UFT, 32 completions a step. `ObjectiveTrainer` takes {1000 * fast['trainer_seconds_per_step']:.1f} ms a step",
        "for one model. GPU alone: the captured step without the making of batches, which the CPU does meanwhile.",
        "The last two columns: operations and bytes that a step needs at least, over what a large matrix product and a",
        "large copy reach on this GPU.",
        "",
        *_table(
            [
                "models",
                "ms a step",
                "GPU alone",
                "making a batch",
                "model steps per s",
                "over ObjectiveTrainer",
                "over one by one",
                "memory, GiB",
                "arithmetic",
                "bandwidth",
            ],
            [
                [
                    f"{int(count):,}",
                    f"{1000 * e['seconds_per_step']:.2f}",
                    f"{1000 * e['device_seconds']:.2f}",
                    f"{1000 * e['packing_seconds']:.2f}",
                    f"{e['member_steps_per_second']:,.0f}",
                    f"{e['speedup_over_trainer']:.0f} x",
                    f"{e['speedup_over_one_by_one']:.1f} x",
                    f"{e['peak_gib']:.1f}",
                    f"{e['fraction_of_arithmetic']:.0%}",
                    f"{e['fraction_of_memory']:.0%}",
                ]
                for count, e in fast["sizes"].items()
            ],
        ),
        "",
        "64 models in other modes and precisions. Distance: of the weights from float32 after the same steps, as a",
        "share of the way.",
        "",
        *_table(
            ["mode", "ms a step", "first steps and set-up, s", "distance"],
            [
                [
                    name,
                    f"{1000 * e['seconds_per_step']:.2f}",
                    f"{e['with_set_up_seconds']:.1f}",
                    f"{e['distance_from_float32']:.1e}",
                ]
                for name, e in fast["variants"].items()
            ],
        ),
        "",
        "A captured graph in float32 is the default: with it a GPU and a CPU give the same numbers. The other",
        "precisions gain a fifth at most. Compiling gains a quarter; its set-up takes longer than the study below.",
        "",
        *_looks(fast.get("looks", {})),
        "## The grid and the study",
        "",
        f"The grid: {grid['members']} models, {grid['steps']:,} steps, trained in {grid['train_seconds']:.1f} s and "
        f"measured in {grid['evaluate_seconds']:.1f} s (preparing the data took {grid['prepare_seconds']:.1f} s). Means"
        f" over {len({p['world'] for p in grid['points']})} worlds:",
        "",
        *_table(["learning rate", "beta", *(label for _, label in _SKILLS)], _grid_rows(grid["points"])),
        "",
        f"The study: {study['trials']} trials in {study['seconds']:.0f} s from first import to last file, "
        f"on {study['processes']} CPU cores. Difference of its metrics from the trials that a CPU ran:",
        "",
        *_table(
            ["metric", "mean difference", "largest"],
            [[name, f"{e['mean']:+.4f}", f"{e['largest']:.3f}"] for name, e in sorted(study["apart"].items())],
        ),
        "",
    ]
    if "runs" in parts.get("real", {}):
        lines += _real_model(parts["real"])
    return "\n".join([*lines, *_again()])


def _again() -> list[str]:
    """What later runs of some parts found on other GPUs."""
    lines: list[str] = []
    for folder in sorted(path for path in STORE.glob("*/") if path.is_dir()):
        parts = parts_of(folder, needed=())
        first = next(iter(parts.values()))
        versions = f"torch {first['torch']}, transformers {first['transformers']}, Python {first['python']}"
        lines += [f"## Again: {first['device']}", "", f"{versions}; parts: {', '.join(parts)}."]
        if "right" in parts:
            made = parts["right"]["trajectories"]
            worst = max(made, key=lambda name: made[name]["distance"])
            lines += [
                f"{len(made)} objectives were trained on the CPU and on the GPU; the largest distance was"
                f" {made[worst]['distance']:.1e} of the way ({worst}).",
            ]
        rows = [[what, _number(value), limit, "yes" if ok else "**no**"] for what, value, limit, ok in checked(parts)]
        lines += ["", *_table(["what", "measured", "limit", "reached"], rows), ""]
    return lines


def _looks(seconds: dict[str, float]) -> list[str]:
    """The cost of looking for the end of answers, from runs that compared it."""
    if not seconds:
        return []
    return [
        "Answers of 64 models to all prompts of a world, by the tokens between two looks for the end (a look waits for",
        "the GPU): " + ", ".join(f"{name}: {value:.2f} s" for name, value in seconds.items()) + ". So the engine looks",
        "after every token, and finished lines leave at once.",
        "",
    ]


def _real_model(part: dict[str, Any]) -> list[str]:
    """The section about a real model."""
    runs = _measured(part)
    pass_over = next((run["reference"] for run in runs.values() if "reference" in run), None)
    rows = [
        [
            name,
            f"{run['step_seconds']:.2f}" if run["step_seconds"] else "too short",
            f"{run['training']['tokens_per_second']:,.0f}",
            f"{run['training']['positions_per_token']:.2f}",
            f"{run['training']['peak_gib']:.1f}",
            f"{run['before']['nats_per_token']:.3f} to {run['after']['nats_per_token']:.3f}",
            f"{run['before']['order']:.2f} to {run['after']['order']:.2f}",
        ]
        for name, run in runs.items()
    ]
    return [
        "## A real model",
        "",
        f"{part['model']}, LoRA of rank 16, {part['steps']} steps of 32 completions, {part['longest']} tokens at most,",
        f"{part['rows']['demonstrations']:,} demonstrations (Dolly) and {part['rows']['feedback']:,} scored rows",
        "(UltraFeedback), one seed, settings that nobody tuned. The model had been aligned before, on UltraFeedback",
        "too. So this says how fast the code is and that it learns; it compares no methods. Positions: what is",
        "computed for each real token; padding is the rest. Order: how often the implicit reward puts two held-out",
        "rows in the order of their scores; 0.5 is guessing.",
        "",
        *_table(["run", "s a step", "tokens per s", "positions", "peak GiB", "nats a token, held out", "order"], rows),
        "",
        *(
            [
                f"The reference pass read {pass_over['completions']:,} completions at "
                f"{pass_over['tokens_per_second']:,.0f} tokens per second with {pass_over['peak_gib']:.1f} GiB.",
                "",
            ]
            if pass_over
            else []
        ),
    ]


_REPEATED = {
    "second": "as before",
    "eager": "without a graph",
    "deterministic": "with `torch.use_deterministic_algorithms`",
}
_SKILLS = (
    ("instruction/strict", "instructions followed"),
    ("instruction/both", "and correct"),
    ("truth/mc2", "truth"),
    ("retention/excess", "old text forgotten"),
)


def _grid_rows(points: Sequence[dict[str, float]]) -> list[list[str]]:
    rows = []
    for rate, beta in sorted({(p["learning_rate"], p["beta"]) for p in points}):
        own = [p for p in points if (p["learning_rate"], p["beta"]) == (rate, beta)]
        means = (statistics.mean(p[name] for p in own) for name, _ in _SKILLS)
        rows.append([f"{rate:g}", f"{beta:g}", *(f"{value:.3f}" for value in means)])
    return rows


def _said(right: dict[str, Any]) -> str:
    said = right["repeated"]["without_a_graph"]["said"]
    return said[0] if said else "nothing"


def _small(entry: dict[str, Any]) -> str:
    return entry["fault"] or f"{entry['largest_difference']:.1e}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def with_lines(text: str, lines: str) -> str:
    """The page of speeds with the given lines about the GPU."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{SPEED} must hold the marks {BEGIN} and {END}; got none. Put them back.")
    return f"{before}{BEGIN}\n{lines}\n{END}{after}"


def _write(folder: Path, parts: Parts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part, indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Check, print, and write if asked. Returns 1 if a limit was not reached."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where benchmarks/gpu.sh wrote")
    options.add_argument("--again", action="store_true", help="write the parts that are there in a folder of their own")
    options.add_argument("--commit", action="store_true", help="write results, page and the lines of docs/speed.md")
    chosen = options.parse_args(words)
    parts = parts_of(chosen.folder, () if chosen.again else NEEDED)
    found = checked(parts)
    for what, value, limit, ok in found:
        print(f"{'yes' if ok else 'NO':<4}{what}: {_number(value)} ({limit})")
    if chosen.again:
        name = next(iter(parts.values()))["device"].lower().replace(" ", "-")
        _write(STORE / name, parts)
        PAGE.write_text(page(parts_of(STORE)))
        return 0 if all(ok for *_, ok in found) else 1
    print(speed_lines(parts))
    if chosen.commit:
        _write(STORE, parts)
        PAGE.write_text(page(parts))
        SPEED.write_text(with_lines(SPEED.read_text(), speed_lines(parts)))
    return 0 if all(ok for *_, ok in found) else 1


if __name__ == "__main__":
    sys.exit(main())
