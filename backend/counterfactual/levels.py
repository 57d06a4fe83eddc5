"""The style levels S, M and D: thirds of the W+ rows (Artifact-Eraser, section 3.3, masks of equation 4)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from backend.errors import UserError

LEVELS = ("S", "M", "D")
WORDS = {"S": "shape", "M": "features", "D": "details"}


def parse(text: str) -> tuple[str, ...]:
    """Read levels as a person writes them, `S,M,D` or `md`, and return them in their order.

    Raises:
        UserError: A letter is none of the levels, or there is none.
    """
    letters = set(text.upper().replace(",", "").replace(" ", ""))
    if not letters or not letters <= set(LEVELS):
        raise UserError(f'"{text}" names no style levels.', "Use S, M and D, for example: S,M,D or M.")
    return tuple(level for level in LEVELS if level in letters)


def rows_of(level: str, rows: int) -> range:
    """Return the rows of one level: 4 + 4 + 4 of 12, 6 + 6 + 6 of 18; what is left over goes to D."""
    third, number = rows // 3, LEVELS.index(level)
    return range(number * third, rows if level == "D" else (number + 1) * third)


def mask(levels: Iterable[str], rows: int) -> Tensor:
    """Return a boolean mask (rows,) of the rows that the levels open."""
    opened = torch.zeros(rows, dtype=torch.bool)
    for level in levels:
        opened[list(rows_of(level, rows))] = True
    return opened
