"""Find and call "package.module:callable"; whatever the user's code raises is named in a BadInput."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redline.errors import BadInput

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    """Modules beside the user are importable, as with `python -m`; sys.path is as before afterwards."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def describe(error: BaseException) -> str:
    """Type, first line of the message and the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    message = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {message}{place}"


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory and return its module in eval mode, float32, on the CPU, without gradients.

    Raises BadInput: model-factory (not found, raises, arguments do not fit, not an nn.Module).
    """
    from torch import nn

    with working_folder_on_path():
        call = _resolve(factory)
        _check_arguments(call, factory, arguments)
        try:
            module = call(**arguments)
            if isinstance(module, nn.Module):
                return module.to("cpu").float().eval().requires_grad_(False)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise BadInput(
                "model-factory",
                f"The factory {factory!r} raised an error",
                got=describe(error),
                fix=f'run python -c "from {factory.replace(":", " import ")}" and call it, to see the whole traceback',
            ) from error
    raise BadInput(
        "model-factory",
        f"The factory {factory!r} did not return a network",
        got=type(module).__name__,
        allowed="torch.nn.Module",
        fix="return the module itself: not its state dict, its class or a tuple",
    )


def _resolve(factory: str) -> Callable[..., Any]:
    name, _, attribute = factory.partition(":")
    if not name or not attribute.isidentifier() or not all(part.isidentifier() for part in name.split(".")):
        raise BadInput("model-factory", "The factory has no usable name", got=factory, allowed='"package.module:callable"')
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None and name.startswith(error.name)
        raise BadInput(
            "model-factory",
            f"Cannot import {name!r}" if missing else f"Importing {name!r} raised an error",
            got=describe(error),
            fix="start redline where the module can be imported, or install its package" if missing else None,
        ) from error
    found = getattr(module, attribute, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(attribute, names, n=1)
    raise BadInput(
        "model-factory",
        f"{name!r} has no callable {attribute!r}",
        got=type(found).__name__ if found is not None else "nothing of that name",
        allowed=", ".join(sorted(names)[:20]),
        fix=f"did you mean {name}:{near[0]}?" if near else None,
    )


def _check_arguments(call: Callable[..., Any], factory: str, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise BadInput(
            "model-factory",
            f"The arguments do not fit the factory {factory!r}",
            got=f"{error} ({dict(arguments)})",
            allowed=signature,
        ) from error
