"""What is said of every metric, the table of metrics, and the form in which an average is reported.

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
    """A metric with what a reader must know of it.

    Args:
        name: Short name, as in tables and files.
        title: Name for people.
        unit: Unit, or what the number is a share of; empty where it has none.
        better: Which direction is better for the one who is measured: the attack, the detector, the explanation.
        sentence: What it says, one plain sentence.
        source: Where it was published.
        function: Computes it.
        missing: Says in one sentence why it cannot be measured here, or returns None.
    """

    name: str
    title: str
    unit: str = ""
    better: Better
    sentence: str
    source: str
    function: Callable[..., Any]
    missing: Callable[[], str | None] = _nothing_missing


METRICS: Registry[Metric] = Registry("metric", "backend.evaluate.metrics")


def register_metric(name: str, title: str, **facts: Any) -> Callable[[Function], Function]:
    """Return a decorator that registers a function as a metric; for `facts` see `Metric`."""
    return METRICS.register(name, lambda function: Metric(name=name, title=title, function=function, **facts))


@dataclass(frozen=True)
class Estimate:
    """An average over some pictures.

    Args:
        value: The average; None where there was nothing to average.
        count: Over how many pictures.
        low: Lower end of the 95 % confidence interval, where there is one.
        high: Upper end.
        std: Standard deviation over the pictures (n - 1), where that is what is reported.
    """

    value: float | None
    count: int
    low: float | None = None
    high: float | None = None
    std: float | None = None


def proportion(hits: int, count: int) -> Estimate:
    """Return the share hits / count with its Wilson score interval (Wilson 1927)."""
    if count == 0:
        return Estimate(None, 0)
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(count)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Estimate(hits / count, int(count), float(interval.low), float(interval.high))


def mean(values: Iterable[float | None]) -> Estimate:
    """Return mean and standard deviation of what was measured; None and NaN are left out."""
    kept = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)
    if not len(kept):
        return Estimate(None, 0)
    return Estimate(float(kept.mean()), len(kept), std=float(kept.std(ddof=1)) if len(kept) > 1 else None)


def mean_with_interval(values: Iterable[float | None], bounds: tuple[float, float] = (-1.0, 1.0)) -> Estimate:
    """Return mean and Student's confidence interval of what was measured; None and NaN are left out.

    There is no interval where all values are equal: Student's would be a point, as if nothing were left unknown.

    Args:
        values: Within the bounds.
        bounds: The least and the largest value that there can be, at which the interval is cut.
    """
    kept = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)
    if len(kept) < 2 or np.ptp(kept) == 0:
        return Estimate(float(kept[0]) if len(kept) else None, len(kept))
    from scipy.stats import t

    middle = float(kept.mean())
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(kept) - 1) * kept.std(ddof=1) / len(kept) ** 0.5)
    return Estimate(middle, len(kept), max(bounds[0], middle - half), min(bounds[1], middle + half))
