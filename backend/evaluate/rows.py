"""The rows that items yield, and how they are kept: plain values, and arrays where a plot needs them."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]  # column to str, int, float, bool, None, or a numpy array
_ARRAY = "__array__"


def encode(rows: Sequence[Row]) -> str:
    """Write rows as JSON; NaN and infinity are refused, because tables cannot show them."""
    return json.dumps(list(rows), default=_plain, allow_nan=False)


def decode(text: str) -> list[Row]:
    """Read what `encode` wrote."""
    return json.loads(text, object_hook=_array)


def is_timing(column: str) -> bool:
    """Say whether a column holds seconds, which no two runs share."""
    return column == "seconds" or column.endswith("_seconds")


def without_timings(row: Row) -> Row:
    """Return a row without its seconds: what must be equal in two runs."""
    return {column: value for column, value in row.items() if not is_timing(column)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            _ARRAY: base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
            "dtype": str(value.dtype),
            "shape": value.shape,
        }
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a row cannot hold a {type(value).__name__}")


def _array(value: dict[str, Any]) -> Any:
    if _ARRAY not in value:
        return value
    flat = np.frombuffer(base64.b64decode(value[_ARRAY]), dtype=value["dtype"])
    return flat.reshape(value["shape"])
