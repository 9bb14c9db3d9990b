"""What a service's folder remembers: settings, index, running process, events; and the book that outlives a full disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from redline.errors import BadInput, StoreError
from redline.records import Objective, Routes, ServeSpec, ServiceState
from redline.serve import state as module
from redline.serve.processes import identity
from redline.serve.state import (
    EVENTS,
    INFO,
    SETTINGS,
    STATE,
    Book,
    Event,
    ServiceInfo,
    Settings,
    append_event,
    last_port,
    read_events,
    read_info,
    read_settings,
    read_state,
    with_failed,
    with_release,
    write_info,
    write_settings,
    write_state,
)

INFORMATION = ServiceInfo(
    pid=os.getpid(),
    identity=identity(os.getpid()) or "",
    gateway_port=1234,
    admin_port=2,
    http_port=3,
    grpc_port=4,
    metrics_port=5,
    key="key",
    server_key="other",
)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """[True] while the disk takes nothing."""
    switch, real = [True], module.write_state

    def write(folder: Path, state: ServiceState) -> None:
        if switch[0]:
            raise StoreError("store.full", "cannot write: the disk is full")
        real(folder, state)

    monkeypatch.setattr(module, "write_state", write)
    return switch


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    settings = Settings(service="d", objective=Objective(p95_ms=12.5, throughput=3.0), policy=ServeSpec(hold_s=7.0))
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings


def test_a_folder_without_settings_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="redline release") as caught:
        read_settings(tmp_path)
    assert caught.value.code == "serve.no-service"


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(StoreError, match=SETTINGS):
        read_settings(tmp_path)


def test_nothing_released_is_an_empty_index(tmp_path: Path) -> None:
    assert read_state(tmp_path, "d") == ServiceState(service="d", routes=Routes(), releases=())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"service": "d"}', '{"service": "d", "routes": {}, "releases": ["x"]}'])
def test_a_damaged_index_says_where_it_is_and_what_to_do_and_stays_as_it_was(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(StoreError) as caught:
        read_state(tmp_path, "d")
    assert caught.value.code == "serve.state"
    assert str(tmp_path / STATE) in caught.value.text()
    assert "redline rollback SPEC --to N" in caught.value.text()
    assert (tmp_path / STATE).read_text() == text


def test_an_index_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        read_state(tmp_path, "d")


def test_releases_and_failures_are_sets_in_order() -> None:
    state = ServiceState(service="d", routes=Routes(), releases=(2,))
    assert with_release(with_release(state, 10), 2).releases == (2, 10)
    assert with_failed(with_failed(state, 10), 3).failed == (3, 10)


def test_the_running_service_is_found_and_its_key_is_its_owners_alone(tmp_path: Path) -> None:
    write_info(tmp_path, INFORMATION)
    assert read_info(tmp_path) == INFORMATION
    assert (tmp_path / INFO).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("changes", [{"identity": "an earlier boot/17"}, {"identity": ""}, {"pid": 2**22 + 1}])
def test_a_service_that_has_ended_is_not_found_but_its_port_is(tmp_path: Path, changes: dict[str, object]) -> None:
    write_info(tmp_path, replace(INFORMATION, **changes))  # type: ignore[arg-type]
    assert read_info(tmp_path) is None
    assert last_port(tmp_path) == 1234


@pytest.mark.parametrize("text", [None, "", "{}", "not json"])
def test_no_or_damaged_information_is_no_service(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / INFO).write_text(text)
    assert read_info(tmp_path) is None
    assert last_port(tmp_path) == 0


def test_events_come_back_in_order_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    events = [Event(at=f"{n}", kind="staged", text="t", release=n, lost=n) for n in range(30)]
    for event in events[:29]:
        append_event(tmp_path, event)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"half a li\n')
    append_event(tmp_path, events[29])
    assert read_events(tmp_path, last=4) == (*events[27:29], events[29])
    assert read_events(tmp_path / "none") == ()


def test_events_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENT_BYTES", 1000)
    for n in range(100):
        append_event(tmp_path, Event(at=str(n), kind="staged", text="x" * 80))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 1000 + 500
    assert read_events(tmp_path)[-1].at == "99"


def test_an_event_that_cannot_be_written_is_lost_and_nothing_else(tmp_path: Path) -> None:
    append_event(tmp_path / "absent", Event(at="", kind="staged", text=""))
    assert not (tmp_path / "absent").exists()


def test_what_must_be_on_the_disk_does_not_hold_if_it_is_not(tmp_path: Path, full: list[bool]) -> None:
    book = Book(tmp_path, "d")
    with pytest.raises(StoreError):
        book.write(with_release(book.state, 1))
    assert book.state.releases == ()
    full[0] = False
    book.write(with_release(book.state, 1))
    assert read_state(tmp_path, "d").releases == (1,)


def test_what_must_hold_does_and_is_written_once_the_disk_takes_it(tmp_path: Path, full: list[bool]) -> None:
    book = Book(tmp_path, "d")
    book.keep(with_release(book.state, 1))
    assert book.state.releases == (1,)
    assert read_state(tmp_path, "d").releases == ()
    book.catch_up()
    full[0] = False
    book.catch_up()
    assert read_state(tmp_path, "d").releases == (1,)


def test_a_book_writes_nothing_that_is_written_already(tmp_path: Path) -> None:
    book = Book(tmp_path, "d")
    write_state(tmp_path, with_release(book.state, 7))
    book.catch_up()
    book.read()
    assert book.state.releases == (7,)
