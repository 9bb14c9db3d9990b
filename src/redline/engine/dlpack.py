"""Device memory to and from other libraries without a copy, by DLPack (v0.8 structs, which every consumer reads)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.errors import TrialError

CUDA = 2
"""kDLCUDA."""
CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""DLDataTypeCode by numpy's kind."""


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_lent: dict[int, Any] = {}
"""What consumers hold, by address of its struct, until their deleter call."""


def _give_back(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_give_back)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """An array in GPU memory that its lane owns: it is valid until that lane's next inference.

    `torch.from_dlpack(array)` and `cupy.from_dlpack(array)` share the memory; its contents are ready when it is returned.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: Any
    """Kept alive as long as somebody uses the memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        managed = _Managed()
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        managed.tensor.data = self.address
        managed.tensor.device = _Device(CUDA, self.device)
        managed.tensor.ndim = len(self.shape)
        managed.tensor.dtype = _Type(CODES[self.dtype.kind], self.dtype.itemsize * 8, 1)
        managed.tensor.shape = shape
        managed.deleter = _release
        _lent[ctypes.addressof(managed)] = (managed, shape, self)
        return _api.PyCapsule_New(ctypes.addressof(managed), b"dltensor", None)


@dataclass(frozen=True, slots=True)
class Lent:
    """Somebody else's device memory, contiguous. `capsule` keeps it alive."""

    address: int
    shape: tuple[int, ...]
    device: int
    capsule: Any


def borrow(array: Any, stream: int, dtype: np.dtype[Any]) -> Lent:
    """The memory of a torch, CuPy or other DLPack array; `stream` (an address) waits for what its producer still computes.

    Raises TrialError: engine-input if it is not on a GPU, not contiguous or of another type.
    """
    kind, device = array.__dlpack_device__()
    if kind != CUDA:
        raise TrialError(
            "engine-input", "The input is not in GPU memory", got=f"DLPack device {kind}", fix="move it, or call run"
        )
    capsule = array.__dlpack__(stream=stream)
    tensor = _Managed.from_address(_api.PyCapsule_GetPointer(capsule, b"dltensor")).tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    wanted = (CODES[dtype.kind], dtype.itemsize * 8)
    if (tensor.dtype.code, tensor.dtype.bits) != wanted:
        raise TrialError("engine-input", "The input has another type", got=f"{tensor.dtype.bits} bits", allowed=str(dtype))
    expected = 1
    for axis in reversed(range(tensor.ndim)):
        if tensor.strides and shape[axis] > 1 and tensor.strides[axis] != expected:
            raise TrialError("engine-input", "The input is not contiguous", got=str(shape), fix="call .contiguous() first")
        expected *= shape[axis]
    return Lent(int(tensor.data or 0) + int(tensor.byte_offset), shape, int(device), capsule)
