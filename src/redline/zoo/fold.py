"""Batch-norm folding by module names: (conv, bn), (conv1, bn1) ... and (0, 1) of a Sequential. For the zoo's own networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Net = TypeVar("Net", bound=nn.Module)


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str, nn.Conv2d, nn.BatchNorm2d]]:
    children = dict(parent.named_children())
    for name, child in children.items():
        if not isinstance(child, nn.BatchNorm2d):
            continue
        partner = "0" if isinstance(parent, nn.Sequential) and name == "1" else name.replace("bn", "conv", 1)
        conv = children.get(partner)
        if isinstance(conv, nn.Conv2d):
            yield partner, name, conv, child


def fold_batchnorm(module: Net) -> Net:
    """Fold every batch norm of a zoo network into the convolution before it, in place; returns `module` in eval mode.

    w' = w * gamma / sqrt(var + eps), b' = beta + (b - mean) * gamma / sqrt(var + eps); the batch norm becomes an Identity.
    """
    module.eval()
    for parent in list(module.modules()):
        for conv_name, norm_name, conv, norm in list(_pairs(parent)):
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, nn.Identity())
    return module


def is_folded(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether `state` holds folded weights for `module`, which still has its batch norms."""
    paths = {name: path for path, name in _norm_paths(module)}
    return bool(paths) and all(f"{norm}.weight" not in state and f"{conv}.bias" in state for norm, conv in paths.items())


def _norm_paths(module: nn.Module) -> Iterator[tuple[str, str]]:
    for path, parent in module.named_modules():
        prefix = f"{path}." if path else ""
        for conv_name, norm_name, _, _ in _pairs(parent):
            yield prefix + conv_name, prefix + norm_name
