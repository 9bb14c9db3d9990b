"""A first look at the data a spec names, so that a wrong file is noticed before the first run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from redline.errors import BadInput
from redline.records import Spec

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def look_at(spec: Spec) -> tuple[str, ...]:
    """What was found, in sentences. Raises BadInput if the annotations are not COCO's, or none of their images is there."""
    images = Path(spec.data.evaluate.images)
    if spec.data.evaluate.annotations is None:
        count = sum(1 for path in images.rglob("*") if path.suffix.lower() in PICTURES)
        if count == 0:
            raise BadInput("init.images", f"no image in {images}", allowed=", ".join(sorted(PICTURES)))
        return (f"{count} images without labels: agreement with the FP32 model will be measured, not mAP",)
    path = Path(spec.data.evaluate.annotations)
    tables = _coco(path)
    names = [image.get("file_name") if isinstance(image, dict) else None for image in tables["images"]]
    there = [name for name in names if isinstance(name, str) and (images / name).is_file()]
    if not there:
        what = f"none of the {len(names)} images of {path.name} is in {images}"
        raise BadInput(
            "init.images", what, got=names[0] if names else "an empty list", fix="name the folder their file_name starts from"
        )
    notes = [f"{len(there)} images, {len(tables['annotations'])} boxes, {len(tables['categories'])} categories"]
    if len(there) < len(names):
        notes.append(f"{len(names) - len(there)} images of {path.name} are not in {images}: redline run will refuse that")
    return tuple(notes)


def _coco(path: Path) -> dict[str, list[Any]]:
    try:
        whole = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput("init.annotations", f"cannot read {path}", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise BadInput("init.annotations", f"{path} is not JSON", got=error) from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(whole, dict) or not isinstance(whole.get(key), list)]
    if missing:
        raise BadInput(
            "init.annotations",
            f"{path} is not a COCO detection file",
            got="no list " + ", ".join(f'"{key}"' for key in missing),
            allowed="a table with the lists " + ", ".join(f'"{key}"' for key in keys),
        )
    return {key: whole[key] for key in keys}
