"""Explanations: where a detector looked, as seven methods see it, four of them with two references."""

from backend.explain.explanation import (
    ExplainSettings,
    Explanation,
    MapComparison,
    MapFinished,
    compare_methods,
    explain,
)

__all__ = ["ExplainSettings", "Explanation", "MapComparison", "MapFinished", "compare_methods", "explain"]
