"""Load a detector from a factory and weights, or from an ONNX file, and check that its outputs fit its head.

Knows nothing of runners, of data or of how the outputs become boxes beyond their shapes. Entry: `redline.model.load`.
"""
