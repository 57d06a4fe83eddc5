"""Counterfactuals: the smallest change of a face's style that makes a detector call it real."""
