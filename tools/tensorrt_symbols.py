"""Symbol lists of TensorRT's Python module, read from the public binding sources of a release (github.com/NVIDIA/TensorRT).

python tools/tensorrt_symbols.py <git directory> v8.6.1 v10.0.1 ... > tests/null/engine/tensorrt_symbols.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

TOKEN = re.compile(
    r'py::(?:class_|enum_)<.*?>\s*\w*\s*\(\s*\w+,\s*"(?P<owner>\w+)"'
    r"|\.(?:def|def_static|def_property|def_property_readonly|def_property_static|def_readwrite|def_readonly|value|def_attr)"
    r'\s*\(\s*"(?P<member>\w+)"',
    re.DOTALL,
)
KEPT = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "IOptimizationProfile",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IEngineInspector",
    "ITimingCache",
    "IHostMemory",
    "ILayer",
    "ITensor",
    "ILogger",
    "IProfiler",
    "IProgressMonitor",
    "IDebugListener",
    "TensorLocation",
    "BuilderFlag",
    "TacticSource",
    "NetworkDefinitionCreationFlag",
    "MemoryPoolType",
    "PreviewFeature",
    "HardwareCompatibilityLevel",
    "ProfilingVerbosity",
    "DataType",
    "LayerInformationFormat",
    "OnnxParserFlag",
    "TensorIOMode",
    "LayerType",
    "ComputeCapability",
]
"""What redline touches."""


def git(folder: str, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout


def members(source: str) -> dict[str, set[str]]:
    """Class or enum -> what is defined on it. A definition belongs to the class named last before it."""
    found: dict[str, set[str]] = {}
    owner = ""
    source = re.sub(r"//[^\n]*", "", source)
    for match in TOKEN.finditer(source):
        if match["owner"]:
            owner = match["owner"]
            found.setdefault(owner, set())
        elif owner:
            found[owner].add(match["member"])
    return found


def symbols(folder: str, tag: str) -> dict[str, list[str]]:
    """Of the classes that redline touches."""
    found: dict[str, set[str]] = {}
    for path in git(folder, "ls-tree", "-r", "--name-only", tag, "python/src").splitlines():
        if path.endswith(".cpp"):
            for owner, names in members(git(folder, "show", f"{tag}:{path}")).items():
                found.setdefault(owner, set()).update(names)
    return {owner: sorted(found[owner]) for owner in KEPT if owner in found}


if __name__ == "__main__":
    print(
        json.dumps({tag.lstrip("v"): symbols(sys.argv[1], tag) for tag in sys.argv[2:]}, separators=(",", ":"), sort_keys=True)
    )
