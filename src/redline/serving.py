"""A service as a process: joins what serves with what judges. `python -m redline.serving FOLDER` is what stays running."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import RedlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redline.records import Spec
    from redline.serve.state import ServiceInfo

SERVICES = "services"


def service_folder(spec: Spec, runs: Path) -> Path:
    """Where the service of a spec lives; several specs of one [serve] name share it, and release one after the other."""
    return runs / SERVICES / spec.serve.name


def prepare_service(spec: Spec, runs: Path) -> Path:
    """The service's folder with the settings of `spec`. Raises BadInput if it runs with others."""
    from redline.errors import BadInput
    from redline.serve.admin import running_service
    from redline.serve.state import Settings, read_settings, write_settings
    from redline.store.disk import guarded

    folder = service_folder(spec, runs)
    with guarded("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(service=spec.serve.name, objective=spec.objective, policy=spec.serve)
    if running_service(folder) is not None and read_settings(folder) != settings:
        what = f"the service {spec.serve.name} runs with another objective or other [serve] settings"
        raise BadInput("serve.settings", what, fix=f"redline serve {spec.path} --stop, then again")
    write_settings(folder, settings)
    return folder


def serve(folder: Path, ready: Callable[[ServiceInfo], None]) -> None:
    """Serve `folder` in this process until it is told to stop."""
    from redline.observe.decide import decide
    from redline.serve.daemon import run_service

    run_service(folder, decide, ready)


def main() -> int:
    from redline.serve.daemon import RUNS_ALREADY

    try:
        serve(Path(sys.argv[1]), lambda info: print(f"gateway on 127.0.0.1:{info.gateway_port}", flush=True))
    except RedlineError as error:
        print(error.text(), file=sys.stderr)
        return RUNS_ALREADY if error.code == "serve.running" else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
