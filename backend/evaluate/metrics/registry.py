"""The table of metrics: a new one is a new record in one of the files beside this one, or a new file and one line."""

from backend.evaluate.metrics import classification, faithfulness, identity, likeness, naturalness, success, traces
from backend.evaluate.metrics.base import Metric

METRIC_FAMILIES = {
    "success": success.METRICS,
    "naturalness": naturalness.METRICS,
    "likeness": likeness.METRICS,
    "identity": identity.METRICS,
    "classification": classification.METRICS,
    "faithfulness": faithfulness.METRICS,
    "traces": traces.METRICS,
}
METRICS: dict[str, Metric] = {metric.name: metric for family in METRIC_FAMILIES.values() for metric in family}


def missing_metrics() -> dict[str, str]:
    """Return, for every metric that cannot be measured on this machine, the sentence that says why."""
    return {name: reason for name, metric in METRICS.items() if (reason := metric.missing()) is not None}
