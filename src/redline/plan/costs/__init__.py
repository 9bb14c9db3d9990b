"""What an ONNX graph costs, symbolic in the size of its input."""

from redline.plan.costs.read import read_costs

__all__ = ["read_costs"]
