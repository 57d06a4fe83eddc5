"""Measure detectors, attacks and explanations on many pictures, resumably, and report it."""
