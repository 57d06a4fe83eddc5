"""The schedule of a run that grows: resolution, batch size and learning rate of every step."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What one step does.

    Args:
        resolution: Side of the pictures in pixels.
        batch: Pictures.
        rate: Learning rate.
    """

    resolution: int
    batch: int
    rate: float


class Growth:
    """Stages one after the other, and a rate that falls to a tenth at the end.

    Args:
        stages: Rows of resolution, steps, batch size and rate.
        decay_share: The last share of all steps, in [0, 1], in which the rate falls.
    """

    def __init__(self, stages: Sequence[Sequence[float]], decay_share: float) -> None:
        self.stages = stages
        self.decay_share = decay_share
        self.total = sum(int(row[1]) for row in stages)

    def at(self, number: int) -> Stage:
        """Return what step `number` does."""
        factor = self.decay(number)
        for resolution, steps, batch, rate in self.stages:
            if number < steps:
                return Stage(int(resolution), int(batch), rate * factor)
            number -= int(steps)
        raise IndexError("the run has fewer steps")

    def decay(self, number: int) -> float:
        """Return what the rates of step `number` are multiplied with, from 1 down to 0.1."""
        start = self.total * (1 - self.decay_share)
        return float(0.1 ** max(0.0, (number - start) / max(1.0, self.total - start)))
