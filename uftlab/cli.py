"""The `uftlab` command. Every subcommand imports what it needs only when it runs, so `--help` is quick."""

from uftlab.commands import study  # noqa: F401  in this order `--help` lists the subcommands

# isort: split
from uftlab.commands import model  # noqa: F401

# isort: split
from uftlab.commands import course  # noqa: F401

# isort: split
from uftlab.commands.frame import app

if __name__ == "__main__":
    app()
