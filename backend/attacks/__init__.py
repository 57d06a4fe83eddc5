"""Attacks on detectors: one file an attack, all of them jobs that return `Attacked`."""
