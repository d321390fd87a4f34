"""All errors have one form: `{what} must {rule}; got {value}. {what to do}.`"""

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that only prints: what would steer a terminal, or cannot be written in UTF-8, is shown as an escape.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class InputError(ValueError):
    """An input of the user cannot be used. The message says which, why, and what to do instead."""

    def __init__(self, what: str, rule: str, got: object, remedy: str) -> None:
        super().__init__(f"{what} must {rule}; got {got}. {remedy}.")
        self.parts = (what, rule, str(got), remedy)

    def at(self, where: str) -> "InputError":
        """The same error with the place where it happened: `Row 3: The chat template must ...`."""
        what, rule, got, remedy = self.parts
        return InputError(f"{where}: {what}", rule, got, remedy)

    def __reduce__(self) -> tuple:  # so that a worker process can send it back
        return type(self), self.parts
