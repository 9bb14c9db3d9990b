"""JPEG files in host memory to RGB pixels in device memory, a batch at a time, through nvImageCodec.

Why nvImageCodec and not nvJPEG by itself: it is what NVIDIA maintains and DALI builds upon, it cuts a batch into what the JPEG
engine, the CUDA cores and the host can take, turns images upright, and has a wheel (25 MB beside nvJPEG's 4); nvJPEG has a C
interface alone, whose batched call wants images of one kind and says nothing of which one failed.
What it cannot take, and whatever is not a whole baseline or progressive JPEG of 1 or 3 components, the reference decoder gets,
whose verdict counts: an image that it refuses too fails alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from redline.errors import BadInput, TrialError
from redline.records import DecodedImage, DeviceImage
from redline.vision.image import PIXEL_LIMIT, decode

Engine = Literal["hardware", "cuda", "hybrid", "host"]
"""hardware: the GPU's JPEG engine; cuda: Huffman decoding on the GPU; hybrid: on the host, the rest on the GPU."""

INSTALL = "pip install nvidia-nvimgcodec-cu13[nvjpeg], or -cu12 for CUDA 12"
HOST = -99_999
"""As a device: decode into host memory, by nvImageCodec's host decoders. No GPU is needed."""
_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_TAIL = 64
"""Bytes in which a whole JPEG ends; some writers pad."""


class JpegDecoder:
    """Decodes batches on one device. For one thread at a time; its images live until its next batch, or until it is closed."""

    def __init__(
        self,
        device: int,
        *,
        engines: Sequence[Engine] = ("hardware", "cuda", "hybrid"),
        fancy_upsampling: bool = True,
        threads: int = 1,
    ) -> None:
        """`engines`: tried in this order for every image. `fancy_upsampling`: chroma interpolated as the reference does (by
        libjpeg's triangle filter) instead of repeated. `threads`: of the host, for what nvImageCodec does there.

        Raises TrialError: kernels.jpeg (nvImageCodec is not installed, or has no decoder for the device).
        """
        try:
            from nvidia import nvimgcodec
        except ImportError as exc:
            raise TrialError(
                "kernels.jpeg",
                "nvImageCodec decodes JPEG on the GPU",
                got=str(exc),
                fix=INSTALL,
            ) from exc
        self._codec, self._device = nvimgcodec, device
        try:
            self._decoder: Any = nvimgcodec.Decoder(
                device_id=device,
                max_num_cpu_threads=threads,
                backends=[nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, _KINDS[engine])) for engine in engines],
                options=f":fancy_upsampling={int(fancy_upsampling)}",
            )
        except RuntimeError as exc:
            raise TrialError("kernels.jpeg", f"nvImageCodec cannot use device {device}", got=str(exc).splitlines()[0]) from exc
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=True, color_spec=nvimgcodec.ColorSpec.SRGB)
        self._images: list[Any] = []
        self._copies: list[Any] = []

    def decode(
        self, files: Sequence[bytes], *, names: Sequence[str] | None = None, stream: int = 0
    ) -> tuple[DecodedImage, ...]:
        """One result a file, in order. Work enqueued on `stream` afterwards finds the pixels complete.

        The memory of the batch before is written again where it is large enough: with batches of one size nothing is allocated.
        """
        names = names or tuple(f"image {index}" for index in range(len(files)))
        self._copies = []
        parsed = [self._parsed(data) for data in files]
        taken = [index for index, source in enumerate(parsed) if source is not None]
        decoded: dict[int, Any] = dict(zip(taken, self._batch([parsed[index] for index in taken], stream), strict=True))
        return tuple(self._result(decoded.get(index), files[index], names[index], stream) for index in range(len(files)))

    def close(self) -> None:
        """Give back the decoder and the images it decoded."""
        self._images, self._copies, self._decoder = [], [], None

    def _parsed(self, data: bytes) -> Any:
        """As the decoder takes it, or None for what is the reference's."""
        if not data.startswith(_START) or _END not in data[-_TAIL:]:
            return None
        try:
            source = self._codec.CodeStream(data)
            usual = source.num_channels in (1, 3) and source.precision == 8 and source.height * source.width <= PIXEL_LIMIT
        except RuntimeError:
            return None
        return source if usual else None

    def _batch(self, sources: list[Any], stream: int) -> list[Any]:
        if not sources:
            return []
        count = len(sources)
        kept = self._images[:count] if len(self._images) >= count else None
        found: list[Any] = self._decoder.decode(sources, images=kept, params=self._params, cuda_stream=stream)
        if all(image is not None for image in found):
            self._images[:count] = found
        return found

    def _result(self, image: Any, data: bytes, name: str, stream: int) -> DecodedImage:
        if image is not None:
            return DecodedImage(image=_described(image), by="device")
        try:
            pixels = decode(data, name=name)
        except BadInput as exc:
            return DecodedImage(image=None, by="host", failure=exc)
        copy = self._codec.as_image(pixels)
        if self._device != HOST:
            copy = copy.cuda(synchronize=True, device_id=self._device, cuda_stream=stream)
        self._copies.append((copy, pixels))
        return DecodedImage(image=_described(copy), by="host")


_KINDS: dict[Engine, str] = {"hardware": "HW_GPU_ONLY", "cuda": "GPU_ONLY", "hybrid": "HYBRID_CPU_GPU", "host": "CPU_ONLY"}
"""By nvImageCodec's names."""


def _described(image: Any) -> DeviceImage:
    found = image.__cuda_array_interface__ if image.device_id is not None else image.__array_interface__
    height, width, _ = found["shape"]
    strides = found.get("strides")
    return DeviceImage(
        pointer=int(found["data"][0]),
        height=int(height),
        width=int(width),
        row_bytes=int(strides[0]) if strides else 3 * int(width),
    )
