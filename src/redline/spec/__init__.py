"""What the user wants: a TOML file, checked whole at the edge, as a `Spec` record; and a commented file to start from.

It knows the file's form, not what can be done with it: it imports no detector and opens no image.
"""

from __future__ import annotations

from redline.spec.read import load_spec
from redline.spec.write import Written, to_toml, write_spec

__all__ = ["Written", "load_spec", "to_toml", "write_spec"]
