"""One model: train, merge, measure, compare, and what the curves of its training say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uftlab.commands.frame import RESUMES, As_json, check_file, command, console, fail, say, seeds_of, warn
from uftlab.errors import InputError, printable
from uftlab.files import check_writable, write_atomically


def _option(text: str, **more: Any) -> Any:
    return typer.Option(help=text, show_default=False, **more)


@command(
    example="uftlab train --model tiny --demonstrations a.jsonl --feedback b.jsonl --steps 100 --out my-model",
    interrupted="--resume with this --out goes on from the last checkpoint or finished stage, or begins again.",
)
def train(
    out: Annotated[str | None, _option("Folder for the checkpoint; results/train/MODEL-METHOD if empty.")] = None,
    model: Annotated[
        str | None, _option("A folder in the hub's layout, an adapter's folder, a hub name, or tiny.")
    ] = None,
    demonstrations: Annotated[
        str | None, _option("Prompts with answers to learn: a file, a folder, or a hub name (name:subset@split).")
    ] = None,
    feedback: Annotated[str | None, _option("Pairs (chosen, rejected), labels or scores: the same.")] = None,
    method: Annotated[str | None, _option("See `uftlab methods`; uft if empty.")] = None,
    steps: Annotated[int | None, _option("Optimiser steps over all stages; 100 if empty.")] = None,
    epochs: Annotated[float | None, _option("Passes over the largest table, instead of steps.")] = None,
    batch: Annotated[int | None, _option("Completions per step, over all processes; 32 if empty.")] = None,
    accumulation: Annotated[int | None, _option("Micro-batches of a step.")] = None,
    tokens_per_device: Annotated[
        int | None, _option("Most positions of one pass, padding included; 0: no limit. The result is the same.")
    ] = None,
    learning_rate: Annotated[float | None, _option("Peak learning rate; the default is printed.")] = None,
    beta: Annotated[float | None, _option("KL strength of the implicit reward; the default is printed.")] = None,
    lora: Annotated[int | None, _option("Rank of LoRA adapters; 0 trains all weights.")] = None,
    lora_alpha: Annotated[float | None, _option("Adapters count alpha / rank times; the rank if empty.")] = None,
    lora_dropout: Annotated[float | None, _option("Dropout of the adapters' inputs.")] = None,
    lora_targets: Annotated[str | None, _option("Names of modules with commas; all linear layers if empty.")] = None,
    merge: Annotated[bool | None, _option("Save the whole model, adapters merged.")] = None,
    max_length: Annotated[int | None, _option("Drop rows with more tokens, with a warning.")] = None,
    train_on: Annotated[str | None, _option("Of a conversation, learn the last answer or all (last, all).")] = None,
    layout: Annotated[str | None, _option("Of the rows, where it is not recognised; see docs/data.md.")] = None,
    score_range: Annotated[str | None, _option("Lowest and highest rating, such as 1,10.")] = None,
    on_bad_row: Annotated[str | None, _option("drop-empty, drop (with a count) or refuse.")] = None,
    precision: Annotated[str | None, _option("fp32, bf16 or fp16 (mixed precision).")] = None,
    gradient_checkpointing: Annotated[bool | None, _option("Less memory, more time.")] = None,
    warmup: Annotated[float | None, _option("Share of the steps; 0.1 if empty.")] = None,
    weight_decay: Annotated[float | None, _option("Of AdamW; 0 if empty.")] = None,
    clip: Annotated[float | None, _option("Largest norm of a gradient; 0 clips nothing.")] = None,
    dropout: Annotated[bool | None, _option("Dropout in the policy (never in the reference).")] = None,
    held_out: Annotated[float | None, _option("Share of each table to evaluate loss and margins on.")] = None,
    evaluate_every: Annotated[int | None, _option("Steps between evaluations.")] = None,
    save_every: Annotated[int | None, _option("Steps between checkpoints, for --resume.")] = None,
    log_every: Annotated[int | None, _option("Steps between logged lines; a twentieth of a stage if empty.")] = None,
    log_to: Annotated[str | None, _option("Loggers with commas: tensorboard, trackio, wandb.")] = None,
    benchmarks: Annotated[
        list[str] | None, _option("Files of benchmarks: warns of prompts that are in both. May be given again.")
    ] = None,
    samples: Annotated[int | None, _option("Answers before and after, to that many prompts.")] = None,
    seed: Annotated[int | None, _option("Of the data order and the adapters.")] = None,
    config: Annotated[Path | None, _option("A YAML file with these options; others win over it.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="name=value, also stages.0.beta=0.01.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained; train nothing.")] = False,
) -> None:
    """Train a checkpoint from your own rows with any method."""
    given = {name: value for name, value in locals().items() if name not in ("config", "change", "resume", "dry_run")}
    from uftlab.engine.trainer import DivergedError, process
    from uftlab.evals.doctor import diagnose
    from uftlab.evals.run_logs import runs_of
    from uftlab.reports.doctor import alarms
    from uftlab.training.checkpoint import train_checkpoint
    from uftlab.training.configuration import TrainConfig, read_config
    from uftlab.training.record import read_record

    if resume:
        extra = [name for name, value in given.items() if value is not None and name != "out"]
        if extra or config or change or out is None:
            got = ", ".join(extra) or ("no --out" if out is None else "--config or --set")
            raise InputError("--resume", "come with --out alone: the folder knows the rest", got, "Leave them out")
        wanted = TrainConfig(out=out)
    else:
        wanted = read_config(config, change or (), **given)
    try:
        folder = train_checkpoint(wanted, say, resume, dry_run)
    except DivergedError as error:
        fail(str(error), 1)
    if not dry_run and process().is_main_process:
        for line in alarms([diagnose(run) for run in runs_of(str(folder), read_record(folder))]):
            warn(f"warning: {line}")


@command(example="uftlab merge my-adapter --out my-model")
def merge(
    model: Annotated[str, typer.Argument(help="An adapter's folder; a model's folder or a hub name is copied.")],
    out: Annotated[Path, typer.Option(help="Folder for the whole model.")],
) -> None:
    """Save an adapter and its base as one model, which needs neither peft nor the base."""
    from uftlab.training.checkpoint import merge as merged

    say(f"saved {merged(model, out)}")


@command(
    example="uftlab eval --model my-model --suite ifeval,truthfulqa,wordcount --data benchmarks --limit 50",
    interrupted=RESUMES,
)
def eval(
    model: Annotated[str, typer.Option(help="A folder in the hub's layout, an adapter, a hub name, or tiny.")],
    suite: Annotated[
        str, typer.Option(help="With commas: ifeval, truthfulqa, wordcount, perplexity, kl, reward, bbh, gsm8k, ...")
    ] = "ifeval,truthfulqa",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; empty: results/eval/NAME.", show_default=False)
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The model that kl and reward refer to.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with ifeval, truthfulqa, punkt_tab_english.")] = None,
    rows: Annotated[
        str | None, typer.Option(help="For wordcount, kl, reward: a file, a folder or a hub name, as in train.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="For perplexity: plain text, or the same with a column text.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Of the implicit reward; empty: that of the training.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first questions of each suite; empty: all.")] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template/--no-chat-template", help="Neither: both ways.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 1280,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of what is sampled.")] = 0,
) -> None:
    """Measure a model: IFEval, TruthfulQA and others by lm-eval, lengths, text, KL, implicit rewards.

    Writes eval.json (every question), eval.md (the page) and the answers into --out.
    """
    from uftlab.evals.benchmarks import evaluate
    from uftlab.evals.suites import Settings
    from uftlab.reports.evaluation import write_run_page

    suites = tuple(name.strip() for name in suite.split(",") if name.strip())
    folder = out or Path("results") / "eval" / Path(model).name
    check_writable(folder)
    settings = Settings(suites, reference, data, rows, text, beta, chat_template, limit, batch, max_new_tokens, seed)
    evaluate(model, folder, settings, say=say)
    say(f"wrote {write_run_page(folder)}")


@command(
    example="uftlab compare recipe.yaml --methods base,uft,sft-then-dpo --seeds 0,1,2 --out results/mine",
    interrupted=RESUMES,
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `uftlab eval`, or one recipe: a YAML file.")],
    baseline: Annotated[
        str | None,
        _option("What the others are compared with: one of the folders; with a recipe, a method (the first if empty)."),
    ] = None,
    out: Annotated[
        Path | None, _option("The page; empty: print it. With a recipe: the folder for all runs and compared.md.")
    ] = None,
    methods: Annotated[
        str | None, _option("With a recipe: names with commas; empty: those that it has options for.")
    ] = None,
    seeds: Annotated[str | None, _option("With a recipe: seeds with commas; 0,1,2 if empty.")] = None,
    as_json: As_json = False,
) -> None:
    """Compare models question by question, with paired intervals over questions and over seeds.

    **Folders** of `uftlab eval` are compared as they are:
    `uftlab compare results/eval/uft results/eval/sft --baseline results/eval/base --out compared.md`

    **A recipe**, the YAML file of `uftlab train`, is trained with each method and seed, measured as its part `eval`
    says, and compared. What is finished is not done again; a training that was cut resumes.
    """
    recipes = [path for path in runs if path.suffix in (".yaml", ".yml")]
    if recipes:
        if len(runs) > 1 or as_json:
            got = ", ".join(str(path) for path in runs) if len(runs) > 1 else "--json"
            raise InputError("A recipe", "come alone, and without --json", got, "Compare its folders afterwards")
        if out is None:
            raise InputError("A recipe", "have --out", "none", "Name a folder for its runs")
        _compare_recipe(recipes[0], methods, seeds or "0,1,2", baseline, out)
        return
    from dataclasses import asdict

    from uftlab.reports.evaluation import compare as compared
    from uftlab.reports.evaluation import comparison_page

    if out is not None:
        check_file(out)
    if methods or seeds:
        remedy = "Give a recipe, such as recipe.yaml, or leave them out"
        raise InputError("--methods and --seeds", "come with a recipe", f"the folder {runs[0]}", remedy)
    if baseline is None:
        raise InputError("Folders of `uftlab eval`", "have --baseline", "none", "Name the run to compare with")
    rows = compared(runs, Path(baseline))
    if as_json:
        intervals = ("questions", "seeds")
        print(json.dumps([{**r, **{i: r[i] and asdict(r[i]) for i in intervals}} for r in rows], indent=1))
        return
    page = comparison_page(rows, [*runs, Path(baseline)])
    if out is None:
        print(printable(page), end="")
        return
    write_atomically(out, page)
    say(f"wrote {out}")


def _compare_recipe(recipe: Path, methods: str | None, seeds: str, baseline: str | None, out: Path) -> None:
    """Train, measure and compare the methods of a recipe."""
    from uftlab.reports.evaluation import compare as compared
    from uftlab.reports.evaluation import comparison_page, write_run_page
    from uftlab.study import matrix

    names = [n.strip() for n in methods.split(",") if n.strip()] if methods else matrix.methods_of(recipe)
    if baseline is not None and baseline not in names:
        raise InputError("--baseline", f"be among --methods, {', '.join(names)}", baseline, "Add it there")
    settings = matrix.evaluation_of(recipe)
    runs = matrix.planned(recipe, names, seeds_of(seeds), out, say)
    diverged = matrix.run(runs, settings, say)
    found = [own for own in runs if own not in diverged]
    folders = [own.measured for own in found]
    for folder in folders:
        write_run_page(folder)
    first = next((own.measured for own in found if own.config.method == (baseline or names[0])), None)
    if first is None or len(folders) < 2:
        fail(f"{len(folders)} of {len(runs)} runs have a result: there is nothing to compare.", 1)
    lost = "".join(f"\n{own.measured.name} is left out: its loss was not finite any more.\n" for own in diverged)
    write_atomically(out / "compared.md", comparison_page(compared(folders, first), folders) + lost)
    say(f"wrote {out / 'compared.md'}")
    if diverged:
        fail(f"{len(diverged)} of {len(runs)} runs diverged: {', '.join(own.measured.name for own in diverged)}.", 1)


@command(example="uftlab doctor my-model results/mine --beta 0.1")
def doctor(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Files or folders: trials, training.json, trainer_state.json, logs as JSONL or CSV."),
    ],
    beta: Annotated[float | None, typer.Option(help="Of the training, where the log does not tell.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="Name of the loss in `uftlab methods`, where the log does not tell.")
    ] = None,
    as_json: As_json = False,
) -> None:
    """Is my run healthy? Named diagnoses from the curves of a run, whoever logged them, each with evidence and remedy.

    The exit code is 1 if a finding is serious, 2 if a log cannot be read, else 0.
    """
    from uftlab.evals.doctor import PAIRS, SIGMOID, diagnose
    from uftlab.evals.run_logs import read_runs
    from uftlab.reports.doctor import lines

    if beta is not None and not beta > 0:
        raise InputError("--beta", "be above 0", beta, "Give the beta of the training")
    if loss is not None and loss not in SIGMOID | PAIRS:
        from uftlab.objectives.registry import objective_named  # here, because reading logs must not wait for torch

        objective_named(loss)
    known = {name: value for name, value in (("beta", beta), ("objective", loss)) if value is not None}
    reports = [diagnose(run) for path in runs for run in read_runs(path, known)]
    if as_json:
        print(json.dumps([report.asdict() for report in reports], indent=1, allow_nan=False))
    for line in [] if as_json else [line for report in reports for line in lines(report)]:
        console.print(line, soft_wrap=True)
    if any(report.serious for report in reports):
        raise typer.Exit(1)
