"""Counterfactuals: the smallest change of a face's style that takes it below a detector's threshold."""
