"""Releases and rollbacks under load: no request fails, and every answer is right."""

from __future__ import annotations

import time

import pytest
from service_case import Case, Stream, promoted, serving

from redline.parity import differs

RATE_PER_S, REQUESTS = 60.0, 1000


def test_no_request_fails_across_five_switches(environment, tmp_path) -> None:
    case = Case(tmp_path)
    for _ in range(4):
        case.add()
    with serving(case) as service:
        promoted(service, 1)
        switched: list[tuple[float, str]] = []
        with Stream(service.info.gateway_port, case.images, RATE_PER_S) as stream:
            began = time.monotonic()

            def switch(what: str) -> None:
                time.sleep(2.0)
                if what.startswith("promote"):
                    promoted(service, int(what.split()[1]), hold_s=30.0)
                else:
                    service.rollback(to=int(what.split()[1]) if " " in what else None, reason="test")
                switched.append((time.monotonic() - began, what))

            for what in ("promote 2", "promote 3", "rollback", "promote 4", "rollback 1"):
                switch(what)
            time.sleep(max(2.0, REQUESTS / RATE_PER_S + 0.5 - (time.monotonic() - began)))
        state = service.status().state
    p95 = stream.p95_ms_by_second()
    told = f"P95 of each second: {p95} ms; switched at {', '.join(f'{at:.1f} s ({what})' for at, what in switched)}"
    assert len(stream.answers) >= REQUESTS, told
    assert not stream.failures, told
    wrong = {answer.at_s: differs(case.expected.detections[answer.image], answer.detections()) for answer in stream.answers}
    assert not {at_s: how for at_s, how in wrong.items() if how is not None}, told
    assert [one.to for one in state.switches] == [1, 2, 3, 2, 4, 1], told
    # Each release answered from its switch on, and none after it was left: the answers tell the same story as the index.
    order = [answer.release for answer in sorted(stream.answers, key=lambda answer: answer.at_s)]
    runs = [release for index, release in enumerate(order) if index == 0 or order[index - 1] != release]
    assert runs == [1, 2, 3, 2, 4, 1], told
    assert max(p95) < 1000, told
    print(told)


def test_a_canarys_share_is_answered_by_it(environment, tmp_path) -> None:
    case = Case(tmp_path)
    for _ in range(2):
        case.add()
    with serving(case) as service:
        promoted(service, 1)
        service.stage(2)
        with Stream(service.info.gateway_port, case.images, 50) as stream:
            time.sleep(0.5)
            service.canary(2, share=0.25, shadow=True)
            time.sleep(2)
            seen = service.observed(2)
            service.withdraw(2, "test")
            time.sleep(0.5)
    assert not stream.failures
    share = [answer.release for answer in stream.answers if 0.7 < answer.at_s < 2.2].count(2) / (1.5 * 50)
    assert share == pytest.approx(0.25, abs=0.03)
    assert seen.requests >= 20
    assert seen.errors == seen.differing == 0
    assert seen.compared > 100
