"""`redline release`, `rollback` and `serve` as a user types them: one story, told once, then looked at."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from service_case import Case
from supervisor_case import servers

from redline.cli import main
from redline.records import Switch
from redline.releasing import Outcome
from redline.serve.admin import Status
from redline.store import load


@dataclass
class Said:
    code: int
    out: str
    err: str


def redline(*words: object) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert isinstance(stopped.value.code, int)
    return Said(stopped.value.code, out.getvalue(), err.getvalue())


def typed(*words: object) -> Said:
    """In a process of its own."""
    command = [sys.executable, "-m", "redline.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def story(environment, tmp_path_factory) -> dict[str, Said]:
    case = Case(tmp_path_factory.mktemp("story"), throughput=80, hold_s=1.0)
    spec, runs = case.spec.path, ("--runs", case.runs)
    told: dict[str, Said] = {}
    try:
        told["rollback without a service"] = redline("rollback", spec, *runs)
        told["status without a service"] = redline("release", spec, *runs, "--status")
        told["stop without a service"] = redline("serve", spec, *runs, "--stop")
        told["detach"] = redline("serve", spec, *runs, "--detach")
        told["a second service"] = typed("serve", spec, *runs)
        told["empty status"] = redline("release", spec, *runs, "--status")
        told["rollback of nothing"] = redline("rollback", spec, *runs)
        told["first"] = redline("release", spec, *runs, "--json", "--quiet")
        told["nothing before"] = redline("rollback", spec, *runs, "--json")
        told["second"] = typed("release", spec, *runs)
        told["status of two"] = redline("release", spec, *runs, "--status", "--json")
        told["text of two"] = redline("release", spec, *runs, "--status")
        told["rollback"] = redline("rollback", spec, *runs, "--json")
        told["rollback again"] = redline("rollback", spec, *runs)
        told["to the active"] = redline("rollback", spec, *runs, "--to", 1)
        told["to nowhere"] = redline("rollback", spec, *runs, "--to", 7)
        told["to the second"] = redline("rollback", spec, *runs, "--to", 2)
        told["last status"] = redline("release", spec, *runs, "--status", "--json")
        told["stop"] = redline("serve", spec, *runs, "--stop")
        told["release of no run"] = redline("release", spec, "--runs", case.runs / "none")
    finally:
        case.stop()
    told["left"] = Said(len(servers(case.folder)), "", "")
    return told


REFUSED = {
    "rollback without a service": ("does not run", "redline serve"),
    "status without a service": ("does not run", "redline serve"),
    "a second service": ("runs already", "--stop"),
    "rollback of nothing": ("no release to go back to", "active: none"),
    "nothing before": ("no release to go back to", "active: 1"),
    "rollback again": ("no release to go back to", "active: 1"),
    "to the active": ("release 1 is the active one", "--to"),
    "to nowhere": ("there is no release 7",),
    "release of no run": ("no finished run", "redline run"),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_what_cannot_be_done_is_bad_input_and_says_why(story, verb) -> None:
    said = story[verb]
    assert said.code == 2, said
    for part in REFUSED[verb]:
        assert part in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("verb", "part"),
    [
        ("stop without a service", "no service runs"),
        ("detach", "gateway on 127.0.0.1:"),
        ("empty status", "nothing was released yet"),
        ("second", "Release 2 of detector is served"),
        ("text of two", "release 1  the way back"),
        ("to the second", "release 1 -> release 2"),
        ("stop", "stopped"),
    ],
)
def test_what_is_done_says_so(story, verb, part) -> None:
    assert (story[verb].code, story[verb].err if verb != "second" else "") == (0, "")
    assert part in story[verb].out


def test_the_first_release_passes_every_check_that_needs_no_other(story) -> None:
    assert story["first"].code == 0, story["first"]
    outcome = load(Outcome, story["first"].out.encode())
    assert (outcome.release, outcome.service, outcome.verdict.answer) == (1, "detector", "pass")
    assert outcome.verification is not None
    names = [check.name for check in outcome.verification.checks]
    assert names == ["golden detections", "accuracy through the server", "load at the objective"]
    assert all(check.verdict.answer == "pass" for check in outcome.verification.checks)
    assert outcome.verification.served_ap == outcome.verification.in_process_ap == 1.0
    assert outcome.verification.load is not None
    assert outcome.verification.load.errors == 0
    assert outcome.verification.load.offered_per_s == 80
    assert [(switch.source, switch.to, switch.cause) for switch in outcome.switches] == [(None, 1, "promote")]


def test_the_second_release_is_compared_with_the_first(story) -> None:
    for part in ("accuracy against the active release", "canary beside the active release", "0 of", "boxes differ"):
        assert part in story["second"].out
    status = load(Status, story["status of two"].out.encode())
    routes = status.state.routes
    assert (routes.active, routes.previous, routes.canary, routes.hold_until) == (2, 1, None, None)
    assert [event.kind for event in status.events][-4:] == ["staged", "canary", "switched", "held"]
    assert status.holding_s is None
    assert status.server_up


def test_a_rollback_is_quick_and_remembered(story) -> None:
    switch = load(Switch, story["rollback"].out.encode())
    assert (switch.source, switch.to, switch.cause, switch.reason) == (2, 1, "rollback", "asked for")
    assert switch.seconds < 1
    state = load(Status, story["last status"].out.encode()).state
    assert (state.routes.active, state.routes.previous) == (2, None)
    assert state.releases == (1, 2)
    assert [(one.source, one.to) for one in state.switches] == [(None, 1), (1, 2), (2, 1), (1, 2)]


def test_nothing_is_left_running(story) -> None:
    assert story["left"].code == 0


def test_json_is_all_that_is_printed(story) -> None:
    for verb in ("first", "status of two", "rollback", "last status"):
        found: Any = json.loads(story[verb].out)
        assert isinstance(found, dict), Path(verb)
