"""What all subcommands share: how they are registered, what they print, and how they end."""

from __future__ import annotations

import signal
import threading
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
from uftlab.files import check_writable, not_written

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
    int,
    typer.Option(
        min=0, help="Processes of one thread; 0: one per core, at most 8 (16 on a GPU); on Ray all of its cores."
    ),
]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="Where: this machine, or a Ray cluster (extra `ray`).")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def say(line: str, style: str = "") -> None:
    """Print a line as it is: brackets in a path or a name are no markup."""
    console.print(Text(printable(line), style), soft_wrap=True)


def warn(line: str) -> None:
    """A line beside what the command prints, which may be JSON."""
    errors.print(Text(printable(line)), soft_wrap=True)


def check_file(path: Path, option: str = "--out") -> None:
    """Refuses a file that cannot be written, before the work that it is for."""
    if path.is_dir():
        raise InputError(option, "be a file", f"the folder {path}", "Name a file in it")
    check_writable(path.parent, option)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print an error in one line and end with an exit code."""
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
                fail(str(error))
            except BrokenPipeError:  # `uftlab methods | head`
                raise
            except OSError as error:
                fail(str(not_written(Path(str(error.filename or "what it writes")), error)))
            except KeyboardInterrupt:
                fail(f"interrupted. {interrupted}", 130)

        run.__doc__ = f"{function.__doc__}\n\nExample:  `{example}`"
        return app.command()(run)

    return register


def seeds_of(text: str) -> list[int]:
    """The numbers in "0,1,2"; none in an empty text."""
    if not text:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        rule = "be whole numbers from 0, with commas between"
        raise InputError("--seeds", rule, repr(text), "Write for instance 0,1,2")
    return [int(part) for part in parts]
