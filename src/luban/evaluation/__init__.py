"""Evaluate: metrics with intervals, per class and per slice, and calibration."""
