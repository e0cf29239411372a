"""What a model may be called."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

_PATTERN: Final = r"^[^\s\x00-\x1f]{1,256}$"


def _name(value: str) -> str:
    if not re.fullmatch(_PATTERN, value):
        raise ValueError("should be the name of a model: 1 to 256 characters and no space")
    return value


ModelName = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": _PATTERN})]
