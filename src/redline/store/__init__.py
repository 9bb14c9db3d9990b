"""Content-addressed, atomic store of records and files, the journal of a run, lineage and reclaiming of space.

It knows nothing of detectors: a value is JSON or bytes, a stage is a name.
"""

from __future__ import annotations

from redline.store.codec import digest_of, dump, load
from redline.store.content import Meta, Store
from redline.store.journal import Journal, JournalLine
from redline.store.lineage import Lineage, Reclaimed, collect, explain

__all__ = ["Journal", "JournalLine", "Lineage", "Meta", "Reclaimed", "Store", "collect", "digest_of", "dump", "explain", "load"]
