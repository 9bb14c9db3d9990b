"""GPU kernels for what happens before and after the network."""
