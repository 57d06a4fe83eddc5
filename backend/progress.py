"""The one form of every long job: a generator of steps that returns its result."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One step of a long job.

    Args:
        number: How many steps are done, from 0.
        total: How many there are at most.
        message: What happens now, one line in plain words.
        preview: A picture to show, (1, 3, H, W) in [0, 1], where there is one.
        values: Named numbers of this step, for curves.
    """

    number: int
    total: int
    message: str
    preview: torch.Tensor | None = None
    values: dict[str, float] = field(default_factory=dict)


Job = Generator[Step, None, T]


class Running(Generic[T]):
    """A job as a `for` loop goes through it; leaving the `with` block closes it.

    Attributes:
        result: What the job returned; there is none before its last step.
    """

    result: T

    def __init__(self, job: Job[T]) -> None:
        self._job = job

    def __enter__(self) -> "Running[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._job.close()

    def __iter__(self) -> Iterator[Step]:
        self.result = yield from self._job


def mapped(job: Job[T], change: Callable[[Step], Step]) -> Job[T]:
    """Pass on a job's steps, each of them changed, and return its result; closing this closes the job inside."""
    with Running(job) as running:
        for step in running:
            yield change(step)
    return running.result


def counted(job: Job[T], total: int, start: int = 0, prefix: str = "") -> Job[T]:
    """Pass on the steps of a job that is part of a longer one of at most `total` steps, of which `start` are done.

    `prefix` is put before every message, for example to name the part; closing this closes the job inside.
    """
    return mapped(job, lambda step: Step(start + step.number, total, prefix + step.message, step.preview, step.values))


def within(job: Job[T], number: int, total: int, prefix: str = "") -> Job[T]:
    """Pass on a job's messages as those of step `number` of a longer one, with `prefix` before each."""
    return mapped(job, lambda step: Step(number, total, prefix + step.message))


def finish(job: Job[T], on_step: Callable[[Step], None] | None = None) -> T:
    """Run a job to its end, calling `on_step` at every step, and return its result."""
    with Running(job) as running:
        for step in running:
            if on_step is not None:
                on_step(step)
    return running.result
