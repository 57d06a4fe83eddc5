"""Arguments of the form NAME=VALUE, as several commands take them."""

import json
from collections.abc import Sequence
from typing import Any

from backend.errors import UserError


def changes(given: Sequence[str] | None) -> dict[str, Any]:
    """Read settings that were given as NAME=VALUE; a value that is no JSON is taken as text.

    Raises:
        UserError: One has no value.
    """
    read: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The setting {text} has no value.", "Write for example --set steps=50.")
        try:
            read[name] = json.loads(value)
        except ValueError:
            read[name] = value
    return read
