"""INT8: ranges of tensors, where to round, how much it hurts. Knows nothing of detectors, data sets or compilers."""
