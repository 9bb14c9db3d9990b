"""Writing a repository: what is there, that it is all or nothing, and how the stable names move."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from release_cases import IMAGES, NETWORK, given_files, onnx_engine, release, sha, tensorrt_engine, tree
from tritonclient.grpc import model_config_pb2 as triton

from redline.errors import BadInput, StoreError
from redline.records import Head
from redline.records.serve import Golden, Release
from redline.serve.config import adapted, render
from redline.serve.material import BOOTSTRAP, SOURCES, TENSORRT_SOURCES
from redline.serve.repository import releases_in, remove_release, stable_releases, write_repository, write_stable
from redline.store import load

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def given(tmp_path):
    """What a release is written from, with a redline of few files: what is copied of the real one has a test of its own."""
    code = tmp_path / "code"
    for name in (*SOURCES, *TENSORRT_SOURCES, BOOTSTRAP):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(f"# {name}\n")
    return {**given_files(tmp_path / "given"), "code_root": code}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """What is written here need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "repository"


def config(path):
    return text_format.Parse(path.read_text(), triton.ModelConfig())


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_a_fused_release_consists_of(folder, given):
    models = write_repository(folder, release(), "embedded", **given)
    assert [files.name for files in models] == ["detector_r3_tensor", "detector_r3"]
    assert sorted(path.name for path in folder.iterdir()) == ["detector_r3", "detector_r3_tensor"]
    entry = folder / "detector_r3"
    assert (entry / "config.pbtxt").read_text() == models[1].text
    material = entry / "3"
    assert (material / "network.onnx").read_bytes() == NETWORK
    assert load(Release, (material / "release.json").read_bytes()) == release()
    assert (material / "golden" / "b.png").read_bytes() == IMAGES["b.png"]
    assert (entry / "warmup" / "a.jpg.string").read_bytes().endswith(IMAGES["a.jpg"])
    assert files_of(folder / "detector_r3_tensor") == [
        "3/__pycache__",
        "3/model.py",
        "config.pbtxt",
        "warmup/placement-96x96.f64",
    ]
    assert (material / "model.py").read_bytes() == (folder / "detector_r3_tensor/3/model.py").read_bytes()


def test_an_ensemble_has_its_version_folders_and_each_network_one_place(folder, given):
    write_repository(folder, release("ensemble"), "embedded", **given)
    assert files_of(folder / "detector_r3_tensor") == ["3/__pycache__", "3/model.py", "config.pbtxt"]
    assert [path for path in files_of(folder) if path.endswith("network.onnx")] == ["detector_r3/3/network.onnx"]
    assert "detector_r3/3/model.py" not in files_of(folder), "an ensemble has no code of its own"


@pytest.mark.parametrize(("engine", "name"), [(onnx_engine(), "model.onnx"), (tensorrt_engine(), "model.plan")])
def test_in_the_container_the_servers_backend_has_the_network(folder, given, engine, name):
    of = release("fused", engine=engine)
    write_repository(folder, of, "container", **given)
    assert [path for path in files_of(folder) if path.endswith((".onnx", ".plan"))] == [f"detector_r3_network/3/{name}"]
    assert load(Release, (folder / "detector_r3/3/release.json").read_bytes()) == adapted(of, "container")
    assert (folder / "README.md").exists()


def test_releases_lie_beside_each_other(folder, given):
    for number in (10, 9, 2):
        write_repository(folder, release("bls", number=number), "embedded", **given)
    write_repository(folder, replace(release("fused", number=4), service="detector-two"), "embedded", **given)
    assert releases_in(folder, "detector") == (2, 9, 10)
    assert releases_in(folder, "detector-two") == (4,)
    assert releases_in(folder, "other") == ()
    assert releases_in(folder / "absent", "detector") == ()


def test_a_release_never_changes(folder, given):
    write_repository(folder, release(), "embedded", **given)
    before = tree(folder)
    with pytest.raises(BadInput) as error:
        write_repository(folder, release("bls"), "embedded", **given)
    assert error.value.code == "release-exists"
    assert tree(folder) == before


def wrong_cases():
    other = Golden(file="c.jpg", sha256="0" * 64, boxes=(), scores=(), labels=())
    return {
        "release-engine-missing": (release(), {"network_file": Path("/nowhere/net")}, "run-7"),
        "release-engine-digest": (replace(release(), engine=replace(onnx_engine(), digest="1" * 64)), {}, sha(NETWORK)),
        "release-golden": (replace(release(), golden=(other,)), {}, "c.jpg"),
        "head-function": (replace(release(), head=Head(kind="custom", function="no_such_module_here:f")), {}, "not found"),
        "release-device": (release("bls", engine=tensorrt_engine(), device="cpu"), {}, "TensorRT"),
        "server-version": (release(), {"server_version": "1.2.3"}, "1.2.3"),
    }


@pytest.mark.parametrize("code", wrong_cases())
def test_bad_input_is_told_and_writes_nothing(folder, given, code):
    of, changes, told = wrong_cases()[code]
    with pytest.raises(BadInput) as error:
        write_repository(folder, of, "embedded", **{**given, **changes})
    assert error.value.code == code
    assert told in str(error.value)
    assert not folder.exists()


@pytest.mark.parametrize("change", ["content", "path"])
def test_golden_images_are_the_releases_own(folder, given, change):
    of = release()
    if change == "content":
        given["golden_files"]["a.jpg"].write_bytes(b"another image")
    else:
        golden = replace(of.golden[0], file="../a.jpg")
        of, given["golden_files"] = replace(of, golden=(golden,)), {"../a.jpg": given["golden_files"]["a.jpg"]}
    with pytest.raises(BadInput) as error:
        write_repository(folder, of, "embedded", **given)
    assert error.value.code == "release-golden"
    assert not folder.exists()


class Failing:
    """The system calls of `os` that write; the chosen one fails as on a full disk."""

    def __init__(self, monkeypatch, names=("mkdir", "rename", "replace", "fsync", "utime")):
        self.count, self.fail_at = 0, 0
        for name in names:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name))

    def _counted(self, call, name):
        def counted(*arguments, **more):
            # mkdir of a folder that is there writes nothing.
            self.count += not (name == "mkdir" and os.path.isdir(arguments[0]))
            if self.count == self.fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **more)

        return counted

    def at_every_call(self, work, check):
        """Run `work` with its first, second ... call failing, `check` after each, until nothing fails. Returns the calls."""
        for number in range(1, 2000):
            self.count, self.fail_at = 0, number
            try:
                work()
            except StoreError as error:
                self.fail_at = 0
                check(error)
            else:
                assert self.count < number, "a failed call went unnoticed"
                return number - 1
        raise AssertionError("it never finished")


def told_full(error):
    assert error.code == "store.full"
    assert "free some space" in str(error)


ALL = ("mkdir", "rename", "replace", "fsync", "utime")


@pytest.mark.parametrize(("target", "calls", "least"), [("embedded", ALL, 60), ("container", ("rename",), 3)])
def test_disk_full_at_any_write_leaves_the_repository_as_it_was(folder, given, monkeypatch, target, calls, least):
    write_repository(folder, release("bls", number=1), target, **given)
    write_stable(folder, "detector", release("bls", number=1))
    before = tree(folder)

    def unchanged(error):
        told_full(error)
        assert tree(folder) == before

    of = release("bls", number=2)
    assert Failing(monkeypatch, calls).at_every_call(lambda: write_repository(folder, of, target, **given), unchanged) >= least
    assert releases_in(folder, "detector") == (1, 2)


def test_disk_full_in_a_new_folder_leaves_no_folder(tmp_path, given, monkeypatch):
    folder = tmp_path / "new" / "deeper"

    def absent(error):
        told_full(error)
        assert not folder.parent.exists()

    Failing(monkeypatch, ("mkdir", "rename")).at_every_call(
        lambda: write_repository(folder, release(), "embedded", **given), absent
    )
    assert releases_in(folder, "detector") == (3,)


def test_disk_full_while_promoting_leaves_both_names_as_they_were(folder, given, monkeypatch):
    for number in (1, 2):
        write_repository(folder, release("bls", number=number), "embedded", **given)
    write_stable(folder, "detector", release("bls", number=1))
    before = tree(folder)

    def unchanged(error):
        told_full(error)
        assert tree(folder) == before
        assert stable_releases(folder, "detector") == (1,)

    of = release("bls", number=2)
    assert Failing(monkeypatch).at_every_call(lambda: write_stable(folder, "detector", of), unchanged) > 10
    assert stable_releases(folder, "detector") == (2,)


def test_disk_full_at_the_first_promotion_leaves_no_name(folder, given, monkeypatch):
    write_repository(folder, release(), "embedded", **given)
    before = tree(folder)

    def unchanged(error):
        told_full(error)
        assert tree(folder) == before

    Failing(monkeypatch).at_every_call(lambda: write_stable(folder, "detector", release()), unchanged)
    assert stable_releases(folder, "detector") == (3,)


def test_disk_full_while_removing_removes_nothing(folder, given, monkeypatch):
    write_repository(folder, release("ensemble"), "embedded", **given)
    before = tree(folder)

    def unchanged(error):
        told_full(error)
        assert tree(folder) == before

    assert Failing(monkeypatch).at_every_call(lambda: remove_release(folder, "detector", 3), unchanged) > 5
    assert tree(folder) == {}


def in_child(work, *arguments):
    """Run `work` in a process of its own, forked; returns its exit code and what it put into its queue."""
    told = FORK.SimpleQueue()
    process = FORK.Process(target=work, args=(told, *arguments))
    process.start()
    process.join(60)
    return process.exitcode, None if told.empty() else told.get()


def write_a_large_network(told, folder, of, given, before):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        write_repository(folder, of, "embedded", **given)
    except StoreError as error:
        told.put((error.code, error.got, tree(folder) == before))


def test_the_kernel_refusing_a_large_file_is_told_and_leaves_nothing(folder, given):
    """RLIMIT_FSIZE: write(2) itself fails in the middle of the network, as on a full disk."""
    write_repository(folder, release(number=1), "embedded", **given)
    large = b"x" * 3_000_000
    given["network_file"].write_bytes(large)
    of = release(number=2, engine=replace(onnx_engine(), digest=sha(large)))
    code, told = in_child(write_a_large_network, folder, of, given, tree(folder))
    assert (code, told) == (0, ("store.io", "File too large", True))


def write_and_die(told, folder, given, renames):
    left, rename = iter(range(renames)), os.rename

    def counted(source, target):
        if next(left, None) is None:
            os._exit(9)
        rename(source, target)

    os.rename = counted
    write_repository(folder, release("bls", number=5), "embedded", **given)


@pytest.mark.parametrize("renames", range(3))
def test_a_kill_between_two_models_is_repaired_by_the_next_write(folder, given, renames):
    """The entry model comes last: what a killed process left is no release, and is replaced."""
    assert in_child(write_and_die, folder, given, renames) == (9, None)
    assert releases_in(folder, "detector") == ()
    assert len([path for path in folder.iterdir() if path.name.startswith("detector")]) == renames
    assert any(path.name.startswith(".scratch-") for path in folder.iterdir())
    of = release("bls", number=5)
    write_repository(folder, of, "embedded", **given)
    assert releases_in(folder, "detector") == (5,)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.name for files in render(of, "embedded"))


def write_once(told, folder, given):
    try:
        write_repository(folder, release(), "embedded", **given)
        told.put("written")
    except BadInput as error:
        told.put(error.code)


def test_two_writers_of_one_number_make_one_release(folder, given):
    told = FORK.SimpleQueue()
    writers = [FORK.Process(target=write_once, args=(told, folder, given)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sorted(told.get() for _ in writers) == ["release-exists", "written"]


def test_stable_names_move_to_and_fro(folder, given):
    for number in (1, 2):
        write_repository(folder, release("bls", number=number), "embedded", **given)
    for number in (1, 2, 1):
        write_stable(folder, "detector", release("bls", number=number))
        assert stable_releases(folder, "detector") == (number,)
        for name in ("detector", "detector_tensor"):
            (step,) = config(folder / name / "config.pbtxt").ensemble_scheduling.step
            assert step.model_version == number
            assert files_of(folder / name) == [f"{number}/.gitkeep", "config.pbtxt"]


def newest(folder):
    """As Triton compares: the latest modification of anything in a model's folder."""
    return max(path.stat().st_mtime_ns for path in (folder, *folder.rglob("*")))


def test_a_promotion_is_newer_even_if_the_clock_went_back(folder, given):
    """Triton reloads a model only if the newest thing in its folder became newer."""
    for number in (1, 2):
        write_repository(folder, release("bls", number=number), "embedded", **given)
    write_stable(folder, "detector", release("bls", number=1))
    tomorrow = newest(folder / "detector") + 86_400 * 10**9
    os.utime(folder / "detector" / "config.pbtxt", ns=(tomorrow, tomorrow))
    write_stable(folder, "detector", release("bls", number=2))
    assert newest(folder / "detector") > tomorrow
    seen = newest(folder / "detector_tensor")
    write_stable(folder, "detector", release("bls", number=2))
    assert newest(folder / "detector_tensor") > seen


def test_promoting_what_is_not_there_is_refused(folder, given):
    write_repository(folder, release(number=1), "embedded", **given)
    before = tree(folder)
    with pytest.raises(BadInput) as error:
        write_stable(folder, "detector", release(number=2))
    assert (error.value.code, error.value.allowed) == ("release-absent", "1")
    assert tree(folder) == before


def test_removing_a_release(folder, given):
    for number in (1, 11):
        write_repository(folder, release("ensemble", number=number), "embedded", **given)
    write_stable(folder, "detector", release("ensemble", number=11))
    with pytest.raises(BadInput) as error:
        remove_release(folder, "detector", 11)
    assert error.value.code == "release-in-use"
    assert remove_release(folder, "detector", 1)
    assert not remove_release(folder, "detector", 1)
    assert releases_in(folder, "detector") == (11,)
    assert not [path for path in folder.iterdir() if path.name.startswith(("detector_r1_", ".scratch"))]


def test_a_damaged_stable_name_is_an_error_not_a_traceback(folder, given):
    write_repository(folder, release(), "embedded", **given)
    write_stable(folder, "detector", release())
    (folder / "detector" / "config.pbtxt").write_bytes(b"\xff\xfe not a config")
    with pytest.raises(StoreError) as error:
        stable_releases(folder, "detector")
    assert error.value.code == "store.config"


def test_a_folder_that_cannot_be_written_is_told(tmp_path, given):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as error:
        write_repository(tmp_path / "file" / "repository", release(), "embedded", **given)
    assert error.value.code == "store.io"
    assert "file/repository" in str(error.value)
