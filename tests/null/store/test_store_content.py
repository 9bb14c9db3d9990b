"""The store on a real file system: round trips, faults, several processes, kills."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import redline.store.disk
from redline.errors import BadInput, StoreError
from redline.records import Noise
from redline.store import Journal, Store, digest_of, dump

NOISE = Noise(p95_ms=(1.0, 2.0), relative=0.25)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.sampled_from(["", ".onnx", ".bin", ".meta", "/../x", ".a.b"]))
def test_bytes_come_back_and_are_stored_once(contents, suffix):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        digests = [store.put_bytes(data, kind="blob", suffix=suffix) for data in contents + contents]
        assert digests == [digest_of(data) for data in contents + contents]
        assert [store.path(digest).read_bytes() for digest in digests] == contents + contents
        assert sorted(store.digests()) == sorted(set(digests))
        assert not list(store.scratch.glob("*"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(allow_nan=False), max_size=5), st.floats(allow_nan=False))
def test_records_come_back(p95_ms, relative):
    with tempfile.TemporaryDirectory() as folder:
        record = Noise(p95_ms=tuple(p95_ms), relative=relative)
        digest = Store(Path(folder)).put_record(record, kind="noise")
        assert digest == digest_of(record)
        assert Store(Path(folder)).get_record(Noise, digest) == record


def test_nothing_is_made_before_the_first_put(store):
    with pytest.raises(StoreError) as caught:
        store.get_record(Noise, "0" * 64)
    assert caught.value.code == "store.absent"
    assert not store.root.exists()


def test_file_is_streamed_with_its_suffix_and_described(store, tmp_path, monkeypatch):
    monkeypatch.setattr(redline.store.disk, "CHUNK_BYTES", 1000)
    source = tmp_path / "net.onnx"
    source.write_bytes(os.urandom(12_345))
    digest = store.put_file(source, kind="onnx", parents=["a" * 64], stage="export")
    assert store.path(digest).is_absolute()
    assert store.path(digest).suffix == ".onnx"
    assert store.path(digest).read_bytes() == source.read_bytes()
    meta = store.meta(digest)
    assert (meta.kind, meta.bytes, meta.stage, meta.parents) == ("onnx", 12_345, "export", ("a" * 64,))
    assert "python" in {tool.name for tool in meta.tools}


def test_same_bytes_under_another_suffix_stay_one_object(store):
    first = store.put_bytes(b"x", kind="a", suffix=".one")
    second = store.put_bytes(b"x", kind="b", suffix=".two")
    assert first == second
    assert store.meta(first).kind == "a"
    assert [path.suffix for path in store.path(first).parent.iterdir() if path.suffix != ".meta"] == [".one"]


def test_a_missing_source_is_a_readable_error(store, tmp_path):
    with pytest.raises(StoreError) as caught:
        store.put_file(tmp_path / "none.onnx", kind="onnx")
    assert "none.onnx" in str(caught.value)
    assert not list(store.digests())


def test_prefixes(store):
    digest = store.put_bytes(b"x", kind="a")
    assert store.resolve(digest) == store.resolve(digest[:6]) == store.resolve(digest[:9].upper()) == digest
    for bad, code in ((digest[:5], "store.prefix"), ("../../etc", "store.prefix"), ("0" * 64 + "0", "store.prefix")):
        with pytest.raises(BadInput) as caught:
            store.resolve(bad)
        assert caught.value.code == code
    with pytest.raises(BadInput) as caught:
        store.resolve("f" * 6 if not digest.startswith("f" * 6) else "e" * 6)
    assert caught.value.code == "store.unknown"


def test_an_ambiguous_prefix_names_the_objects(store):
    folder = store.root / "objects" / "ab"
    folder.mkdir(parents=True)
    for last in "12":
        (folder / ("ab" + "c" * 61 + last + ".meta")).write_bytes(b"{}")
    with pytest.raises(BadInput) as caught:
        store.resolve("abcccc")
    assert caught.value.code == "store.ambiguous"


def test_a_damaged_object_is_never_returned(store):
    digest = store.put_record(NOISE, kind="noise")
    store.path(digest).write_bytes(dump(Noise(p95_ms=(9.0, 2.0), relative=0.25)))
    with pytest.raises(StoreError) as caught:
        store.get_record(Noise, digest)
    assert caught.value.code == "store.corrupt"
    assert store.put_record(NOISE, kind="noise") == digest
    assert store.get_record(Noise, digest) == NOISE


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "store.full"), (errno.EACCES, "store.permission"), (errno.EIO, "store.io")]
)
@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_a_failing_disk_leaves_the_store_as_it_was(store, monkeypatch, number, code, failing):
    digest = store.put_record(NOISE, kind="noise")
    before = files(store.root)

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    if failing == "write":
        real_open = open

        class Full:
            def __init__(self, *args):
                self.file = real_open(*args)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.file.write(data[: len(data) // 2])
                fail()

        monkeypatch.setattr(redline.store.disk, "open", Full, raising=False)
    else:
        monkeypatch.setattr(redline.store.disk.os, failing, fail)
    with pytest.raises(StoreError) as caught:
        store.put_bytes(b"y" * 1000, kind="blob")
    monkeypatch.undo()
    assert caught.value.code == code
    assert files(store.root) == before
    assert store.get_record(Noise, digest) == NOISE


def test_a_disk_that_fills_before_the_description_leaves_nothing(store, monkeypatch):
    store.put_record(NOISE, kind="noise")
    before = files(store.root)
    real = os.replace

    def full(source, target):
        if str(target).endswith(".meta"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(redline.store.disk.os, "replace", full)
    with pytest.raises(StoreError):
        store.put_bytes(b"y", kind="blob")
    monkeypatch.undo()
    assert files(store.root) == before


def test_a_file_size_limit_of_the_kernel_is_a_store_error(tmp_path):
    """A real failing write(2), without root: RLIMIT_FSIZE."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from redline.errors import StoreError
        from redline.store import Store
        store = Store(Path(sys.argv[1]))
        kept = store.put_bytes(b"kept", kind="blob")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.put_bytes(b"y" * 1_000_000, kind="blob")
        except StoreError as error:
            print(error.code, len(list(store.digests())), store.path(kept).read_bytes(), len(list(store.scratch.glob("*"))))
    """
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["store.io", "1", "b'kept'", "0"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device_is_a_store_error(tmp_path):
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError) as caught:
        Journal(tmp_path / "journal.jsonl").append("stage", {}, None, 0.0, "computed")
    assert caught.value.code in {"store.full", "store.io"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")
def test_a_folder_without_permission_is_a_store_error(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreError) as caught:
        Store(folder / "store").put_bytes(b"x", kind="blob")
    assert caught.value.code == "store.permission"


def test_a_file_where_the_folder_should_be_is_a_store_error(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError):
        Store(tmp_path / "store").put_bytes(b"x", kind="blob")
    assert (tmp_path / "store").read_text() == "not a folder"


@pytest.mark.parametrize("point", ["before-rename", "before-meta"])
def test_killed_while_writing_leaves_no_object(tmp_path, point):
    script = """
        import os, signal, sys
        from pathlib import Path
        from redline.store import Store
        real = os.replace
        def die(source, target):
            if sys.argv[2] == "before-rename" or str(target).endswith(".meta"):
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = die
        Store(Path(sys.argv[1])).put_bytes(b"x" * 100_000, kind="blob", suffix=".onnx")
    """
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), point]
    assert subprocess.run(run, check=False).returncode == -signal.SIGKILL
    store = Store(tmp_path)
    digest = digest_of(b"x" * 100_000)
    assert not store.has(digest)
    assert not list(store.digests())
    assert store.put_bytes(b"x" * 100_000, kind="blob", suffix=".onnx") == digest
    assert store.path(digest).stat().st_size == 100_000


def test_a_killed_holder_blocks_nobody(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        from redline.store import Store
        with Store(Path(sys.argv[1])).lock("name"):
            print("held", flush=True)
            time.sleep(60)
    """
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    waited: list[str] = []
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"

        def on_wait(name: str) -> None:
            waited.append(name)
            holder.kill()

        with Store(tmp_path, on_wait=on_wait).lock("name"):
            pass
    assert [text.rpartition(": ")[2] for text in waited] == ["name"]


def test_lock_names_cannot_leave_the_folder(store):
    for name in ("../x", "a/b", "", ".", "ü" * 300):
        with store.lock(name):
            pass
    assert all(path.parent == store.root / "locks" for path in store.root.rglob("*") if path.is_file() and path.name != "gate")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_tiny_file_system_that_fills_keeps_what_it_had(tmp_path):
    """512 KiB of tmpfs in a user namespace of its own."""
    script = """
        import sys
        from pathlib import Path
        from redline.errors import StoreError
        from redline.store import Store
        store = Store(Path(sys.argv[1]))
        kept = store.put_bytes(b"kept", kind="blob")
        try:
            store.put_bytes(b"y" * 1_000_000, kind="blob")
        except StoreError as error:
            again = store.put_bytes(b"z" * 100_000, kind="blob")
            print(error.code, len(list(store.digests())), store.path(kept).read_bytes(), len(list(store.scratch.glob("*"))))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    (tmp_path / "disk").mkdir()
    shell = 'mount -t tmpfs -o size=512k none "$1" 2>/dev/null || exit 77; exec "$2" "$3" "$1/store"'
    arguments = ["sh", str(tmp_path / "disk"), sys.executable, str(tmp_path / "script.py")]
    run = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.stdout.split() == ["store.full", "2", "b'kept'", "0"]
