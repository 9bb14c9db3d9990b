"""Read a folder of images and, if labelled, its COCO json into a checked `Dataset`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from redline.data.annotations import Entry, ids_of, read_categories, read_truths, refuse, whole
from redline.errors import BadInput
from redline.records import Category, DataRef, Dataset, ImageRef, Truth
from redline.vision import image_size

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_SECTIONS = ("images", "annotations", "categories")


def load_dataset(ref: DataRef, *, role: str = "evaluate") -> Dataset:
    """Read and check one image set.

    Images come in ascending id order with the size of the decoded, EXIF-upright image and the sha256 of the file.
    Boxes that leave the image by at most one pixel are clipped to it. Without annotations every image of the folder
    (not of its sub-folders) is taken in the order of its name, with ids from 1 and `truths` None.

    `role` is the name that errors give the set (data.<role>); an "evaluate" set must have at least one box.
    Raises BadInput: data-no-folder, data-not-found, data-unreadable, data-not-json, data-not-coco, data-empty,
    data-missing-images, data-duplicate-image, data-unknown-image, data-unknown-category, data-box, data-box-outside,
    data-size, data-no-boxes.
    """
    folder = Path(ref.images)
    if not folder.is_dir():
        raise BadInput(
            "data-no-folder", f"data.{role}: the image folder does not exist", got=folder, fix="correct `images` in the spec"
        )
    if ref.annotations is None:
        return _unlabelled(folder, role)
    path = Path(ref.annotations)
    document = _sections(_read_json(path, role), path)
    categories = read_categories(document["categories"], path)
    images = _labelled_images(document["images"], folder, path, role)
    truths = read_truths(document["annotations"], images, categories, path)
    if role in ("evaluate", "confirm") and not any(truth.boxes for truth in truths):
        raise BadInput(
            "data-no-boxes",
            f"{path} holds no boxes, so there is nothing to measure mAP against",
            fix="label the images, or leave `annotations` out: agreement with the FP32 reference is measured then",
        )
    return _dataset(f"{path.parent.name}/{path.stem}", images, truths, categories)


def read_bytes(image: ImageRef) -> bytes:
    """The encoded file. Raises BadInput (data-unreadable) if it cannot be read any more."""
    try:
        return Path(image.path).read_bytes()
    except OSError as error:
        raise BadInput(
            "data-unreadable", "cannot read an image file", got=f"{image.path}: {error.strerror or error}"
        ) from error


def _unlabelled(folder: Path, role: str) -> Dataset:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise BadInput(
            "data-empty", f"data.{role}: no images in {folder}", allowed=", ".join(sorted(_SUFFIXES)), fix="check the folder"
        )
    images = [_image_ref(number, path, {}) for number, path in enumerate(paths, start=1)]
    return _dataset(f"{folder.parent.name}/{folder.name}", tuple(images), None, ())


def _dataset(
    name: str, images: tuple[ImageRef, ...], truths: tuple[Truth, ...] | None, categories: tuple[Category, ...]
) -> Dataset:
    content = {
        "images": [(image.id, image.sha256) for image in images],
        "truths": truths and [(truth.boxes, truth.category_ids, truth.areas, truth.crowd) for truth in truths],
        "categories": [(category.id, category.name) for category in categories],
    }
    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    return Dataset(name=name, images=images, truths=truths, categories=categories, digest=digest)


def _read_json(path: Path, role: str) -> object:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text)
    except FileNotFoundError as error:
        what = f"data.{role}: the annotation file does not exist"
        raise BadInput("data-not-found", what, got=path, fix="correct `annotations` in the spec") from error
    except OSError as error:
        raise BadInput("data-unreadable", f"cannot read {path}", got=error.strerror or error) from error
    except UnicodeDecodeError as error:
        raise BadInput("data-not-json", f"{path} is not JSON: not UTF-8 text", got=f"byte {error.start}") from error
    except json.JSONDecodeError as error:
        got = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise BadInput("data-not-json", f"{path} is not JSON", got=got, fix="export the annotations again") from error
    except RecursionError as error:
        raise BadInput(
            "data-not-json", f"{path} is nested too deeply to be COCO", fix="export the annotations again"
        ) from error


def _sections(document: object, path: Path) -> dict[str, list[Entry]]:
    fix = "export the annotations as COCO detection json"
    if not isinstance(document, dict):
        got = f"a JSON {type(document).__name__}"
        raise BadInput(
            "data-not-coco", f"{path} is not COCO", got=got, allowed="an object with " + ", ".join(_SECTIONS), fix=fix
        )
    missing = [key for key in _SECTIONS if key not in document]
    if missing:
        got = "keys " + (", ".join(map(str, list(document)[:8])) or "none")
        what = f"{path} is not COCO: missing {', '.join(missing)}"
        raise BadInput("data-not-coco", what, got=got, allowed="images, annotations and categories", fix=fix)
    sections: dict[str, list[Entry]] = {}
    for key in _SECTIONS:
        entries = document[key]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadInput("data-not-coco", f"{path} is not COCO: `{key}` must be a list of objects", fix=fix)
        sections[key] = entries
    return sections


def _labelled_images(entries: list[Entry], folder: Path, path: Path, role: str) -> tuple[ImageRef, ...]:
    if not entries:
        raise BadInput("data-empty", f"data.{role}: {path} lists no images", fix="check the export of the annotations")
    ids = ids_of(entries, "images", path, "data-duplicate-image")
    nameless = [f"image id {id}" for id, entry in zip(ids, entries, strict=True) if not _name(entry)]
    refuse("data-not-coco", f"{path} is not COCO: images need a `file_name`", nameless)
    paths = [folder / _name(entry) for entry in entries]
    missing = [str(_name(entry)) for entry, file in zip(entries, paths, strict=True) if not file.is_file()]
    refuse(
        "data-missing-images",
        f"{len(missing)} of {len(entries)} image files are not in {folder}",
        missing,
        fix="correct `images` in the spec, or fetch the missing files",
    )
    known: dict[Path, str] = {}
    images = [_image_ref(id, file, known) for id, file in zip(ids, paths, strict=True)]
    wrong = []
    for entry, image in zip(entries, images, strict=True):
        said = (entry.get("height", image.height), entry.get("width", image.width))
        if tuple(map(whole, said)) != (image.height, image.width):
            wrong.append(f"{_name(entry)}: {said[0]} x {said[1]} in the json, decodes to {image.height} x {image.width}")
    refuse(
        "data-size",
        f"{path} gives sizes (height x width) that the images do not have",
        wrong,
        fix="use the images the labels were drawn on; sizes count after EXIF rotation",
    )
    return tuple(sorted(images, key=lambda image: image.id))


def _name(entry: Entry) -> str:
    name = entry.get("file_name")
    return name if isinstance(name, str) else ""


def _image_ref(id: int, path: Path, known: dict[Path, str]) -> ImageRef:
    """`known` keeps the digests of files listed under several ids."""
    if path not in known:
        try:
            known[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput("data-unreadable", "cannot read an image file", got=f"{path}: {error.strerror or error}") from error
    height, width = image_size(path)
    return ImageRef(id=id, path=str(path), height=height, width=width, sha256=known[path])
