"""The `uftlab` command. Every subcommand imports what it needs only when it runs, so `--help` is quick."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from uftlab.errors import InputError, printable
from uftlab.files import check_writable, not_written, write_atomically

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Learn, see and settle what happens when SFT and preference alignment meet in one language model.",
)
console, errors = Console(), Console(stderr=True)
RESUMES = "What is finished is on disk: the same command goes on from there."
STARTS_AGAIN = "It was not finished: the same command starts from the beginning."
As_json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes of one thread; 0: one per core, at most 8; on Ray all of its cores.")
]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="Where: this machine, or a Ray cluster (extra `ray`).")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def _say(line: str, style: str = "") -> None:
    """Print a line as it is: brackets in a path or a name are no markup."""
    console.print(Text(printable(line), style), soft_wrap=True)


def _warn(line: str) -> None:
    """A line beside what the command prints, which may be JSON."""
    errors.print(Text(printable(line)), soft_wrap=True)


def _check_file(path: Path, option: str = "--out") -> None:
    """Refuses a file that cannot be written, before the work that it is for."""
    if path.is_dir():
        raise InputError(option, "be a file", f"the folder {path}", "Name a file in it")
    check_writable(path.parent, option)


def _fail(message: str, code: int = 2) -> NoReturn:
    errors.print(Text.assemble(("error:", "bold red"), f" {printable(message)}"), soft_wrap=True)
    raise typer.Exit(code)


def _version(asked: bool) -> bool:
    if asked:
        from uftlab.version import VERSION

        print(f"uftlab {VERSION}")
        raise typer.Exit()
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before the name of a subcommand."""


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """`kill` is like Ctrl-C: what was started is ended, and what was begun on disk is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(*, example: str, interrupted: str = STARTS_AGAIN) -> Callable[[Callable], Callable]:
    """Register a subcommand with an example in its help; refusals become one line and exit code 2.

    Args:
        interrupted: what is true after Ctrl-C.
    """

    def register(function: Callable) -> Callable:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            warnings.filterwarnings("ignore")
            try:
                with _ended_like_interrupted():
                    function(*args, **kwargs)
            except InputError as error:
                _fail(str(error))
            except BrokenPipeError:  # `uftlab methods | head`
                raise
            except OSError as error:
                _fail(str(not_written(Path(str(error.filename or "what it writes")), error)))
            except KeyboardInterrupt:
                _fail(f"interrupted. {interrupted}", 130)

        run.__doc__ = f"{function.__doc__}\n\nExample:  `{example}`"
        return app.command()(run)

    return register


# --------------------------------------------------------------------------------------------- study


@command(
    example="uftlab run --profile class --methods uft,sft-then-dpo --seeds 0,1,2 --out results/mine",
    interrupted=RESUMES,
)
def run(
    profile: Annotated[str, typer.Option(help="smoke (a minute), class (a laptop) or research (a GPU).")] = "class",
    methods: Annotated[
        str,
        typer.Option(help="Names with commas, or all: those of the study (groups paper and control)."),
    ] = "all",
    seeds: Annotated[str, typer.Option(help="Seeds with commas; empty: the profile's number.")] = "",
    out: Annotated[Path | None, typer.Option(help="Results folder; a cut study resumes there.")] = None,
    workers: Workers = 0,
    engine: Engine = "local",
) -> None:
    """Run the forgetting study on the tiny world: report.html, results.csv and summary.json in the folder.

    Every loss that `uftlab methods` lists can be named too; one that nobody has tuned runs with its defaults.
    """
    from uftlab.models.policies import check_worlds
    from uftlab.reports import tables
    from uftlab.study import comparisons, results
    from uftlab.study import trials as study
    from uftlab.study.workers import check_folder
    from uftlab.training.catalogue import METHODS, method_named

    chosen = study.profile_named(profile)
    names = list(METHODS) if methods == "all" else [method_named(n.strip()).name for n in methods.split(",")]
    numbers = _seeds(seeds) or list(range(chosen.seeds))
    folder = out or Path("results") / profile
    check_worlds(numbers)
    check_folder(folder)
    trials = list(dict.fromkeys(study.trial(name, seed, chosen) for seed in numbers for name in names))
    _run_with_progress(trials, folder, workers, _estimate(trials, profile), engine)
    stored = [study.read_trial(t.path(folder)) for t in trials]
    untuned = dict.fromkeys(t["method"] for t in stored if not t.get("tuned", True))
    if untuned:
        listed = ", ".join(untuned)
        _say(f"not tuned, with the registry's defaults: {listed}. `uftlab sweep --methods NAME` tunes one.")
    frame = results.tidy(stored)
    write_atomically(folder / "results.csv", frame.to_csv(index=False))
    write_atomically(
        folder / "summary.json",
        json.dumps(
            {
                "profile": profile,
                "summary": results.summary(frame).to_dict("records"),
                "comparisons": comparisons.compare(frame),
            },
            indent=1,
        ),
    )
    table = tables.summary_table(frame, console.width if console.is_terminal else 100)
    (console if console.is_terminal else Console(width=tables.width_of(table))).print(table)
    _write_report(folder / "report.html", stored, folder)


def _seeds(text: str) -> list[int]:
    if not text:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        rule = "be whole numbers from 0, with commas between"
        raise InputError("--seeds", rule, repr(text), "Write for instance 0,1,2")
    return [int(part) for part in parts]


def _estimate(trials: list, profile: str) -> float | None:
    """Seconds of one thread for these trials, from the stored trials of the same profile; None if there are none."""
    from uftlab.study.results import RESULTS, load

    if not (RESULTS / profile / "trials").is_dir():
        return None
    seconds = {t["method"]: t["wall_seconds"] for t in load(RESULTS / profile)}
    return sum(seconds.get(t.method, 30.0) for t in trials)


def _run_with_progress(trials: list, folder: Path, workers: int, estimate: float | None, engine: str = "local") -> None:
    """Run the trials: with a bar in a terminal, with a plain line per finished trial in a file or a log."""
    from uftlab.study.trials import is_done
    from uftlab.study.workers import most_workers, run_trials, spread

    if engine == "ray":
        from uftlab.study.ray_workers import spread
    stored = sum(is_done(t, folder) for t in trials)
    missing = len(trials) - stored
    count = workers or most_workers()
    line = f"{len(trials)} trials, {stored} already done, {f'{count} worker(s)' if engine == 'local' else 'on Ray'}"
    if estimate and missing and engine == "local":
        minutes = estimate * missing / len(trials) / count / 60
        line += f"; about {minutes:.1f} minutes if this machine is as fast as the one of the stored results"
    _say(line)
    with _progress("training", len(trials)) as done:
        # those that were stored come first, and at once: no line for them
        for number, result in enumerate(run_trials(trials, folder, workers or None, engine=spread), start=1):
            name = f"{result['method']}, seed {result['seed']}"
            line = f"{name}: {result['wall_seconds']:.1f} s ({number}/{len(trials)})"
            done(number, name, line if number > stored else "")


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int, str, str], None]]:
    """A bar where stdout is a terminal, else plain lines.

    Gives a function of how many are done, what to write beside the bar, and the line for a log ("" for none).
    """
    if not console.is_terminal:
        yield lambda _number, _text, line: _say(line) if line else None
        return
    from rich import progress

    columns = [progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn()]
    described = progress.TextColumn("{task.description}", markup=False)
    with progress.Progress(described, *columns, progress.TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda number, text, _line: bar.update(task, completed=number, description=text)


def _write_report(path: Path, trials: list[dict], folder: Path) -> None:
    try:
        from uftlab.reports.html import write_report
    except ModuleNotFoundError as error:  # a machine that only trains needs no figures
        _say(f"no report without {error.name}: `uftlab report {folder}` writes it where that is installed")
        return
    _say(f"report: {write_report(path, trials).resolve()}")


@command(example="uftlab report class")
def report(
    study: Annotated[str, typer.Argument(help="A stored study or a results folder.")] = "class",
    out: Annotated[
        Path | None,
        typer.Option(help="The file; empty: report.html in a folder, build/report/STUDY.html for a stored study."),
    ] = None,
) -> None:
    """Write the HTML report of stored results again, without training anything."""
    from uftlab.study.results import RESULTS, load_study, results_folder

    folder = results_folder(study)
    shipped = folder.resolve().is_relative_to(RESULTS.resolve())
    path = out or (Path("build") / "report" / f"{folder.resolve().name}.html" if shipped else folder / "report.html")
    if path.is_dir() or ((path.parent / "trials").is_dir() and path.parent.resolve() != folder.resolve()):
        remedy = "Name another file, such as build/report.html"
        raise InputError("--out", "be a file, and not lie in the results folder of another run", path, remedy)
    check_writable(path.parent)
    _write_report(path, load_study(folder, _say), folder)


@command(example="uftlab results --study class --only truth --json")
def results(
    study: Annotated[str, typer.Option(help="A stored study (data/results) or a results folder.")] = "class",
    only: Annotated[str, typer.Option(help="Part of the name of a method or a metric: what has it is shown.")] = "",
    as_json: As_json = False,
    page: Annotated[Path | None, typer.Option(help="Write the page of the study here instead.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw them here instead, as a PNG (needs Chromium).")] = None,
) -> None:
    """The comparisons that were named before anything was run, from stored results."""
    from uftlab.reports import tables
    from uftlab.study import comparisons
    from uftlab.study import results as stored

    for path, option in ((page, "--page"), (figure, "--figure")):
        if path is not None:
            _check_file(path, option)
    trials = stored.load_study(stored.results_folder(study), _warn)
    if page is not None:
        from uftlab.reports.pages import write_page

        _say(f"wrote {write_page(page, trials)}")
    if figure is not None:
        from uftlab.reports.pages import write_finding

        _say(f"wrote {write_finding(figure, trials)}")
    if page is not None or figure is not None:
        return
    rows = tables.matching(comparisons.compare(stored.tidy(trials)), only)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for heading, sentences in tables.comparisons(rows):
        _say(heading, "bold")
        for line in sentences:
            _say(f"- {line}")


@command(example="uftlab methods --json")
def methods(
    as_json: As_json = False,
    cards: Annotated[Path | None, typer.Option(help="Write a card of each method into this folder instead.")] = None,
) -> None:
    """The methods: what they are, what rows they eat, what they need, where they come from."""
    from uftlab.reports.tables import methods_table
    from uftlab.training.catalogue import all_methods

    if cards is not None:
        check_writable(cards, "--cards")
        from uftlab.reports.cards import write_cards

        _say(f"wrote {len(write_cards(cards))} files to {cards}")
        return
    rows = [m.needs() for m in all_methods().values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    wide = console.width >= 110
    console.print(methods_table(rows, wide))
    if not wide:
        _say("a wider window, --json or docs/methods say what each learns from and needs")
        return
    _say("verified: P paper or authors' code, T the TRL library, 2 secondary source, M memory, - no paper's")


@command(example="uftlab sweep --methods uft,sft-then-dpo --out results/sweep", interrupted=RESUMES)
def sweep(
    methods: Annotated[str, typer.Option(help="Names with commas, or all: those of the study.")] = "all",
    out: Annotated[Path, typer.Option(help="Results folder of the sweep.")] = Path("results/sweep"),
    workers: Workers = 0,
    engine: Engine = "local",
    force: Force = False,
) -> None:
    """Tune every method with the same eighteen trials in each of four draws and the written rule.

    Writes the trials into --out and the chosen settings into data/tuned.json, which every study reads and which ships
    with the settings of the stored results. Methods that are in there are refused without --force.
    """
    from uftlab.study import tuning
    from uftlab.training import catalogue
    from uftlab.training import settings as training

    find = catalogue.method_named
    names = list(catalogue.METHODS) if methods == "all" else [find(n.strip()).name for n in methods.split(",")]
    if not any(find(name).tuned for name in names):
        raise InputError("--methods", "name one with settings to tune", methods, "Choose another, see `uftlab methods`")
    check_writable(training.TUNED.parent, "copy of uftlab: the chosen settings go there")
    there = [name for name in names if name in training.chosen_settings()]
    if there and not force:
        remedy = "Name other --methods, or add --force to replace them"
        raise InputError(f"Methods to tune in {training.TUNED}", "not be there yet", ", ".join(there), remedy)
    _run_with_progress([*tuning.base_trials(), *tuning.first_round(names)], out, workers, None, engine)
    _run_with_progress(tuning.second_round(names, out), out, workers, None, engine)
    for line in tuning.choose(names, out):
        _say(line)


@command(example='uftlab enter l2-start --by "The uftlab authors"', interrupted=RESUMES)
def enter(
    method: Annotated[str, typer.Argument(help="See `uftlab methods`.")],
    by: Annotated[str, typer.Option(help="Who enters it: plain words.")],
    code: Annotated[str, typer.Option(help="File and commit of a method of your own.")] = "",
    settings: Annotated[Path | None, typer.Option(help="JSON: a list with the settings of each stage.")] = None,
    out: Annotated[Path | None, typer.Option(help="The entry; empty: METHOD.json.", show_default=False)] = None,
    workers: Workers = 0,
) -> None:
    """Enter the leaderboard: train a method and `uft` in four worlds that no study used, and write the entry.

    Without --settings the method has those that its tuning chose.
    """
    from uftlab.files import read_json
    from uftlab.study import leaderboard
    from uftlab.training.catalogue import method_named

    path = out or Path(f"{method_named(method).name}.json")
    _check_file(path)
    own = None
    if settings is not None:
        try:
            own = read_json(settings.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{settings}", "be a JSON list", error, 'Write [{"learning_rate": 0.001}]') from None
        if not isinstance(own, list) or not all(isinstance(stage, dict) for stage in own):
            rule = "be a list with one object for each stage"
            raise InputError(f"{settings}", rule, type(own).__name__, 'Write [{"learning_rate": 0.001}]')
    entry = leaderboard.enter(method, by, Path("results/leaderboard"), code, own, _train(workers))
    leaderboard.write_entry(path, entry)
    _say(f"wrote {path}: {_told(entry.margin())}")


@command(example="uftlab verify l2-start.json")
def verify(
    entry: Annotated[Path, typer.Argument(help="A file of `uftlab enter`.")],
    workers: Workers = 0,
) -> None:
    """Verify an entry of the leaderboard: train it again, compare, measure it in a fresh world, and note that in it.

    An entry that differs is refused. Only methods that are registered here are ever run.
    """
    from uftlab.study import leaderboard

    check_writable(entry.parent, "place of the entry")
    read = leaderboard.read_entry(entry)
    _say(f"{read.method} by {read.by}: the four worlds again, then a fresh one, whose base is built in some minutes")
    found = leaderboard.verify(read, train=_train(workers))
    leaderboard.write_entry(entry, found)
    assert found.verified is not None
    fresh = found.verified.fresh
    there = leaderboard.sums(fresh.measured["entry"], fresh.measured["uft"], fresh.measured["base"])
    _say(f"verified, largest difference {found.verified.largest_difference:g}: {_told(found.margin())}")
    _say(f"fresh world {fresh.world}: {there:+.3f}")


def _train(workers: int) -> Callable:
    """Runs trials in a folder and says so."""

    def train(trials: list, folder: Path) -> list:
        _run_with_progress(trials, folder, workers, None)
        return []

    return train


def _told(margin: Any) -> str:
    return f"sum minus that of uft {margin.mean:+.3f} ({margin.low:+.3f} to {margin.high:+.3f}) in four worlds"


@command(example="uftlab map E1 E3 --worlds 2 --out results/map", interrupted=RESUMES)
def map(
    experiments: Annotated[list[str], typer.Argument(help="E1 to E5, or all.")],
    worlds: Annotated[int, typer.Option(help="In how many of the four tuning worlds.")] = 4,
    out: Annotated[Path, typer.Option(help="Results folder; a cut map resumes there.")] = Path("results/map"),
    workers: Workers = 0,
    engine: Engine = "local",
) -> None:
    """Run experiments of the map: order, instructed feedback, strength of KL, share of demonstrations, raters.

    Writes the trials and map.csv, one row per trial, into --out. Nothing is tuned: all settings are laid out by hand.
    """
    from uftlab.models.policies import check_worlds
    from uftlab.study import maps
    from uftlab.study.trials import read_trial
    from uftlab.study.workers import check_folder

    trials = maps.trials(list(maps.EXPERIMENTS) if experiments == ["all"] else experiments, worlds)
    check_worlds(sorted({t.seed for t in trials}))
    check_folder(out)
    _run_with_progress(trials, out, workers, None, engine)
    write_atomically(out / "map.csv", maps.table([read_trial(t.path(out)) for t in trials]).to_csv(index=False))
    _say(f"wrote {out / 'map.csv'}: {len(trials)} trials")


@command(example="uftlab forgetting results/map results/sweep --json")
def forgetting(
    folders: Annotated[list[str], typer.Argument(help="Stored studies or results folders.")], as_json: As_json = False
) -> None:
    """What predicts forgetting: rank correlations and cross-validated R^2 of each candidate over stored trials."""
    from uftlab.reports.tables import markdown
    from uftlab.study.forgetting import predictions, table
    from uftlab.study.results import load, results_folder

    found = predictions(table([trial for folder in folders for trial in load(results_folder(folder))]))
    if as_json:
        print(found.to_json(orient="records", indent=1))
        return
    numbers = found.round({"rho": 2, "r2": 2})
    cells = [["-" if value != value else str(value) for value in row] for row in numbers.to_numpy().tolist()]
    _say(markdown(list(numbers.columns), cells))


@command(example="uftlab pretrain --world 7")
def pretrain(
    world: Annotated[int, typer.Option(min=0, max=10**9, help="The seed of the world; 0 is data/tiny itself.")] = 0,
    force: Force = False,
) -> None:
    """Build the base model of a world from its text: under three minutes on one core.

    Writes data/tiny/worlds/N.safetensors, and for world 0 the checkpoint folder data/tiny. A model that is there
    (those that ship are the ones of the stored results and the leaderboard) is refused without --force.
    """
    from uftlab.models import pretrain as building
    from uftlab.models.policies import world_weights

    path = world_weights(world)
    if path.is_file() and not force:
        remedy = "Name another --world, or add --force to replace it"
        raise InputError(f"The base model of world {world}", "not be there yet", path, remedy)
    check_writable(path.parent, "copy of uftlab: the model goes there")
    with _progress(f"world {world}", building.STEPS) as done:

        def tick(step: int, loss: float) -> None:
            text = f"loss {loss:.2f} nats/token"
            done(step, text, f"step {step} of {building.STEPS}: {text}" if step % 200 == 0 else "")

        model = building.pretrain(world, progress=tick)
    _say(f"saved {building.save_base(model, world)}")


# ----------------------------------------------------------------------------------------- one model


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
    from uftlab.engine.trainer import DivergedError
    from uftlab.training.checkpoint import train_checkpoint
    from uftlab.training.configuration import TrainConfig, read_config

    if resume:
        extra = [name for name, value in given.items() if value is not None and name != "out"]
        if extra or config or change or out is None:
            got = ", ".join(extra) or ("no --out" if out is None else "--config or --set")
            raise InputError("--resume", "come with --out alone: the folder knows the rest", got, "Leave them out")
        wanted = TrainConfig(out=out)
    else:
        wanted = read_config(config, change or (), **given)
    try:
        train_checkpoint(wanted, _say, resume, dry_run)
    except DivergedError as error:
        _fail(str(error), 1)


@command(example="uftlab merge my-adapter --out my-model")
def merge(
    model: Annotated[str, typer.Argument(help="An adapter's folder; a model's folder or a hub name is copied.")],
    out: Annotated[Path, typer.Option(help="Folder for the whole model.")],
) -> None:
    """Save an adapter and its base as one model, which needs neither peft nor the base."""
    from uftlab.training.checkpoint import merge as merged

    _say(f"saved {merged(model, out)}")


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
    evaluate(model, folder, settings, say=_say)
    _say(f"wrote {write_run_page(folder)}")


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
        _check_file(out)
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
    _say(f"wrote {out}")


def _compare_recipe(recipe: Path, methods: str | None, seeds: str, baseline: str | None, out: Path) -> None:
    """Train, measure and compare the methods of a recipe."""
    from uftlab.reports.evaluation import compare as compared
    from uftlab.reports.evaluation import comparison_page, write_run_page
    from uftlab.study import matrix

    names = [n.strip() for n in methods.split(",") if n.strip()] if methods else matrix.methods_of(recipe)
    if baseline is not None and baseline not in names:
        raise InputError("--baseline", f"be among --methods, {', '.join(names)}", baseline, "Add it there")
    settings = matrix.evaluation_of(recipe)
    runs = matrix.planned(recipe, names, _seeds(seeds), out, _say)
    diverged = matrix.run(runs, settings, _say)
    found = [own for own in runs if own not in diverged]
    folders = [own.measured for own in found]
    for folder in folders:
        write_run_page(folder)
    first = next((own.measured for own in found if own.config.method == (baseline or names[0])), None)
    if first is None or len(folders) < 2:
        _fail(f"{len(folders)} of {len(runs)} runs have a result: there is nothing to compare.", 1)
    lost = "".join(f"\n{own.measured.name} is left out: its loss was not finite any more.\n" for own in diverged)
    write_atomically(out / "compared.md", comparison_page(compared(folders, first), folders) + lost)
    _say(f"wrote {out / 'compared.md'}")
    if diverged:
        _fail(f"{len(diverged)} of {len(runs)} runs diverged: {', '.join(own.measured.name for own in diverged)}.", 1)


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


# ----------------------------------------------------------------------------------------- notebooks


@command(example="uftlab notebooks --profile smoke")
def notebooks(
    profile: Annotated[str, typer.Option(help="smoke, class or research.")] = "smoke",
    out: Annotated[Path, typer.Option(help="Folder for the executed copies.")] = Path("build/notebooks"),
    only: Annotated[str, typer.Option(help="Run the notebooks whose name starts with this.")] = "",
    badge: Annotated[Path | None, typer.Option(help="Write a badge here, an SVG: how many ran, of how many.")] = None,
) -> None:
    """Execute the notebooks with papermill, solutions included, two at a time."""
    from uftlab.course.notebooks import notebook_paths, run_all

    check_writable(out)
    if badge is not None:
        _check_file(badge, "--badge")
    failed = run_all(profile, out, only, say=_say)
    if badge is not None:
        from uftlab.reports.badge import write_badge

        write_badge(badge, len(notebook_paths(only)) - len(failed), len(notebook_paths()), profile)
    if failed:
        _fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. The executed copies are in {out}.", 1)


@command(example="uftlab export --only 01 --out build/site/course")
def export(
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("build/site/course"),
    only: Annotated[str, typer.Option(help="Export the notebooks whose name starts with this.")] = "",
    profile: Annotated[str, typer.Option(help="smoke, class or research.")] = "class",
    executed: Annotated[Path | None, typer.Option(help="Folder with executed copies; nothing is run then.")] = None,
    previews: Annotated[Path | None, typer.Option(help="Folder for one PNG per notebook (needs Chromium).")] = None,
    readme: Annotated[Path | None, typer.Option(help="File whose tables of the course are written again.")] = None,
) -> None:
    """Write the course as web pages that work offline: figures, equations, folded solutions, glossary."""
    from uftlab.course.export import export

    check_writable(out)
    if previews is not None:
        check_writable(previews, "--previews")
    if readme is not None:
        _check_file(readme, "--readme")
    failed = export(out, profile, only, executed, previews, readme, say=lambda line: print(line, flush=True))
    if failed:
        _fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. Nothing was exported.", 1)


@command(example="uftlab check --json")
def check(as_json: As_json = False) -> None:
    """Is this machine ready for the course? Tests it in half a minute and says what to do.

    Each line is **ok**, **look** (the course works; something may be better) or **stop** (it does not work). The exit
    code is 1 if there is a stop.
    """
    from dataclasses import asdict

    from uftlab.course import laptop

    colours = {"ok": "green", "look": "yellow", "stop": "bold red"}
    started, lines = time.monotonic(), []
    for line in laptop.check():
        lines.append(line)
        if not as_json:
            _say(str(line), colours[line.verdict])
    verdict, seconds = laptop.worst(lines), time.monotonic() - started
    if as_json:
        own = {"verdict": verdict, "seconds": round(seconds, 1), "lines": [asdict(line) for line in lines]}
        print(json.dumps(own, indent=1))
    else:
        ends = {
            "ok": "This machine is ready: `uftlab lab` opens the course.",
            "look": "The course works here. Read the lines that say look.",
            "stop": "Mend what says stop, then run `uftlab check` again.",
        }
        _say(f"{ends[verdict]} ({seconds:.0f} s)")
    if verdict == "stop":
        raise typer.Exit(1)


@command(example="uftlab copies --out build/copies")
def copies(
    out: Annotated[Path, typer.Option(help="Folder for the two sets.")] = Path("build/copies"),
) -> None:
    """Write the notebooks twice for a class: without solutions for learners, with solutions for the teacher."""
    from uftlab.course.workshop import write_copies

    check_writable(out)
    for name, paths in write_copies(out).items():
        _say(f"{len(paths)} notebooks: {out / name}")


@command(example="uftlab slides --only 04 --out build/slides.html")
def slides(
    out: Annotated[Path, typer.Option(help="The file; it holds everything.")] = Path("build/slides.html"),
    only: Annotated[str, typer.Option(help="Take the notebooks whose name starts with this.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="All figures, not only those of the one-hour route.")
    ] = False,
    profile: Annotated[str, typer.Option(help="smoke, class or research.")] = "class",
    executed: Annotated[Path | None, typer.Option(help="Folder with executed copies; nothing is run then.")] = None,
) -> None:
    """Write slides for the projector: predictions and figures of the notebooks, one file that needs no network."""
    from uftlab.course.slides import slides as made

    _check_file(out)
    failed = made(out, executed, profile, only, everything, _say)
    if failed:
        _fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. Nothing was written.", 1)


@command(example="uftlab lab --folder my-copies --no-browser")
def lab(
    folder: Annotated[Path | None, typer.Option(help="Where your copies lie; they are made if there are none.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, or only print the address.")] = True,
) -> None:
    """Open JupyterLab on the first notebook, on this machine only."""
    from uftlab.course.lab import COPIES, open_lab

    sys.exit(open_lab(folder or COPIES, browser, say=lambda line: print(line, flush=True)))


if __name__ == "__main__":
    app()
