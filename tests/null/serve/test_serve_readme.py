"""The README of a container's repository says what is there."""

from __future__ import annotations

import re
import shlex

import pytest
from release_cases import given_files, onnx_engine, release, tensorrt_engine

from redline.errors import BadInput
from redline.serve import schema
from redline.serve.repository import write_repository
from redline.serve.schema import CONTAINERS, server_number, unknown_fields


def written(tmp_path, of, **more):
    folder = tmp_path / "repository"
    write_repository(folder, of, "container", **given_files(tmp_path / "given"), **more)
    return folder, (folder / "README.md").read_text()


def start_command(text):
    """Words of the docker run line."""
    block = re.search(r"^docker run.*?(?=\n```)", text, re.DOTALL | re.MULTILINE)
    return shlex.split(block[0].replace("\\\n", " "))


@pytest.mark.parametrize("pipeline", ["fused", "bls", "ensemble"])
def test_it_starts_exactly_the_models_that_are_there(tmp_path, pipeline):
    folder, text = written(tmp_path, release(pipeline, engine=tensorrt_engine()))
    words = start_command(text)
    loaded = [word.partition("=")[2] for word in words if word.startswith("--load-model=")]
    assert sorted(loaded) == sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert "--model-control-mode=explicit" in words
    assert words[words.index("--gpus") + 1] == "all"
    assert words[words.index("-v") + 1] == "$PWD:/models:ro"


def test_every_port_is_on_the_loopback_interface(tmp_path):
    words = start_command(written(tmp_path, release("bls"))[1])
    ports = [words[index + 1] for index, word in enumerate(words) if word == "-p"]
    assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:8002:8002"]


@pytest.mark.parametrize(("device", "gpus"), [("cpu", None), ("cuda:0", "GPU 0 of"), ("cuda:0,2", "GPU 0 and 2 of")])
def test_it_asks_for_gpus_where_the_network_runs_on_them(tmp_path, device, gpus):
    text = written(tmp_path, release("bls", device=device))[1]
    assert ("--gpus" in start_command(text)) == (gpus is not None)
    assert ("CUDA_DEVICE_ORDER=PCI_BUS_ID" in start_command(text)) == (gpus is not None)
    assert (gpus or "on the CPU") in text


def test_it_says_what_was_not_tried_and_which_tensorrt_the_plan_needs(tmp_path):
    text = written(tmp_path, release("bls", engine=tensorrt_engine()))[1]
    assert "**no server has loaded it yet**" in text
    assert "tensorrt 10.5.0 on H100 9.0" in text
    assert "redline build d.toml --precision fp16" in text
    assert "tensorrt backend" in text


def test_an_onnx_release_speaks_of_no_plan(tmp_path):
    assert "plan was built" not in written(tmp_path, release("bls", engine=onnx_engine()))[1]


@pytest.mark.parametrize(("version", "image"), [(None, "24.10"), ("2.60.0", "25.08")])
def test_the_image_is_the_one_with_the_server_it_was_rendered_for(tmp_path, version, image):
    text = written(tmp_path, release("bls"), server_version=version)[1]
    assert set(re.findall(r"tritonserver:(\d+\.\d+)-py3", text)) == {image}


def test_a_server_that_no_image_is_known_for_is_refused(tmp_path):
    with pytest.raises(BadInput) as error:
        written(tmp_path, release("bls"), server_version="2.51.7")
    assert error.value.code == "server-version"
    assert not (tmp_path / "repository").exists()


def test_an_embedded_repository_has_no_readme(tmp_path):
    write_repository(tmp_path / "repository", release(), "embedded", **given_files(tmp_path / "given"))
    assert not (tmp_path / "repository" / "README.md").exists()


def test_containers_and_servers_ascend_together():
    versions = [tuple(map(int, version.split("."))) for version in CONTAINERS]
    assert versions == sorted(versions)
    assert list(CONTAINERS.values()) == sorted(CONTAINERS.values())
    assert server_number("2.51.0") == (2, 51)


def test_a_field_that_no_table_has_is_known_to_no_server(monkeypatch):
    """A client library newer than the table may know fields that no server in it does."""
    from redline.serve.config import render

    config = render(release("bls"), "embedded")[0].config
    assert list(unknown_fields(config, "2.71.0")) == []
    monkeypatch.setitem(schema.FIELDS, "ModelInstanceGroup", "name kind")
    assert list(unknown_fields(config, "2.71.0")) == ["instance_group[0].count"]
    monkeypatch.setitem(schema.FIELDS, "ModelWarmup.Input", "data_type dims")
    assert "model_warmup[0].inputs[images].zero_data" in list(unknown_fields(config, "2.71.0"))
