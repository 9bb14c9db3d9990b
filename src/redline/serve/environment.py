"""The server's own Python environment: the tritonserver binary of the nvidia-pytriton wheel, and numpy < 2 for its backend.

The wheel's Python backend was built against numpy 1: with numpy 2 it sends empty outputs and no error. So the server has an
environment of its own, apart from redline's, and every start proves that outputs come through (`selftest`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
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
TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx")
CUDA_BINDING = "cuda-bindings"
"""What the TensorRT runner calls the CUDA runtime through."""
HOME = "redline-server"

_LOOK = """
import ctypes, json, sys, sysconfig
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
names = ("numpy", "pillow", "onnxruntime", "opencv-python-headless", "nvidia-pytriton")
more = sys.argv[1:]
library, folder = sysconfig.get_config_var("INSTSONAME") or "", sysconfig.get_config_var("LIBDIR") or ""
if not library.startswith("libpython") or ".so" not in library:
    library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
found = None
for path in (folder + "/" + library, library):
    try: ctypes.CDLL(path); found = path; break
    except OSError: pass
print(json.dumps({"minor": list(sys.version_info[:2]), "libpython": found, "library": library,
    "purelib": sysconfig.get_paths()["purelib"], "versions": {name: version(name) for name in names},
    "more": {name: version(name) for name in more}}))
"""
_TENSORRT = """
import importlib, json, sys
try:
    from cuda.bindings import runtime
    module = importlib.import_module(sys.argv[1])
    print(json.dumps({"version": str(module.__version__), "gpus": int(runtime.cudaGetDeviceCount()[1] or 0)}))
except (ImportError, OSError, RuntimeError, AttributeError) as error:
    print(json.dumps({"problem": f"{type(error).__name__}: {error}"}))
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


def find_environment(home: Path | None = None, *, more: Sequence[str] = ()) -> ServerEnvironment:
    """`more`: distributions that need not be there, whose versions are asked for too.

    Raises BadInput (serve.no-server, serve.numpy, serve.libpython, serve.python) with what to install.
    """
    home = home if home is not None else server_home()
    python = home / "bin" / "python3"
    if not python.exists():
        raise BadInput("serve.no-server", "Triton is not installed", got=f"no {python}", fix="redline serve --install")
    try:
        done = subprocess.run([str(python), "-I", "-c", _LOOK, *more], capture_output=True, timeout=60, check=True)
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
        versions=tuple(sorted({**versions, **{k: v for k, v in seen["more"].items() if v is not None}}.items())),
    )


def install_environment(
    home: Path | None = None, *, more: Sequence[str] = (), note: Callable[[str], None] = print
) -> ServerEnvironment:
    """Make the server's environment (about 500 MB) with pip, unless it is there and sound; `more` as `gpu_packages` gives it.

    Raises BadInput or StoreError.
    """
    home = home if home is not None else server_home()
    pip = [str(home / "bin" / "python3"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        find_environment(home)
    except BadInput:
        note(f"installing Triton {SERVER_VERSION} and its Python into {home}")
        same = [f"{name}=={metadata.version(name)}" for name in SAME]
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([*pip, *NEEDS, *same])
        # Its own needs (a client, ZeroMQ, gRPC) are for a way of serving that is not used here.
        _run([*pip, "--no-deps", WHEEL])
    pins = dict(pin.split("==") for pin in more)
    found = find_environment(home, more=tuple(pins))
    missing = [f"{name}=={version}" for name, version in pins.items() if dict(found.versions).get(name) != version]
    if missing:
        note(f"installing {', '.join(missing)} into {home}, for engines on a GPU")
        _run([*pip, *missing, NEEDS[0]])  # whatever they want, numpy stays below 2
    return find_environment(home, more=tuple(pins))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise StoreError("serve.install", "the server could not be installed", got=lines[-1], fix=" ".join(command))


def gpu_packages() -> tuple[str, ...]:
    """What the server's Python needs to run this machine's engines, pinned: the distribution that redline's own TensorRT comes
    from, as a plan runs only with the version that built it, and the CUDA binding. None where redline has none of its own."""
    by_module = metadata.packages_distributions()
    found = next((by_module[module] for module in TENSORRT_MODULES if module in by_module), [])
    names = [*dict.fromkeys(found), CUDA_BINDING] if found else []
    with contextlib.suppress(metadata.PackageNotFoundError):
        return tuple(f"{name}=={metadata.version(name)}" for name in names)
    return ()


def require_tensorrt(environment: ServerEnvironment, library: str, version: str) -> None:
    """Raises BadInput (serve.tensorrt) unless the server's Python has this TensorRT and sees a GPU."""
    command = [f"{environment.bin}/python3", "-I", "-c", _TENSORRT, library.replace("-", "_")]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=process_environment(environment))
        seen = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        seen = {"problem": f"{type(error).__name__}: {error}"}
    if seen.get("version") == version and seen["gpus"]:
        return
    raise BadInput(
        "serve.tensorrt",
        "the server's Python cannot run the engine",
        got=seen.get("problem") or f"{library} {seen['version']}, {seen['gpus']} GPUs",
        allowed=f"{library} {version}, as redline has it, and a GPU",
        fix="redline serve --install",
    )


def process_environment(environment: ServerEnvironment) -> dict[str, str]:
    """Environment variables of the tritonserver process: ours, less what would lead its Python astray."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    variables["PATH"] = f"{environment.bin}:{variables.get('PATH', '')}"
    # GPUs are counted as redline counts them, and the driver's libraries may be where only this variable says.
    variables.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if environment.libpython_folder is not None:
        own = variables.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = environment.libpython_folder + (f":{own}" if own else "")
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
