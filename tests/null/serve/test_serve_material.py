"""The code that a release carries: complete, the one that runs, with the user's head; and the model.py that starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from release_cases import given_files, release, tensorrt_engine

import redline
from redline.errors import BadInput
from redline.records import Head
from redline.serve.material import BOOTSTRAP, installed_code
from redline.serve.repository import write_repository


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A repository with the real code."""
    folder = tmp_path_factory.mktemp("material")
    write_repository(folder / "repository", release("bls"), "embedded", **given_files(folder / "given"))
    return folder / "repository"


def in_python(script, *arguments):
    """What `script` prints as JSON, in a Python without this project on its path (-I: nor the environment's)."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FAKE_TRITON = """
import json, sys, types
pb = types.ModuleType("triton_python_backend_utils")
pb.TritonError = type("TritonError", (), {"INVALID_ARG": 1, "INTERNAL": 2})
sys.modules["triton_python_backend_utils"] = pb
"""
LOADED = """
print(json.dumps({name: getattr(module, "__file__", "") for name, module in sys.modules.items()
                  if name.split(".")[0] in ("redline", "pydantic", "torch", "grpc")}))
"""


def test_the_copied_code_is_complete_and_alone(written):
    """All modules of the copy import, from the copy alone, and load nothing that the server's Python lacks."""
    code = written / "detector_r3" / "3" / "code"
    modules = [".".join(path.relative_to(code).with_suffix("").parts) for path in sorted(code.rglob("*.py"))]
    modules = [module.removesuffix(".__init__") for module in modules if module != "redline.engine.onnxruntime_runner"]
    assert "redline.backend.model" in modules
    imports = "".join(f"import {module}\n" for module in modules)
    loaded = in_python(
        f"{FAKE_TRITON}\nsys.dont_write_bytecode = True\nsys.path.insert(0, sys.argv[1])\n{imports}{LOADED}", code
    )
    assert set(modules) <= set(loaded)
    assert {name for name, path in loaded.items() if not path.startswith(str(code))} == set()


FAKE_CUDA = """
import sys, types
runtime = types.ModuleType("cuda.bindings.runtime")
runtime.cudaError_t = runtime.cudaMemcpyKind = runtime.cudaStreamCaptureMode = object
bindings = types.ModuleType("cuda.bindings")
bindings.runtime = runtime
sys.modules.update({"cuda": types.ModuleType("cuda"), "cuda.bindings": bindings, "cuda.bindings.runtime": runtime})
"""


def test_a_plan_brings_its_runner_and_an_onnx_network_does_not(written, tmp_path):
    of = release("fused", engine=tensorrt_engine())
    write_repository(tmp_path / "repository", of, "embedded", **given_files(tmp_path / "given"))
    code = tmp_path / "repository" / "detector_r3" / "3" / "code"
    engine = {path.stem for path in (code / "redline" / "engine").glob("*.py")}
    assert engine >= {"tensorrt_place", "tensorrt_runner", "tensorrt_versions", "cuda"}
    assert not {path.stem for path in (written / "detector_r3" / "3" / "code" / "redline" / "engine").glob("tensorrt*")}
    assert (code.parent / "network.plan").is_file()
    imports = "".join(f"import redline.engine.{name}\n" for name in sorted(engine - {"__init__", "onnxruntime_runner"}))
    script = f"import json\n{FAKE_CUDA}\nsys.dont_write_bytecode = True\nsys.path.insert(0, sys.argv[1])\n{imports}{LOADED}"
    loaded = in_python(script, code)
    assert {name for name, path in loaded.items() if not path.startswith(str(code))} == set()


def test_the_copy_is_the_running_code(written):
    code = written / "detector_r3" / "3" / "code" / "redline"
    for path in code.rglob("*.py"):
        assert path.read_bytes() == (installed_code() / path.relative_to(code)).read_bytes()
    assert installed_code().name == redline.__name__


FAKE_MODEL = """
class TritonPythonModel:
    def initialize(self, args): self.args = args
    def execute(self, requests): return [request * 2 for request in requests]
    def finalize(self): self.args = "ended"
"""


def test_model_py_runs_the_code_of_its_material_and_no_other(written, tmp_path):
    """As Triton runs it, with another redline on the path already."""
    for folder, text in (("other", "raise ImportError('the wrong redline')"), ("models/entry/3/code", "")):
        (tmp_path / folder / "redline" / "backend").mkdir(parents=True)
        (tmp_path / folder / "redline" / "__init__.py").write_text(text)
    (tmp_path / "models/entry/3/code/redline/backend/model.py").write_text(FAKE_MODEL)
    (tmp_path / "models/tensor/3").mkdir(parents=True)
    copied = tmp_path / "models/tensor/3/model.py"
    copied.write_bytes((written / "detector_r3_tensor" / "3" / "model.py").read_bytes())
    script = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
spec = importlib.util.spec_from_file_location("model", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
args = {"model_config": json.dumps({"parameters": {"material": {"string_value": "../entry/3"}}})}
model = module.TritonPythonModel()
model.initialize(args)
told = [model.execute([1, 2]), model._model.args == args, sys.modules["redline"].__file__]
model.finalize()
print(json.dumps([*told, model._model.args]))
"""
    found = in_python(script, tmp_path / "other", copied)
    assert found == [[2, 4], True, str(tmp_path / "models/entry/3/code/redline/__init__.py"), "ended"]


def test_python_writes_no_bytecode_into_a_release(written):
    """Triton would take it for a changed model: neither for model.py nor for what it imports."""
    before = set(written.rglob("*"))
    script = f"""{FAKE_TRITON}
import os
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import model
sys.path.insert(0, sys.argv[2])
import redline.vision
print(json.dumps([model.__file__, redline.vision.__file__]))
"""
    entry = written / "detector_r3" / "3"
    found = in_python(script, entry / "model.py", entry / "code")
    assert [path.startswith(str(entry)) for path in found] == [True, True]
    assert set(written.rglob("*")) == before


def head_module(tmp_path, monkeypatch, name, *, package):
    """A user's head function as a module or in a package, importable here."""
    root = tmp_path / "user"
    if package:
        (root / name / "inner" / "__pycache__").mkdir(parents=True)
        (root / name / "inner" / "__pycache__" / "heads.pyc").write_bytes(b"stale")
        (root / name / "__init__.py").write_text("")
        (root / name / "inner" / "__init__.py").write_text("")
        (root / name / "inner" / "heads.py").write_text("def head(outputs, hw): ...")
        (root / name / "anchors.json").write_text("[1, 2]")
    else:
        root.mkdir()
        (root / f"{name}.py").write_text("def head(outputs, hw): ...")
    monkeypatch.syspath_prepend(str(root))


PACKAGE = ["head_pack/__init__.py", "head_pack/anchors.json", "head_pack/inner/__init__.py", "head_pack/inner/heads.py"]


@pytest.mark.parametrize(
    ("package", "function", "copied"),
    [(False, "head_alone:head", ["head_alone.py"]), (True, "head_pack.inner.heads:head", PACKAGE)],
)
def test_the_users_head_travels_with_the_release(tmp_path, monkeypatch, package, function, copied):
    head_module(tmp_path, monkeypatch, function.partition(":")[0].partition(".")[0], package=package)
    of = replace(release(), head=Head(kind="custom", function=function))
    write_repository(tmp_path / "repository", of, "embedded", **given_files(tmp_path / "given"))
    code = tmp_path / "repository" / "detector_r3" / "3" / "code"
    others = sorted(str(path.relative_to(code)) for path in code.rglob("*") if path.is_file() and "redline" not in path.parts)
    assert others == copied


def test_a_head_without_source_files_is_refused(tmp_path):
    of = replace(release(), head=Head(kind="custom", function="sys:exit"))
    with pytest.raises(BadInput) as error:
        write_repository(tmp_path / "repository", of, "embedded", **given_files(tmp_path / "given"))
    assert error.value.code == "head-function"
    assert "built-in" in str(error.value)


def test_the_bootstrap_needs_the_standard_library_alone():
    source = (installed_code() / BOOTSTRAP).read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", *sys.stdlib_module_names}
