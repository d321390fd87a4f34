"""The course: executed, exported, checked, copied and shown, and opened in JupyterLab."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from uftlab.commands.frame import As_json, check_file, command, fail, say
from uftlab.files import check_writable


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
        check_file(badge, "--badge")
    failed = run_all(profile, out, only, say=say)
    if badge is not None:
        from uftlab.reports.badge import write_badge

        write_badge(badge, len(notebook_paths(only)) - len(failed), len(notebook_paths()), profile)
    if failed:
        fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. The executed copies are in {out}.", 1)


@command(example="uftlab export --only 01 --out build/site/course")
def export(
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("build/site/course"),
    only: Annotated[str, typer.Option(help="Export the notebooks whose name starts with this.")] = "",
    profile: Annotated[str, typer.Option(help="smoke, class or research.")] = "class",
    executed: Annotated[Path | None, typer.Option(help="Folder with executed copies; nothing is run then.")] = None,
    previews: Annotated[Path | None, typer.Option(help="Folder for one PNG per notebook (needs Chromium).")] = None,
    readme: Annotated[Path | None, typer.Option(help="File whose tables of the course are written again.")] = None,
    live: Annotated[Path | None, typer.Option(help="File for all explorers that move, to hand on alone.")] = None,
) -> None:
    """Write the course as web pages that work offline: figures, equations, folded solutions, glossary."""
    from uftlab.course.export import export

    check_writable(out)
    if previews is not None:
        check_writable(previews, "--previews")
    if readme is not None:
        check_file(readme, "--readme")
    if live is not None:
        check_file(live, "--live")
    failed = export(out, profile, only, executed, previews, readme, live, say=lambda line: print(line, flush=True))
    if failed:
        fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. Nothing was exported.", 1)


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
            say(str(line), colours[line.verdict])
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
        say(f"{ends[verdict]} ({seconds:.0f} s)")
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
        say(f"{len(paths)} notebooks: {out / name}")


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

    check_file(out)
    failed = made(out, executed, profile, only, everything, say)
    if failed:
        fail(f"{len(failed)} notebook(s) failed: {', '.join(failed)}. Nothing was written.", 1)


@command(example="uftlab lab --folder my-copies --no-browser")
def lab(
    folder: Annotated[Path | None, typer.Option(help="Where your copies lie; they are made if there are none.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, or only print the address.")] = True,
) -> None:
    """Open JupyterLab on the first notebook, on this machine only."""
    from uftlab.course.lab import COPIES, open_lab

    sys.exit(open_lab(folder or COPIES, browser, say=lambda line: print(line, flush=True)))
