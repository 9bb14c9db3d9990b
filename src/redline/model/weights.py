"""Read a state dict without running code in it, and put it into a module or say which keys do not fit."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redline.errors import BadInput
from redline.zoo.fold import fold_batchnorm, is_folded

WRAPPERS = ("model", "state_dict", "ema", "model_state_dict", "module")
"""Keys under which training scripts nest the state dict."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SHOWN = 5
"""Keys named of each kind of mismatch; the rest is counted."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name; half precision and double become float32.

    Raises BadInput: weights-file (absent, kind, damaged, no tensors), weights-unsafe (a pickle with code in it).
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise BadInput("weights-file", f"Cannot read the weights {str(path)!r}", got=got, fix="check model.weights")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    elif suffix in PICKLED:
        content = _read_pickle(path)
    else:
        allowed = ", ".join((".safetensors", *PICKLED))
        raise BadInput(
            "weights-file", f"Unknown kind of weights file {path.name!r}", got=suffix or "no suffix", allowed=allowed
        )
    state = _unwrap(content, path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _damaged(path: Path, error: Exception) -> BadInput:
    message = (str(error).strip().splitlines() or [""])[0][:200]
    return BadInput(
        "weights-file",
        f"The weights file {path.name!r} is damaged or cut short",
        got=f"{path.stat().st_size} bytes; {type(error).__name__}: {message}",
        fix="copy or download the file again and compare its size",
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = _culprit(str(error)) or _first_import(path)
        if culprit is None:
            raise _damaged(path, error) from error
        raise BadInput(
            "weights-unsafe",
            f"The weights file {path.name!r} is a pickle that would run code; it was not opened",
            got=culprit,
            allowed="a state dict of plain tensors",
            fix='where you trust it: save it again with torch.save(model.state_dict(), "weights.pt") or as safetensors',
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise _damaged(path, error) from error


def _culprit(message: str) -> str | None:
    """The line of torch's message that names what the pickle would import."""
    return next((line.strip()[:200] for line in message.splitlines() if "GLOBAL" in line or " global " in line), None)


def _first_import(path: Path) -> str | None:
    """The first object that a bare pickle, of a protocol torch does not read, would import. Reads opcodes, runs nothing."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # not a pickle
        return None
    return None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(2):  # {"ema": {"module": {...}}} is the deepest nesting in common use
        if isinstance(content, Mapping):
            inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
            content = content if inner is None else inner
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        names = f"a dictionary of {', '.join(map(str, list(content)[:SHOWN]))}" if isinstance(content, Mapping) else ""
        raise BadInput(
            "weights-file",
            f"The weights file {path.name!r} holds no state dict",
            got=names or type(content).__name__,
            allowed=f"tensors by parameter name, also under one of: {', '.join(WRAPPERS)}",
        )
    if all(key.startswith("module.") for key in state):  # torch's DataParallel
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Strictly load `state`; one whose batch norms were folded folds those of `module` first.

    Raises BadInput: weights-mismatch, naming missing, unexpected and misshapen keys.
    """
    if is_folded(module, state):
        fold_batchnorm(module)
    own = module.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # old checkpoints lack them; inference ignores them
    missing = [key for key in own if key not in state and key not in counters]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
        raise BadInput(
            "weights-mismatch",
            f"The weights {source!r} do not match the network",
            got="; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in found.items() if keys),
            allowed=f"the {len(own)} keys of the network, with their shapes",
            fix="check the factory and its arguments (number of classes, size of the network)",
        )
    module.load_state_dict({**{key: own[key] for key in counters}, **state})
    module.requires_grad_(False)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def digest(module: nn.Module) -> str:
    """sha256 over what decides the outputs: structure, source files of its own classes, parameters and buffers by name."""
    total = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(module)).encode())
    for source in _sources(module):
        total.update(source.read_bytes())
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _sources(module: nn.Module) -> list[Path]:
    """Files that define the classes of the module and its parts, without torch's: other code makes another model."""
    owners = {type(part).__module__ for part in module.modules()}
    own = [sys.modules.get(name) for name in sorted(owners) if name.partition(".")[0] != "torch"]
    files = [getattr(found, "__file__", None) for found in own]
    return [Path(name) for name in files if name is not None and Path(name).is_file()]


def not_finite(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or infinity."""
    return [name for name, t in module.state_dict().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
