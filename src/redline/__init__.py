"""redline: from a PyTorch detector and a latency objective to a validated deployment, with the evidence for every choice.

The verbs of the command line are functions of `redline.api` that return records; those whose names are not also rooms are here.
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from redline.api import explain, gc, init, load_spec, run

__all__ = ["__version__", "explain", "gc", "init", "load_spec", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from redline import api

        return getattr(api, name)
    raise AttributeError(f"module 'redline' has no attribute {name!r}")
