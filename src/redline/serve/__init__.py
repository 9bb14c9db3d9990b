"""Triton repositories, the embedded server, its gateway and releases. Knows nothing of how a candidate was found."""
