"""Detectors of face forgery behind one contract: pictures in [0, 1] to log-odds of fake."""
