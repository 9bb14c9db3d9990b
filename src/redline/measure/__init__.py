"""Clocks, histograms and load: how long any callable takes to answer, and whether that meets an objective.

Knows nothing of detectors. A target is a callable that takes request indices and returns when they are done.
"""
