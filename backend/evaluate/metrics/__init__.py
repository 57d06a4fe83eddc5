"""Metrics, one file for each family; `base.METRICS` lists them all."""
