"""README.md of a repository for NVIDIA's container: how to start it, what was tried of it and what was not, how to go back."""

from __future__ import annotations

from collections.abc import Sequence

from redline.errors import BadInput
from redline.records.serve import Release
from redline.serve import names
from redline.serve.config import ModelFiles
from redline.serve.environment import NEEDS, SERVER_VERSION
from redline.serve.schema import CONTAINERS

PACKAGES = (*NEEDS, "pillow")
"""What the Python models import beside redline's own copy, as in the embedded server's Python."""
IMAGE = "tritonserver"
"""In NVIDIA's NGC catalogue."""

_TEXT = """\
# {service}, release {number}, for Triton in NVIDIA's container

Rendered by redline {redline} on {created} for Triton {version}, which is the image `{image}` of NVIDIA's NGC catalogue.

## Start

Put the image's full name, as the catalogue shows it, into `TRITON`:

```sh
docker build -t {service}-server - <<END
FROM $TRITON
RUN pip install --no-cache-dir {packages}
END

docker run --rm {gpus}--shm-size=1g -v "$PWD":/models:ro \\
  -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 {service}-server \\
  tritonserver --model-repository=/models --model-control-mode=explicit \\
    --strict-readiness=false --disable-auto-complete-config \\
    {loads}
```

Ready when `curl -f 127.0.0.1:8000/v2/models/{entry}/versions/{number}/ready` succeeds. Port 8000 is HTTP, 8001 gRPC, 8002 for
metrics. `{entry}` takes encoded images, `{tensor}` preprocessed tensors; the network is the model
`{network}` on the {backend} backend, on {device}.

- **Keep the ports on the loopback interface** and put a gateway in front. A form body over 4 MB or JSON nested 200,000 deep
  ends Triton 2.51.0, and it has no authentication.
- Send bodies as `application/octet-stream` or `application/json`.
- The Python models need {plain}; not onnxruntime, as the network runs in the
  server's own backend.
- The folder is mounted read-only. Triton takes any newer file in a model's folder for a changed model and loads it again.

## What was tried

The Python models run the code in `{entry}/{number}/code`, a copy of what redline's tests run on Triton {embedded} without a
container. The network's model ({backend} backend) was checked against Triton's schema and against the engine's tensors, batch
and profiles, but **no server has loaded it yet**: verify the release in the container before it takes traffic.
Every field used here is known to Triton {version} and to the versions after it up to 2.71 (26.07).{plan}

## Going back

Each release has models of its own, and they stay in this folder: start with an older release's models in the same way. Where
`{service}/config.pbtxt` and `{stable_tensor}/config.pbtxt` are here, the names `{service}` and `{stable_tensor}` stand for the
release that they name. After redline pointed them elsewhere, make the running server follow:

```sh
for model in {service} {stable_tensor}; do
  curl -f -X POST -H 'Content-Type: application/json' -d '{{}}' 127.0.0.1:8000/v2/repository/models/$model/load
done
```
"""


def readme(release: Release, models: Sequence[ModelFiles], server_version: str) -> str:
    """Raises BadInput: server-version (no image is known to have it)."""
    if server_version not in CONTAINERS:
        raise BadInput(
            "server-version", "no container release is known for this server", got=server_version, allowed=", ".join(CONTAINERS)
        )
    network = next(files.config for files in models if files.role == "network")
    gpu = any(group.kind == group.KIND_GPU for group in network.instance_group)
    entry, tensor = (names.model_name(release.service, release.number, role) for role in ("entry", "tensor"))
    return _TEXT.format(
        service=release.service,
        number=release.number,
        redline=release.redline,
        created=release.created,
        version=server_version,
        image=f"{IMAGE}:{CONTAINERS[server_version]}-py3",
        packages=" ".join(f'"{package}"' for package in PACKAGES),
        plain=", ".join(PACKAGES),
        gpus="--gpus all -e CUDA_DEVICE_ORDER=PCI_BUS_ID " if gpu else "",
        loads=" \\\n    ".join(f"--load-model={files.name}" for files in models),
        entry=entry,
        tensor=tensor,
        network=network.name,
        backend=network.backend,
        device=_device(release),
        embedded=SERVER_VERSION,
        plan=_plan(release),
        stable_tensor=names.stable_name(release.service, "tensor"),
    )


def _plan(release: Release) -> str:
    origin = release.engine.origin
    if origin is None:
        return ""
    return f"""
The plan was built with {origin.library} {origin.version} on {origin.gpu}: choose an image that has the same, and a GPU of the
same kind. Another one needs another plan: `{origin.rebuild}` there."""


def _device(release: Release) -> str:
    gpus = [str(index) for index in release.candidate.gpus]
    return f"GPU {' and '.join(gpus)} of its machine, as the PCI bus counts them" if gpus else "the CPU"
