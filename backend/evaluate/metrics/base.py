"""What describes a metric, the table of all metrics, and the form of a reported average.

A new metric is one new file beside this one, with `@register_metric(...)` above the function.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from backend.registration import Registry

Better = Literal["higher", "lower", "neither"]
CONFIDENCE = 0.95
Function = TypeVar("Function", bound=Callable[..., Any])


def _nothing_missing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric with what a reader must know about it."""

    name: str  # in tables and files
    title: str  # for people
    unit: str = ""  # or what the number is a share of
    better: Better  # for what is measured: the attack, the detector or the explanation
    sentence: str  # what it tells, one plain sentence
    source: str  # where it was published
    function: Callable[..., Any]
    missing: Callable[[], str | None] = _nothing_missing  # says in one sentence why it cannot be measured here


METRICS: Registry[Metric] = Registry("metric", "backend.evaluate.metrics")


def register_metric(name: str, title: str, **facts: Any) -> Callable[[Function], Function]:
    """Return a decorator that registers a function as a metric; for `facts` see `Metric`."""
    return METRICS.register(name, lambda function: Metric(name=name, title=title, function=function, **facts))


@dataclass(frozen=True)
class Estimate:
    """An average over some pictures."""

    value: float | None  # None if there was nothing to average
    count: int  # of pictures
    low: float | None = None  # lower end of the 95 % confidence interval, if there is one
    high: float | None = None
    std: float | None = None  # standard deviation over the pictures (n - 1), where it is reported


def proportion(hits: int, count: int) -> Estimate:
    """Return the share hits / count with its Wilson score interval (Wilson 1927)."""
    if count == 0:
        return Estimate(None, 0)
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(count)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Estimate(hits / count, int(count), float(interval.low), float(interval.high))


def mean(values: Iterable[float | None]) -> Estimate:
    """Return the mean and standard deviation; None and NaN are left out."""
    kept = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)
    if not len(kept):
        return Estimate(None, 0)
    return Estimate(float(kept.mean()), len(kept), std=float(kept.std(ddof=1)) if len(kept) > 1 else None)


def mean_with_interval(values: Iterable[float | None], bounds: tuple[float, float] = (-1.0, 1.0)) -> Estimate:
    """Return the mean and Student's confidence interval, cut at the bounds of the values; None and NaN are left out.

    Equal values have no interval: Student's would be a point, as if the mean were certain.
    """
    kept = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)
    if len(kept) < 2 or np.ptp(kept) == 0:
        return Estimate(float(kept[0]) if len(kept) else None, len(kept))
    from scipy.stats import t

    middle = float(kept.mean())
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(kept) - 1) * kept.std(ddof=1) / len(kept) ** 0.5)
    return Estimate(middle, len(kept), max(bounds[0], middle - half), min(bounds[1], middle + half))
