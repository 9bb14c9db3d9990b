"""What this machine is and what it can do, and what to install for the rest. It imports none of the libraries it reports.

It knows nothing of specs, detectors or runs.
"""

from __future__ import annotations

from redline.doctor.abilities import Ability, abilities, cautions
from redline.doctor.machine import inspect_machine, require_platform

__all__ = ["Ability", "abilities", "cautions", "inspect_machine", "require_platform"]
