"""The server's own Python environment: the tritonserver binary of the nvidia-pytriton wheel, and numpy < 2 for its backend.

The wheel's Python backend was built against numpy 1: with numpy 2 it sends empty outputs and no error. So the server has an
environment of its own, apart from redline's, and every start proves that outputs come through (`selftest`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from redline.errors import BadInput, StoreError

WHEEL = "nvidia-pytriton==0.7.0"
"""Holds tritonserver 2.51.0 (release 24.10) with its Python backend, and the only server on PyPI that runs without a GPU."""
SERVER_VERSION = "2.51.0"
NEEDS = ("numpy>=1.26,<2", "opencv-python-headless>=4.8,<4.12")
SAME = ("pillow", "onnxruntime")
"""Taken in the version that redline itself has, so that both sides decode and compute alike."""
HOME = "redline-server"

_LOOK = """
import ctypes, json, sys, sysconfig
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
names = ("numpy", "pillow", "onnxruntime", "opencv-python-headless", "nvidia-pytriton")
library, folder = sysconfig.get_config_var("INSTSONAME") or "", sysconfig.get_config_var("LIBDIR") or ""
if not library.startswith("libpython") or ".so" not in library:
    library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
found = None
for path in (folder + "/" + library, library):
    try: ctypes.CDLL(path); found = path; break
    except OSError: pass
print(json.dumps({"minor": list(sys.version_info[:2]), "libpython": found, "library": library,
    "purelib": sysconfig.get_paths()["purelib"], "versions": {name: version(name) for name in names}}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEnvironment:
    """Where everything is that a tritonserver needs. All paths are absolute."""

    bin: str
    """Folder of the environment's python3: the backend finds its prefix from the first one on PATH."""
    libpython_folder: str | None
    """For LD_LIBRARY_PATH; None where the loader finds the library by itself."""
    triton: str
    """The wheel's tritonserver folder."""
    stub: str
    versions: tuple[tuple[str, str], ...]

    @property
    def binary(self) -> str:
        return f"{self.triton}/bin/tritonserver"


def server_home() -> Path:
    return Path(sys.prefix) / HOME


def find_environment(home: Path | None = None) -> ServerEnvironment:
    """Raises BadInput (serve.no-server, serve.numpy, serve.libpython, serve.python) with what to install."""
    home = home if home is not None else server_home()
    python = home / "bin" / "python3"
    if not python.exists():
        raise BadInput("serve.no-server", "Triton is not installed", got=f"no {python}", fix="redline serve --install")
    try:
        done = subprocess.run([str(python), "-I", "-c", _LOOK], capture_output=True, timeout=60, check=True)
        seen = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BadInput("serve.no-server", f"{python} does not run", got=error, fix="redline serve --install") from error
    return _checked(home, seen)


def _checked(home: Path, seen: dict[str, Any]) -> ServerEnvironment:
    versions = {name: version for name, version in seen["versions"].items() if version is not None}
    minor = ".".join(str(part) for part in seen["minor"])
    missing = [name for name in seen["versions"] if name not in versions]
    if missing:
        raise BadInput("serve.no-server", f"{home} lacks {', '.join(missing)}", fix="redline serve --install")
    if int(versions["numpy"].split(".")[0]) >= 2:
        raise BadInput(
            "serve.numpy",
            "the server's Python backend sends empty outputs with numpy 2",
            got=f"numpy {versions['numpy']} in {home}",
            allowed="numpy < 2",
            fix="redline serve --install",
        )
    triton = Path(seen["purelib"]) / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / minor / "triton_python_backend_stub"
    if not stub.exists():
        allowed = ", ".join(sorted(path.name for path in (triton / "python_backend_stubs").glob("*")))
        raise BadInput("serve.python", "the server has no backend for this Python", got=minor, allowed=allowed)
    if seen["libpython"] is None:
        fix = f"apt-get install libpython{minor}, or a Python built with --enable-shared"
        raise BadInput("serve.libpython", "the server embeds Python and cannot find it", got=f"no {seen['library']}", fix=fix)
    library = Path(seen["libpython"])
    return ServerEnvironment(
        bin=str(home / "bin"),
        libpython_folder=str(library.parent) if library.is_absolute() else None,
        triton=str(triton),
        stub=str(stub),
        versions=tuple(sorted(versions.items())),
    )


def install_environment(home: Path | None = None, *, note: Callable[[str], None] = print) -> ServerEnvironment:
    """Make the server's environment (about 500 MB) with pip, unless it is there and sound. Raises BadInput or StoreError."""
    home = home if home is not None else server_home()
    try:
        return find_environment(home)
    except BadInput:
        note(f"installing Triton {SERVER_VERSION} and its Python into {home}")
    same = [f"{name}=={metadata.version(name)}" for name in SAME]
    pip = [str(home / "bin" / "python3"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [*pip, *NEEDS, *same],
        # Its own needs (a client, ZeroMQ, gRPC) are for a way of serving that is not used here.
        [*pip, "--no-deps", WHEEL],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise StoreError("serve.install", "the server could not be installed", got=lines[-1], fix=" ".join(command))
    return find_environment(home)


def process_environment(environment: ServerEnvironment) -> dict[str, str]:
    """Environment variables of the tritonserver process: ours, less what would lead its Python astray."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    variables["PATH"] = f"{environment.bin}:{variables.get('PATH', '')}"
    if environment.libpython_folder is not None:
        variables["LD_LIBRARY_PATH"] = environment.libpython_folder
    return variables


def make_backend_folder(environment: ServerEnvironment, folder: Path) -> Path:
    """The wheel's backend folder has no stub beside its library; a folder of links has. Returns it."""
    python = folder / "python"
    python.mkdir(parents=True, exist_ok=True)
    source = Path(environment.triton) / "backends" / "python"
    for target in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", Path(environment.stub)):
        link = python / target.name
        if link.is_symlink() or link.exists():
            link.unlink()
        link.symlink_to(target)
    return folder
