"""Explanations: where a detector looked, as seven methods see it, four of them with two references."""

from backend.explain.comparing import Comparison, Finished, compare_all
from backend.explain.explaining import explain
from backend.explain.explanation import ExplainSettings, Explanation

__all__ = ["Comparison", "ExplainSettings", "Explanation", "Finished", "compare_all", "explain"]
