"""What a process remembers of the pictures of a run while it goes through them; at the run's end it is forgotten."""

import functools
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")
_forgetting: list[Callable[[], None]] = []


def remembered(most: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Return a decorator that keeps the last `most` results of a function, by its arguments."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        kept = functools.lru_cache(maxsize=most)(function)
        _forgetting.append(kept.cache_clear)
        return kept

    return decorate


def forget() -> None:
    """Forget all results that are kept."""
    for clear in _forgetting:
        clear()
