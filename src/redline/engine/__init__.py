"""Compile and run a network. Knows nothing of images, boxes or load: tensors in, raw outputs out."""
