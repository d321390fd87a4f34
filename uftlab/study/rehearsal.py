"""Hidden or gone? What comes back when a trained model reads a little of its old text again.

A model that lost a skill is trained on lines of its world's pre-training text, each line once. Two texts:

- "other creatures": lines that name no creature on which facts are asked. What comes back was not told again;
- "all creatures": lines as the base read them. What comes back here and not there is told again.

Two controls read the same lines: the base of another world, which never had these facts and shows how much of a
distance anybody makes up so fast; and the base itself, which shows what the reading does to a model that has lost
nothing. Hidden is what comes back with other creatures, and further than for the base of another world.

    python -m uftlab.study.rehearsal      four worlds, stores data/results/rehearsal.json (five minutes on one core)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from uftlab.files import rounded, write_atomically
from uftlab.rows.tokens import Completion, Example
from uftlab.study.comparisons import corrected
from uftlab.study.results import RESULTS, interval
from uftlab.study.trials import PROFILES, Profile, trial
from uftlab.world.world import World

STORED = RESULTS / "rehearsal.json"
METHODS = ("uft", "sft-plus-dpo", "sft-then-dpo", "signed-sft", "dpo-alone")
NEVER, BASE = "base of another world", "base"
TEXTS = ("other creatures", "all creatures")
WORLDS, AWAY = range(4), 8  # the other world of a control is so many further
STEPS, BATCH, LEARNING_RATE = 80, 32, 1e-3
AT = (0, 5, 10, 20, 40, 80)
STREAM = 77_777  # of the text: no base was trained on it, and no old text is measured on it
METRICS = ("retention/lost", "truth/cued", "plain/mc2", "truth/myths", "instruction/both")
KINDS = {"old text": "retention/lost", "what careful sources say": "truth/cued"}  # of forgetting


def lines(world: World, text: str, split: str = "test", count: int = STEPS * BATCH) -> list[Example]:
    """Lines of a world's pre-training text as examples to learn from, without creatures of the split or with all."""
    from uftlab.study.cohort import tokens

    hidden = set(world.creatures[split]) if text == TEXTS[0] else set()
    tokenizer, made = tokens().tokenizer, list[Example]()
    begin: Any = tokenizer.bos_token_id
    end: Any = tokenizer.eos_token_id
    for document in world.pretraining_documents(seed=STREAM):
        if hidden.isdisjoint(document.text.split()):
            ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
            made.append((Completion((begin,), (*ids, end), "demonstration", 1.0),))
        if len(made) == count:
            break
    return made


def finals(world: int, profile: Profile) -> dict[str, Tensor]:
    """The weights of each method at the end of its training in a world, with the tuning draw of the world."""
    from uftlab.study.cohort import materials, tokens
    from uftlab.training.catalogue import method_named
    from uftlab.training.methods import plan
    from uftlab.training.stages import Job, run

    own, ends = materials(world, profile, "test"), {}
    for method in METHODS:
        planned, ends[method] = trial(method, world, profile), own.base
        stages = plan(method_named(method), profile.steps, planned.stage_settings())
        for index, (stage, steps, settings) in enumerate(stages):
            job = Job(ends[method], stage, own.tables, settings, steps, world * 10 + index, None, own.references)
            ends[method] = run([job], tokens())[0].weights
    return ends


def read_again(starts: Sequence[Tensor], read: Sequence[Example], steps: int = STEPS) -> dict[int, Tensor]:
    """Train copies of all models on the same lines in the same order: step -> weights of all, at each of `AT`."""
    from uftlab.engine.population import Member, train
    from uftlab.objectives.registry import objective_named
    from uftlab.rows.tokens import interleave
    from uftlab.training.stages import layout, usual_device

    order = interleave([read], [len(read) // steps], steps, seed=0)
    kept = {0: torch.stack(list(starts))}

    def watch(step: int, numbers: Sequence[int], weights: Tensor) -> None:
        own = kept.setdefault(step, kept[0].clone())
        own[list(numbers)] = weights.to(own)

    objective, settings = objective_named("sft"), {"learning_rate": LEARNING_RATE}
    members = [Member(start, objective, settings, order, len(read) // steps) for start in starts]
    train(members, layout(), watch=watch, at={step for step in AT if step}, device=usual_device())
    return kept


def rehearse(world: int, profile: Profile) -> list[dict[str, Any]]:
    """All models of a world on both texts: `world`, `model`, `text` and the light metrics at each step of `AT`."""
    from uftlab.engine.stack import flatten
    from uftlab.evals.skills import measure
    from uftlab.models.policies import load_base
    from uftlab.study.cohort import materials, reader
    from uftlab.training.stages import layout

    own = materials(world, profile, "test")
    never = flatten(load_base(world + AWAY).state_dict(), layout()).to(own.base)
    models = {**finals(world, profile), NEVER: never, BASE: own.base}
    runs = []
    for text in TEXTS:
        kept = read_again(list(models.values()), lines(World(world, profile.dials), text))
        found = {step: measure([own.light] * len(models), reader(weights)) for step, weights in sorted(kept.items())}
        for number, model in enumerate(models):
            points = [{"step": step, **{m: found[step][number][m] for m in METRICS}} for step in sorted(found)]
            runs.append({"world": world, "model": model, "text": text, "points": points})
    return runs


# ------------------------------------------------------------------------------------------ what came of it


def table(stored: dict[str, Any]) -> pd.DataFrame:
    """One row per world, model, text and step, with its metrics."""
    return pd.DataFrame(
        [
            {name: run[name] for name in ("world", "model", "text")} | point
            for run in stored["runs"]
            for point in run["points"]
        ]
    )


def came_back(frame: pd.DataFrame) -> pd.DataFrame:
    """How much of what a model lost is back: columns world, model, text, kind, step, lost, back.

    lost = distance to the base before the first step,  regained = lost - distance now, in each world
    share = sum of regained / sum of lost, over worlds
    back = share + (regained - share lost) / mean of lost, in each world

    A world in which little was lost would have a wild share of its own. So `back` is linearised: its mean over worlds
    is the share, and its spread is that of a ratio of means (Cochran 1977, section 2.11). 1: all of it; below 0: more
    is lost than before. For the base of another world `lost` is all that it never had; the base itself has no row.
    Old text lost 0.4 and 0.2 nats in two worlds, and 0.1 in both after ten steps: share 2/3.
    """
    rows = []
    for kind, metric in KINDS.items():
        base = frame[(frame["model"] == BASE) & (frame["step"] == 0)].groupby("world")[metric].first()
        for (model, text), own in frame[frame["model"] != BASE].groupby(["model", "text"], sort=False):
            away = own.pivot(index="world", columns="step", values=metric).sub(base, axis=0).dropna()
            away *= 1 if away[0].mean() > 0 else -1  # of old text more is worse, of truth less
            for step, now in away.items():
                lost, regained = away[0], away[0] - now
                share = regained.sum() / lost.sum()
                back = share + (regained - share * lost) / lost.mean()
                place = {"model": model, "text": text, "kind": kind, "step": step}
                rows += [{"world": w, **place, "lost": lost[w], "back": back[w]} for w in away.index]
    return pd.DataFrame(rows)


def over_worlds(back: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over worlds of `back`, with the mean of `lost`: one row per model, text, kind and step."""
    rows = []
    by = ["model", "text", "kind", "step"]
    for at, own in back.groupby(by, sort=False):
        found = asdict(interval(own["back"].to_numpy()))
        rows.append(dict(zip(by, at, strict=True)) | found | {"lost": own["lost"].mean()})
    return pd.DataFrame(rows)


def above_control(back: pd.DataFrame) -> list[dict[str, Any]]:
    """What is back of each method minus what the base of another world made up, paired by world, at the last step.

    One row per model, text and kind, with Holm's correction over all of them.
    """
    last = back[back["step"] == back["step"].max()]
    wide = last.pivot(index=["text", "kind", "world"], columns="model", values="back")
    rows = []
    for model in [name for name in wide if name != NEVER]:
        for (text, kind), own in (wide[model] - wide[NEVER]).groupby(["text", "kind"], sort=False):
            rows.append({"model": model, "text": text, "kind": kind, **asdict(interval(own.to_numpy()))})
    return corrected(rows)


def steps_until(summary: pd.DataFrame, share: float) -> int | None:
    """The first step of one model, text and kind (rows of `over_worlds`) with at least this share back, on average."""
    there = summary[summary["mean"] >= share]["step"]
    return int(there.min()) if len(there) else None


def main() -> None:
    """Run all worlds and store them, four significant digits."""
    torch.set_num_threads(1)
    runs = []
    for world in WORLDS:
        runs += rehearse(world, PROFILES["class"])
        print(f"world {world} done", flush=True)
    for run in runs:
        run["points"] = rounded(run["points"], 4)
    about = {"learning_rate": LEARNING_RATE, "batch": BATCH, "runs": runs}
    write_atomically(STORED, json.dumps(about, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
