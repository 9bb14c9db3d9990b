"""Reading COCO: what is good is read exactly, what is bad is refused with the place and the reason."""

import hashlib
import json

import pytest
from PIL import Image

from redline import data
from redline.errors import BadInput
from redline.records import DataRef

EXIF_ORIENTATION = 0x0112


def write_set(folder, *, images=None, annotations=None, categories=None, files=("b.png", "a.png"), size=(40, 30)):
    """Two images of 40 x 30 (width x height), ids 9 and 4, one box each; any section can be replaced."""
    (folder / "images").mkdir(exist_ok=True)
    for shade, name in enumerate(files):
        Image.new("RGB", size, (shade, 0, 0)).save(folder / "images" / name)
    document = {
        "images": [
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 10, "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5.5, 6, 7, 8], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "plate"}],
    }
    changes = {"images": images, "annotations": annotations, "categories": categories}
    document |= {key: value for key, value in changes.items() if value is not None}
    (folder / "labels.json").write_text(json.dumps(document))
    return DataRef(images=str(folder / "images"), annotations=str(folder / "labels.json"))


def box(bbox, **more):
    return [{"id": 12, "image_id": 4, "category_id": 3, "bbox": bbox, **more}]


def refused(ref, code, *words, role="evaluate"):
    with pytest.raises(BadInput) as caught:
        data.load_dataset(ref, role=role)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.text()


def test_a_good_set(tmp_path):
    dataset = data.load_dataset(write_set(tmp_path))
    assert [(image.id, image.height, image.width) for image in dataset.images] == [(4, 30, 40), (9, 30, 40)]
    assert [(c.id, c.name) for c in dataset.categories] == [(3, "plate"), (7, "cup")]
    first, second = dataset.truths
    assert (first.boxes, first.category_ids, first.areas, first.crowd) == (((5.5, 6.0, 7.0, 8.0),), (3,), (56.0,), (True,))
    assert (second.boxes, second.areas, second.crowd) == (((1.0, 2.0, 3.0, 4.0),), (10.0,), (False,))
    content = (tmp_path / "images" / "a.png").read_bytes()
    assert dataset.images[0].sha256 == hashlib.sha256(content).hexdigest()
    assert data.read_bytes(dataset.images[0]) == content
    assert dataset.name == f"{tmp_path.name}/labels"


def test_digest_follows_content_not_place(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one, two = (data.load_dataset(write_set(tmp_path / name)) for name in ("one", "two"))
    other = data.load_dataset(write_set(tmp_path / "three", annotations=box([1, 1, 5, 5])))
    assert one.digest == two.digest != other.digest


def test_unlabelled_folder_by_name(tmp_path):
    ref = write_set(tmp_path, files=("b.png", "a.png", "C.JPG"))
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    dataset = data.load_dataset(DataRef(images=ref.images))
    assert [(image.id, image.path.rsplit("/")[-1]) for image in dataset.images] == [(1, "C.JPG"), (2, "a.png"), (3, "b.png")]
    assert (dataset.truths, dataset.categories) == (None, ())


def test_exif_rotated_image_has_its_upright_size(tmp_path):
    ref = write_set(
        tmp_path, images=[{"id": 4, "file_name": "r.jpg", "height": 40, "width": 30}], annotations=box([0, 0, 30, 40])
    )
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "r.jpg", exif=exif)
    (image,) = data.load_dataset(ref).images
    assert (image.height, image.width) == (40, 30)


def test_size_may_be_left_out_of_the_json(tmp_path):
    ref = write_set(tmp_path, images=[{"id": 4, "file_name": "a.png"}], annotations=box([0, 0, 30, 20]))
    assert data.load_dataset(ref).images[0].width == 40


def test_missing_folder_and_file(tmp_path):
    refused(DataRef(images=str(tmp_path / "no")), "data-no-folder", "data.calibrate", role="calibrate")
    refused(DataRef(images=str(tmp_path), annotations=str(tmp_path / "no.json")), "data-not-found", "no.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"images": [\n  1,,', ["line 2, column 5"]),
        (b"", ["line 1, column 1"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
        (b"[" * 100_000, ["nested"]),
    ],
    ids=["comma", "empty", "binary", "deep"],
)
def test_not_json(tmp_path, content, words):
    ref = write_set(tmp_path)
    (tmp_path / "labels.json").write_bytes(content)
    refused(ref, "data-not-json", *words)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([1, 2], ["a JSON list"]),
        ({"images": [], "licenses": []}, ["missing annotations, categories", "keys images, licenses"]),
        ({"images": {}, "annotations": [], "categories": []}, ["`images` must be a list"]),
        ({"images": [3], "annotations": [], "categories": []}, ["`images` must be a list of objects"]),
        ({"images": [{"id": "x"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, ["integer `id`", "images[0]"]),
        ({"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, ["file_name", "image id 1"]),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, ["`categories` is empty"]),
        ({"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}, ["need a `name`"]),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, ["not unique"]),
    ],
)
def test_not_coco(tmp_path, document, words):
    ref = write_set(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(document))
    refused(ref, "data-not-coco", *words)


def test_empty_sets(tmp_path):
    refused(write_set(tmp_path, images=[], annotations=[]), "data-empty", "lists no images")
    refused(write_set(tmp_path, annotations=[]), "data-no-boxes", "agreement")
    assert len(data.load_dataset(write_set(tmp_path, annotations=[]), role="calibrate").images) == 2
    (tmp_path / "bare").mkdir()
    refused(DataRef(images=str(tmp_path / "bare")), "data-empty", ".png")


def test_missing_images_are_counted_and_named(tmp_path):
    images = [{"id": k, "file_name": f"gone{k}.png", "width": 4, "height": 3} for k in range(8)]
    refused(write_set(tmp_path, images=images, annotations=[]), "data-missing-images", "8 of 8", "gone4.png; and 3 more")


def test_duplicate_image_id(tmp_path):
    images = [{"id": 4, "file_name": name, "width": 40, "height": 30} for name in ("a.png", "b.png")]
    refused(write_set(tmp_path, images=images), "data-duplicate-image", "id 4")


def test_annotation_of_unknown_image_or_category(tmp_path):
    refused(write_set(tmp_path, annotations=box([1, 1, 2, 2], image_id=77)), "data-unknown-image", "annotation id 12", "77")
    refused(write_set(tmp_path, annotations=box([1, 1, 2, 2], image_id="4")), "data-unknown-image", "'4'")
    refused(write_set(tmp_path, annotations=box([1, 1, 2, 2], category_id=5)), "data-unknown-category", "5", "ids 3 to 7")


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ([10, 10, 32, 5], ["annotation id 12", "2 px over the right edge of image id 4 (30 x 40)"]),
        ([-3.5, 0, 10, 10], ["3.5 px over the left edge"]),
        ([0, -30, 10, 10], ["30 px over the top edge"]),
        ([0, 25, 10, 6.25], ["1.25 px over the bottom edge"]),
        ([40, 10, 0.5, 5], ["lies beyond the right edge"]),
    ],
)
def test_box_outside(tmp_path, bbox, words):
    refused(write_set(tmp_path, annotations=box(bbox)), "data-box-outside", *words)


@pytest.mark.parametrize(
    ("bbox", "kept"),
    [
        ([0, 0, 40, 30], (0, 0, 40, 30)),
        ([-1, -0.5, 10, 10], (0, 0, 9, 9.5)),
        ([35, 25, 6, 5.75], (35, 25, 5, 5)),
        ([0.1, 0.2, 0.3, 0.4], (0.1, 0.2, 0.3, 0.4)),
    ],
)
def test_box_within_a_pixel_of_the_edge_is_clipped(tmp_path, bbox, kept):
    (first, _) = data.load_dataset(write_set(tmp_path, annotations=box(bbox))).truths
    assert first.boxes == (pytest.approx(kept),)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (box([1, 1, 0, 5]), ["annotation id 12: width 0, height 5"]),
        (box([1, 1, 3, -5]), ["height -5"]),
        (box([1, float("nan"), 3, 5]), ["nan"]),
        (box([1, 1, float("inf"), 5]), ["inf"]),
        (box([1, 1, 3]), ["bbox [1, 1, 3]"]),
        (box(["1", 1, 3, 3]), ["bbox"]),
        (box(None), ["bbox None"]),
        (box([1, 1, 3, 3], area=-2), ["area -2"]),
        (box([1, 1, 3, 3], iscrowd=2), ["iscrowd 2"]),
        ([{"image_id": 4, "category_id": 3}], ["annotations[0]: bbox None"]),
    ],
)
def test_boxes_that_are_not_boxes(tmp_path, entry, words):
    refused(write_set(tmp_path, annotations=entry), "data-box", *words)


def test_size_that_disagrees_names_the_image(tmp_path):
    images = [{"id": 4, "file_name": "a.png", "width": 30, "height": 40}]
    refused(write_set(tmp_path, images=images, annotations=[]), "data-size", "a.png: 40 x 30 in the json, decodes to 30 x 40")
    images[0]["width"] = None
    refused(write_set(tmp_path, images=images, annotations=[]), "data-size", "None")


def test_file_that_is_no_image(tmp_path):
    ref = write_set(tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(b"text")
    with pytest.raises(BadInput, match=r"a\.png"):
        data.load_dataset(ref)


def test_image_that_vanishes_before_it_is_read(tmp_path):
    dataset = data.load_dataset(write_set(tmp_path))
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(BadInput) as caught:
        data.read_bytes(dataset.images[0])
    assert caught.value.code == "data-unreadable"
