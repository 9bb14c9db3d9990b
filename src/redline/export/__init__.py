"""Module to ONNX with dynamic N, H and W, checked by ONNX Runtime; and the same with pre- and post-processing inside.

Knows nothing of candidates, data or time.
"""

from redline.export.end2end import export_end_to_end
from redline.export.network import export_onnx

__all__ = ["export_end_to_end", "export_onnx"]
