"""One tritonserver process on the loopback interface: started, proved, ended by pid, its shared memory swept."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from redline.errors import BadInput, StoreError
from redline.serve.control import ADMIN_HEADER, Control
from redline.serve.environment import ServerEnvironment, make_backend_folder, process_environment
from redline.serve.processes import identity, runs
from redline.serve.selftest import prove_outputs
from redline.store import dump, load
from redline.store.disk import guarded, write_file

START_S = 30.0
"""An empty server lives after 0.1 s; loaded machines take longer."""
STOP_S = 20.0
ATTEMPTS = 3
"""Free ports are found before the server binds them: another process may take one in between."""
SHARED_MEMORY = Path("/dev/shm")
PROCESS_FILE = "server.json"
LOG_FILE = "triton.log"
LOG_BYTES = 8 << 20
"""A longer log of an earlier start is cut to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server, as its folder remembers it."""

    pid: int
    identity: str
    """Of its process: a pid alone may be somebody else's by now."""
    http_port: int
    grpc_port: int
    metrics_port: int
    admin_key: str
    """Value of the header `x-redline-admin` that administration and shared memory ask for."""
    memory_prefix: str
    """How the names of its shared-memory objects begin."""


class TritonServer:
    """`folder` holds the log, the links to the backend and `server.json`; one server a folder.

    Explicit model control, so it starts empty. Administration (repository, trace, logging, shared memory) asks for a key, over
    HTTP as header `x-redline-admin`, over gRPC as metadata `triton-grpc-protocol-x-redline-admin`.
    """

    def __init__(self, environment: ServerEnvironment, repository: Path, folder: Path) -> None:
        self._environment, self._repository, self._folder = environment, Path(repository), Path(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._known: ServerProcess | None = None
        self._key = secrets.token_hex(16)
        self._acting = threading.RLock()
        """A stop waits for a start that is under way in another thread: nothing is left running."""

    @property
    def known(self) -> ServerProcess:
        if self._known is None:
            raise RuntimeError("the server was not started")
        return self._known

    @property
    def control(self) -> Control:
        return Control(self.known.http_port, self.known.admin_key)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self, *, ports: tuple[int, int, int] | None = None) -> ServerProcess:
        """Start, wait until it lives and prove that outputs come through. What an earlier one left behind is ended first.

        `ports` (HTTP, gRPC, metrics) or free ones. Raises BadInput (serve.port, serve.start, serve.empty-outputs) with the
        last lines of the log, StoreError if the folder cannot be written.
        """
        with self._acting:
            try:
                with guarded("write in", self._folder):
                    self._repository.mkdir(parents=True, exist_ok=True)
                    make_backend_folder(self._environment, self._folder / "backends")
                    end_stale(self._folder)
                    self._start(ports)
                    prove_outputs(self.control, self._repository, self.known.http_port)
            except BaseException:
                self.stop()
                raise
            return self.known

    def _start(self, ports: tuple[int, int, int] | None) -> None:
        for attempt in range(ATTEMPTS):
            chosen = ports if ports is not None else free_ports(3)
            if self._launch(chosen):
                break
            taken = "already in use" in self.log_tail().lower()
            if not taken or ports is not None or attempt == ATTEMPTS - 1:
                code, what = ("serve.port", "a port is taken") if taken else ("serve.start", "the server did not start")
                raise BadInput(code, what, got=f"{chosen}\n{self.log_tail()}", fix=f"see {self._folder / LOG_FILE}")

    def start_again(self) -> ServerProcess:
        """After a crash, on the same ports if they are still free, so that local clients find it."""
        ports = (self.known.http_port, self.known.grpc_port, self.known.metrics_port)
        try:
            return self.start(ports=ports)
        except BadInput as error:
            if error.code != "serve.port":
                raise
        return self.start()

    def stop(self) -> None:
        """End it by pid, its stubs with it, and sweep its shared memory. Nothing happens where none runs."""
        with self._acting:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_S)
            self.kill()

    def kill(self) -> None:
        """`stop` without a word to it: a server that has lost a model's process takes its whole time to end."""
        with self._acting:
            if self._process is not None:
                _end_group(self._process.pid)
                self._process.wait()
            if self._known is not None:
                sweep(self._known.memory_prefix)
            (self._folder / PROCESS_FILE).unlink(missing_ok=True)
            self._process = None

    def log_tail(self, lines: int = 12) -> str:
        """The end of the log, where the server says why it failed."""
        try:
            text = (self._folder / LOG_FILE).read_bytes()[-20_000:].decode(errors="replace")
        except OSError:
            return "no log"
        return "\n".join(text.strip().splitlines()[-lines:])

    def _launch(self, ports: tuple[int, ...]) -> bool:
        key, prefix = self._key, f"redline_{os.getpid()}_{secrets.token_hex(4)}_"
        log = self._folder / LOG_FILE
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.unlink()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command(ports, key, prefix),
                    env=process_environment(self._environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise BadInput("serve.start", "the server cannot be started", got=error, fix="redline serve --install") from error
        self._known = ServerProcess(
            pid=self._process.pid,
            identity=identity(self._process.pid) or "",
            http_port=ports[0],
            grpc_port=ports[1],
            metrics_port=ports[2],
            admin_key=key,
            memory_prefix=prefix,
        )
        write_file(self._folder / PROCESS_FILE, dump(self._known), self._folder)
        os.chmod(self._folder / PROCESS_FILE, 0o600)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.alive:
            if self.control.live():
                return True
            time.sleep(0.03)
        self.stop()
        return False

    def _command(self, ports: tuple[int, ...], key: str, prefix: str) -> list[str]:
        triton = self._environment.triton
        guarded = f"model-repository,trace,logging,shared-memory:{ADMIN_HEADER}={key}"
        addresses = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
        numbers = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        return [
            self._environment.binary,
            f"--model-repository={self._repository.absolute()}",
            f"--backend-directory={(self._folder / 'backends').absolute()}",
            f"--cache-directory={triton}/caches",
            *addresses,
            *numbers,
            "--reuse-http-port=false",
            "--reuse-grpc-port=false",
            "--allow-gpu-metrics=false",
            "--model-control-mode=explicit",
            # Readiness of the whole server turns false after any failed load and stays so: models are asked one by one.
            "--strict-readiness=false",
            # Our configurations are complete, and completing them costs a process and a second for every model.
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
            f"--http-restricted-api={guarded}",
            f"--grpc-restricted-protocol={guarded}",
            "--exit-timeout-secs=10",
        ]


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback interface that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()


def read_process(folder: Path) -> ServerProcess | None:
    """The server that `folder` remembers, if it still runs."""
    try:
        known = load(ServerProcess, (folder / PROCESS_FILE).read_bytes())
    except (OSError, StoreError):
        return None
    return known if runs(known.pid) and identity(known.pid) == known.identity else None


def end_stale(folder: Path) -> bool:
    """End what an earlier process of ours left behind in `folder`; whether a server was still running."""
    running = read_process(folder) is not None
    with contextlib.suppress(OSError, StoreError):
        known = load(ServerProcess, (folder / PROCESS_FILE).read_bytes())
        # A dead server's models may live on in its process group, whose number nobody else gets meanwhile.
        if identity(known.pid) in (None, known.identity):
            _end_group(known.pid)
        sweep(known.memory_prefix)
    (folder / PROCESS_FILE).unlink(missing_ok=True)
    return running


def sweep(prefix: str) -> tuple[str, ...]:
    """Remove the shared-memory objects of an ended server: a crash leaves some 25 MB for every model instance."""
    left = sorted(SHARED_MEMORY.glob(f"{prefix}*"))
    for path in left:
        path.unlink(missing_ok=True)
    return tuple(path.name for path in left)


def _end_group(pid: int) -> None:
    """The server and its stubs, which share its session and process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


__all__ = ["ServerProcess", "TritonServer", "end_stale", "free_ports", "read_process", "sweep"]
