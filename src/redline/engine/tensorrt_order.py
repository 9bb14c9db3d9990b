"""Which output is which: an engine lists its tensors in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence

from redline.errors import TrialError


def in_order(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The engine's outputs `names` as `wanted` has them; as they are if nothing is wanted.

    Raises TrialError: engine-outputs if they are not the same names.
    """
    if wanted and sorted(wanted) != sorted(names):
        what = "The engine has other outputs than its graph"
        raise TrialError("engine-outputs", what, got=", ".join(names), allowed=", ".join(wanted), fix="build it anew")
    return list(wanted or names)
