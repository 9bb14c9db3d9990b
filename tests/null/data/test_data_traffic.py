"""Traffic: histogram, CSV with line numbers in its errors, and a request order that follows the shares."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline import data
from redline.errors import BadInput
from redline.records import Dataset, ImageRef, ShapeShare, Traffic


def sized(*shapes):
    images = tuple(ImageRef(id=k, path="", height=h, width=w, sha256="") for k, (h, w) in enumerate(shapes))
    return Dataset(name="sized", images=images, truths=None, categories=(), digest="")


def load(tmp_path, text):
    path = tmp_path / "traffic.csv"
    path.write_text(text)
    return data.load_traffic(str(path), sized((10, 10)))


def test_default_is_the_histogram_of_the_set():
    traffic = data.load_traffic(None, sized((3, 4), (5, 6), (3, 4), (9, 9)))
    assert traffic.origin == "evaluation images"
    assert [(s.height, s.width, s.share) for s in traffic.shapes] == [(3, 4, 0.5), (5, 6, 0.25), (9, 9, 0.25)]


def test_file_is_merged_normalised_and_sorted(tmp_path):
    traffic = load(tmp_path, "height,width,share\n480,640,1\n\n 720, 1280 ,5\n480,640,2\n8,8,0\n")
    assert [(s.height, s.width, s.share) for s in traffic.shapes] == [(720, 1280, 0.625), (480, 640, 0.375)]
    assert traffic.origin.endswith("traffic.csv")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("480,640,1\n", "traffic-header", ["line 1", "height,width,share"]),
        ("height,width,share\n480,640,1\n480,wide,1\n", "traffic-line", ["line 3", "480,wide,1"]),
        ("height,width,share\n480,640.5,1\n", "traffic-line", ["line 2", "whole pixels"]),
        ("height,width,share\n480,640\n", "traffic-line", ["line 2"]),
        ("height,width,share\n480,640,1,7\n", "traffic-line", ["line 2", "4 cells"]),
        ("height,width,share\n\n0,640,1\n", "traffic-line", ["line 3", "out of range"]),
        ("height,width,share\n480,-640,1\n", "traffic-line", ["line 2", "out of range"]),
        ("height,width,share\n480,65536,1\n", "traffic-line", ["line 2", "65,535"]),
        ("height,width,share\n480,640,-1\n", "traffic-line", ["line 2", "out of range"]),
        ("height,width,share\n480,640,nan\n", "traffic-line", ["line 2", "out of range"]),
        ("height,width,share\n480,640,0\n", "traffic-empty", ["1 shapes with a sum of shares of 0"]),
        ("height,width,share\n", "traffic-empty", ["0 shapes"]),
        ("", "traffic-empty", ["0 shapes"]),
    ],
)
def test_bad_files(tmp_path, text, code, words):
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.text()


def test_missing_and_binary_file(tmp_path):
    with pytest.raises(BadInput) as caught:
        data.load_traffic(str(tmp_path / "no.csv"), sized((1, 1)))
    assert caught.value.code == "traffic-not-found"
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xff")
    with pytest.raises(BadInput) as caught:
        data.load_traffic(str(tmp_path / "bytes.csv"), sized((1, 1)))
    assert caught.value.code == "traffic-unreadable"


def test_order_uses_the_nearest_shape_and_reports_unseen_ones():
    dataset = sized((480, 640), (720, 1280), (720, 1280), (32, 32))
    shapes = (ShapeShare(height=700, width=1300, share=0.75), ShapeShare(height=480, width=640, share=0.25))
    traffic = Traffic(shapes=shapes, origin="test")
    order = data.request_order(dataset, traffic, 40, seed=1)
    assert Counter(order) == {1: 15, 2: 15, 0: 10}
    assert data.unseen_shapes(dataset, traffic) == shapes[:1]
    assert order == data.request_order(dataset, traffic, 40, seed=1) != data.request_order(dataset, traffic, 40, seed=2)


@given(
    shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=9),
    count=st.integers(0, 300),
    seed=st.integers(0, 5),
)
def test_order_follows_the_shares_to_within_one_request(shares, count, seed):
    dataset = sized(*((10 * (k + 1), 20) for k in range(len(shares))))
    total = sum(shares)
    shapes = tuple(ShapeShare(height=10 * (k + 1), width=20, share=share / total) for k, share in enumerate(shares))
    order = data.request_order(dataset, Traffic(shapes=shapes, origin="test"), count, seed)
    assert len(order) == count
    got = Counter(order)
    for index, shape in enumerate(shapes):
        assert abs(got[index] - shape.share * count) <= 1
