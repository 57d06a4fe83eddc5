"""Which detector to explain first, where nobody has chosen one."""

from collections.abc import Mapping

from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Card, verdict


def suggested(p_fake: Mapping[str, float]) -> str | None:
    """Return the first detector that says fake, else the one that leans to it most, else the most reliable one.

    Args:
        p_fake: Probability of fake in [0, 1] by detector.
    """
    fake = [name for name, score in p_fake.items() if verdict(score) == "fake"]
    leaning = sorted((name for name, score in p_fake.items() if score >= THRESHOLD), key=lambda name: -p_fake[name])
    reliable = sorted(p_fake, key=lambda name: mean_error(registry.card(name)))
    return next(iter(fake + leaning + reliable), None)


def mean_error(card: Card) -> float:
    """Return the mean of the false-alarm rate and the mean miss rate, in [0, 1]; 1 where they were not measured."""
    alarm, misses = card.false_alarm(), card.misses()
    if alarm is None or not misses:
        return 1.0
    return (alarm.rate + sum(miss.rate for miss in misses) / len(misses)) / 2
