"""A small HTTP gateway in front of Triton: limits, routing, truthful health, latencies that can be added over replicas."""

from redline.serve.gateway.app import Gateway, new_event_loop
from redline.serve.gateway.limits import (
    Limits,
    ModelLimits,
    ReleaseLimits,
    TensorLimit,
    entry_limits,
    limits_of,
    tensor_limits,
)
from redline.serve.gateway.metrics import Metrics, Snapshot
from redline.serve.gateway.routing import RouteTable
from redline.serve.gateway.upstream import Address

__all__ = [
    "Address",
    "Gateway",
    "Limits",
    "Metrics",
    "ModelLimits",
    "ReleaseLimits",
    "RouteTable",
    "Snapshot",
    "TensorLimit",
    "entry_limits",
    "limits_of",
    "new_event_loop",
    "tensor_limits",
]
