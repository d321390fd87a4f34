"""One sentence for every refusal: `{what} must {rule}; got {value}. {what to do}.`"""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, why and what to do instead."""

    def __init__(self, what: str, rule: str, got: object, remedy: str) -> None:
        super().__init__(f"{what} must {rule}; got {got}. {remedy}.")
        self._parts = (what, rule, str(got), remedy)

    def __reduce__(self) -> tuple:  # so that a refusal survives the way back from a worker process
        return InputError, self._parts
