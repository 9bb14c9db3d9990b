"""What this machine is and what it can do, and what to install for the rest.

It imports none of the libraries it reports, until it is asked to measure.

It knows nothing of specs, detectors or runs.
"""

from __future__ import annotations

from redline.doctor.abilities import Ability, abilities, cautions
from redline.doctor.ceilings import measure_ceilings, read_ceilings, write_ceilings
from redline.doctor.machine import inspect_machine, require_platform

__all__ = [
    "Ability",
    "abilities",
    "cautions",
    "inspect_machine",
    "measure_ceilings",
    "read_ceilings",
    "require_platform",
    "write_ceilings",
]
