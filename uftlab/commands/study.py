"""Studies on the tiny world: run, tune, compare, report, enter the leaderboard; the catalogue of methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from uftlab.commands.frame import (
    RESUMES,
    As_json,
    Engine,
    Force,
    Workers,
    check_file,
    command,
    console,
    say,
    seeds_of,
    warn,
)
from uftlab.errors import InputError
from uftlab.files import check_writable, write_atomically


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
    numbers = seeds_of(seeds) or list(range(chosen.seeds))
    folder = out or Path("results") / profile
    check_worlds(numbers)
    check_folder(folder)
    trials = list(dict.fromkeys(study.trial(name, seed, chosen) for seed in numbers for name in names))
    _run_with_progress(trials, folder, workers, _estimate(trials, profile), engine)
    stored = [study.read_trial(t.path(folder)) for t in trials]
    untuned = dict.fromkeys(t["method"] for t in stored if not t.get("tuned", True))
    if untuned:
        listed = ", ".join(untuned)
        say(f"not tuned, with the registry's defaults: {listed}. `uftlab sweep --methods NAME` tunes one.")
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
    say(line)
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
        yield lambda _number, _text, line: say(line) if line else None
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
        say(f"no report without {error.name}: `uftlab report {folder}` writes it where that is installed")
        return
    say(f"report: {write_report(path, trials).resolve()}")


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
    _write_report(path, load_study(folder, say), folder)


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
            check_file(path, option)
    trials = stored.load_study(stored.results_folder(study), warn)
    if page is not None:
        from uftlab.reports.pages import write_page

        say(f"wrote {write_page(page, trials)}")
    if figure is not None:
        from uftlab.reports.pages import write_finding

        say(f"wrote {write_finding(figure, trials)}")
    if page is not None or figure is not None:
        return
    rows = tables.matching(comparisons.compare(stored.tidy(trials)), only)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for heading, sentences in tables.comparisons(rows):
        say(heading, "bold")
        for line in sentences:
            say(f"- {line}")


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

        say(f"wrote {len(write_cards(cards))} files to {cards}")
        return
    rows = [m.needs() for m in all_methods().values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    wide = console.width >= 110
    console.print(methods_table(rows, wide))
    if not wide:
        say("a wider window, --json or docs/methods say what each learns from and needs")
        return
    from uftlab.objectives.objective import VERIFIED

    say(f"verified: {'; '.join(f'{letter}: {meaning}' for letter, meaning in VERIFIED.items())}")


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
        say(line)


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
    from uftlab.study import leaderboard
    from uftlab.training.catalogue import method_named

    path = out or Path(f"{method_named(method).name}.json")
    check_file(path)
    own = leaderboard.read_settings(settings) if settings else None
    entry = leaderboard.enter(method, by, Path("results/leaderboard"), code, own, _train(workers))
    leaderboard.write_entry(path, entry)
    say(f"wrote {path}: {_told(entry.margin())}")


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
    say(f"{read.method} by {read.by}: the four worlds again, then a fresh one, whose base is built in some minutes")
    found = leaderboard.verify(read, train=_train(workers))
    leaderboard.write_entry(entry, found)
    assert found.verified is not None
    fresh = found.verified.fresh
    say(f"verified, largest difference {found.verified.largest_difference:g}: {_told(found.margin())}")
    say(f"fresh world {fresh.world}: {fresh.margin():+.3f}")


def _train(workers: int) -> Callable:
    """Runs trials in a folder and says so."""

    def train(trials: list, folder: Path) -> list:
        _run_with_progress(trials, folder, workers, None)
        return []

    return train


def _told(margin: Any) -> str:
    return f"sum minus that of uft {margin.told('+.3f')} in {margin.seeds} worlds"


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
    say(f"wrote {out / 'map.csv'}: {len(trials)} trials")


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
    say(markdown(list(numbers.columns), cells))


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
    say(f"saved {building.save_base(model, world)}")
