"""`redline watch` as a program: one look, lines of JSON, an export, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from observe_case import TRITON_AFTER, Answer, FakeGateway, endpoint

from redline import api, cli
from redline.records import Routes


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture
def gateway() -> Iterator[tuple[str, FakeGateway, Answer]]:
    fake = FakeGateway(Routes(active=4, previous=3))
    fake.serve(4, 100)
    answer = Answer(body=fake.text().encode())
    with endpoint(answer) as address:
        yield address, fake, answer


def meanwhile(fake: FakeGateway, answer: Answer, **served: float) -> Thread:
    """Between the first look and the second, 40 requests are answered."""

    def work() -> None:
        time.sleep(0.2)
        fake.serve(4, 40, **served)  # type: ignore[arg-type]
        answer.body = fake.text().encode()

    thread = Thread(target=work)
    thread.start()
    return thread


def test_one_look(gateway: tuple[str, FakeGateway, Answer], capsys: pytest.CaptureFixture[str]) -> None:
    address, fake, answer = gateway
    thread = meanwhile(fake, answer)
    assert command("watch", "--url", address, "--once", "--interval", "0.5") == 0
    thread.join()
    shown = capsys.readouterr().out
    assert "objective: P95 within 20 ms" in shown
    assert "hold release 4" in shown
    assert "40 requests" in shown
    assert "Triton" not in shown


def test_one_look_as_json_with_triton(gateway: tuple[str, FakeGateway, Answer], capsys: pytest.CaptureFixture[str]) -> None:
    address, fake, answer = gateway
    with endpoint(Answer(body=TRITON_AFTER.encode())) as triton:
        thread = meanwhile(fake, answer)
        assert command("watch", "--url", address, "--triton", triton, "--once", "--json", "--interval", "0.5") == 0
    thread.join()
    (state,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert state["judged"]["requests"] == 40
    assert state["triton"]["error"] is None
    assert state["promise"]["objective"]["p95_ms"] == 20.0


def test_it_ends_with_3_where_it_says_roll_back(
    gateway: tuple[str, FakeGateway, Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    address, fake, answer = gateway
    thread = meanwhile(fake, answer, code=503)
    assert command("watch", "--url", address, "--once", "--interval", "0.5") == 3
    thread.join()
    assert "roll back release 4: 40 of 40 requests failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a spec file or --url"),
        (("d.toml", "--url", "127.0.0.1:1"), "one of them"),
        (("--url", "ftp://x"), "no address of a metrics endpoint"),
        (("--url", "127.0.0.1:1", "--once"), "no gateway answers"),
        (("--url", "127.0.0.1:1", "--export", "x"), "no gateway answers"),
        (("--url", "127.0.0.1:1", "--interval", "0"), "interval"),
    ],
)
def test_bad_input_is_said(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.chdir(tmp_path)
    assert command("watch", *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_an_export_of_a_running_gateway(gateway: tuple[str, FakeGateway, Answer], tmp_path: Path) -> None:
    address, _, _ = gateway
    assert command("watch", "--url", address, "--export", str(tmp_path / "monitoring")) == 0
    made = api.export_monitoring(tmp_path / "again", url=address)
    assert (tmp_path / "monitoring" / made.rules.name).read_text() == made.rules.read_text()
    assert address in made.prometheus.read_text()


def test_ctrl_c_is_the_usual_end(gateway: tuple[str, FakeGateway, Answer]) -> None:
    address, _, _ = gateway
    program = [
        sys.executable,
        "-c",
        "from redline.cli import main; main()",
        "watch",
        "--url",
        address,
        "--json",
        "--interval",
        "0.1",
    ]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == 0
    assert complaint == ""
    assert [json.loads(line)["gateway"]["error"] for line in lines] == [None] * 3
