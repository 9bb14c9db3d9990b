"""The device table: what a GPU can do by its data sheet, from devices.toml, and what is known of the CPU at hand."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, get_args

from redline.errors import BadInput
from redline.records import Arithmetic, Ceilings, DeviceFacts, Environment, MigSlice, Price, Sourced

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCED = (
    "sms",
    "boost_mhz",
    "memory_gib",
    "bandwidth_gb_s",
    "l2_mib",
    "pcie_gb_s",
    "nvlink_gb_s",
    "nvdec_engines",
    "jpeg_engines",
    "power_w",
)
PER_SM = ("shared_kib_per_sm", "registers_per_sm", "warps_per_sm", "blocks_per_sm")
UNREAD = "in no source read for this table"
MAKERS = ("nvidia ", "tesla ", "geforce ")
NEAR = 0.5
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmLimits:
    """What one multiprocessor of a compute capability holds, and in which portions it hands it out."""

    warps_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int
    shared_kib_per_sm: int
    shared_unit_bytes: int
    reserved_shared_bytes: int
    """Of every block, by the driver."""


def devices() -> tuple[DeviceFacts, ...]:
    """All GPUs of the table, in its order."""
    return tuple(_table().values())


def device(name: str) -> DeviceFacts:
    """A GPU by its name, an alias, or as NVML names it; case and punctuation do not matter.

    Raises BadInput (plan.device) for one that is not in the table, with the nearest that is.
    """
    found, index, key = known_device(name), _index(), _key(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(key, index, n=1, cutoff=NEAR)
    fix = f"did you mean {index[close[0]].name}?" if close else "take one of the table"
    raise BadInput("plan.device", "no such device in the table", got=name, allowed=", ".join(_table()), fix=fix)


def known_device(name: str) -> DeviceFacts | None:
    """The same, None for one that is not in the table."""
    return _index().get(_key(name))


def cpu_device(environment: Environment, ceilings: Ceilings | None = None) -> DeviceFacts:
    """The CPU of a machine record: its memory is known, its rates only where `ceilings` has measured them."""
    unknown = Sourced(value=None, source="nobody measured it: redline doctor --measure")
    none = Sourced(value=None, source="a property of GPUs")
    memory = environment.memory_bytes / 2**30 if environment.memory_bytes else None
    return DeviceFacts(
        name=CPU,
        title=f"{environment.cpu}, {environment.cores} usable cores",
        kind="cpu",
        sms=none,
        boost_mhz=unknown,
        peaks=(("fp32", _measured(ceilings, "matmul-fp32") or unknown),),
        memory_gib=Sourced(value=memory, source="what this process may use, from the machine record"),
        bandwidth_gb_s=_measured(ceilings, "copy") or unknown,
        l2_mib=unknown,
        shared_kib_per_sm=none,
        registers_per_sm=none,
        warps_per_sm=none,
        blocks_per_sm=none,
        pcie_gb_s=none,
        nvlink_gb_s=none,
        nvdec_engines=none,
        jpeg_engines=none,
        power_w=unknown,
    )


def sm_limits(capability: tuple[int, int]) -> SmLimits:
    """Limits of a compute capability. Raises BadInput (plan.capability) for one that is not in the table."""
    rows: Mapping[str, Any] = _file()["capability"]
    text = ".".join(map(str, capability))
    if text not in rows:
        allowed = ", ".join(rows)
        raise BadInput("plan.capability", "this compute capability is not in the table", got=text, allowed=allowed)
    return SmLimits(**rows[text])


def _measured(ceilings: Ceilings | None, what: str) -> Sourced | None:
    found = next((c for c in ceilings.measured if c.what == what), None) if ceilings and ceilings.kind == "cpu" else None
    return Sourced(value=found.value, source=f"measured, a {found.kind}: {found.why}") if found else None


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads(resources.files("redline.plan").joinpath("devices.toml").read_text(encoding="utf-8"))


@functools.cache
def _table() -> dict[str, DeviceFacts]:
    return {name: _facts(name, row) for name, row in _file()["device"].items()}


@functools.cache
def _index() -> dict[str, DeviceFacts]:
    return {_key(alias): facts for facts in _table().values() for alias in (facts.name, *facts.aliases)}


def _key(name: str) -> str:
    """Letters and digits with single dashes between, without the maker and whatever follows a comma."""
    text = name.partition(",")[0].strip().lower()
    for maker in MAKERS:
        text = text.removeprefix(maker)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _facts(name: str, row: Mapping[str, Any]) -> DeviceFacts:
    major, minor = (int(part) for part in row["capability"].split("."))
    limits = sm_limits((major, minor))
    arithmetics: tuple[Arithmetic, ...] = get_args(Arithmetic)
    values = {key: _sourced(row.get(key)) for key in SOURCED}
    per_sm = {key: Sourced(value=float(getattr(limits, key)), source=_source("guide")) for key in PER_SM}
    return DeviceFacts(
        name=name,
        title=row["title"],
        kind="gpu",
        aliases=tuple(row["aliases"]),
        compute_capability=(major, minor),
        peaks=tuple((kind, _sourced(row["peaks"][kind])) for kind in arithmetics if kind in row["peaks"]),
        mig=tuple(MigSlice(name=mig, count=n, sms=sms, memory_gib=gib) for mig, n, sms, gib in row.get("mig", ())),
        mig_source=_source(row["mig_source"]),
        prices=tuple(_price(*cells) for cells in row.get("prices", ())),
        sms=values["sms"],
        boost_mhz=values["boost_mhz"],
        memory_gib=values["memory_gib"],
        bandwidth_gb_s=values["bandwidth_gb_s"],
        l2_mib=values["l2_mib"],
        pcie_gb_s=values["pcie_gb_s"],
        nvlink_gb_s=values["nvlink_gb_s"],
        nvdec_engines=values["nvdec_engines"],
        jpeg_engines=values["jpeg_engines"],
        power_w=values["power_w"],
        shared_kib_per_sm=per_sm["shared_kib_per_sm"],
        registers_per_sm=per_sm["registers_per_sm"],
        warps_per_sm=per_sm["warps_per_sm"],
        blocks_per_sm=per_sm["blocks_per_sm"],
    )


def _price(usd_per_hour: float, date: str, offer: str, source: str) -> Price:
    return Price(usd_per_hour=usd_per_hour, date=date, offer=offer, source=_source(source))


def _sourced(cell: list[Any] | None) -> Sourced:
    if cell is None:
        return Sourced(value=None, source=UNREAD)
    value, source, *remarks = cell
    text = "; ".join((_source(source), *remarks))
    return Sourced(value=None if value == "unknown" else float(value), source=text)


def _source(text: str) -> str:
    """A source by its key, before the first semicolon, or a text that is one itself."""
    key, semicolon, rest = text.partition(";")
    return f"{_file()['sources'].get(key, key)}{semicolon}{rest}"
