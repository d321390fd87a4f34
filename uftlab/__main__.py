"""`python -m uftlab` is the command `uftlab`."""

from uftlab.cli import app

if __name__ == "__main__":
    app()
