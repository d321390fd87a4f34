"""All errors have one form: `{what} must {rule}; got {value}. {what to do}.`"""


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
        return InputError, self.parts
