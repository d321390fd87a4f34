"""What files that others may have written can hold, for pydantic: imported when the first such file is read."""

from typing import Annotated

from pydantic import Field, ValidationError

Number = Annotated[float, Field(ge=-1e15, le=1e15)]  # NaN is refused too
Count = Annotated[int, Field(ge=0, lt=2**53)]


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The place of the first fault that pydantic found, and what is wrong there."""
    first = error.errors(include_url=False, include_context=False)[0]
    given = "" if first["type"] == "missing" else f" (given: {repr(first['input'])[:60]})"
    return ".".join(map(str, first["loc"]))[:120], f"{first['msg']}{given}"
