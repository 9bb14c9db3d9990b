"""Endpoints that answer, that do not, and that answer nonsense; what Triton's recorded text says."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_case import GPU, TRITON_AFTER, TRITON_BEFORE, Answer, endpoint, triton

from redline.errors import BadInput
from redline.observe import scrape as module
from redline.observe.ledger import Increase, Ledger
from redline.observe.scrape import metrics_url, parse, scrape
from redline.observe.triton import gpus_of, models_of


def test_it_reads_what_a_real_server_says() -> None:
    found = parse(TRITON_AFTER)
    counts = {sample.labels["model"]: sample for sample in found if sample.name == "nv_inference_count_total"}
    assert counts["detector_r4"].value == 32
    assert counts["detector_r4"].grows
    pending = next(sample for sample in found if sample.name == "nv_inference_pending_request_count")
    assert not pending.grows


def test_a_scrape_has_samples_or_a_reason() -> None:
    with endpoint(Answer(body=TRITON_AFTER.encode())) as address:
        seen = scrape(metrics_url(address), clock=lambda: 7.0)
    assert seen.error is None
    assert seen.at_s == 7.0
    assert seen.value("nv_inference_count_total", model="detector_r4") == 32
    assert seen.value("nv_inference_count_total", model="other") is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=503), "status 503"),
        (Answer(body=b"<html>hello</html>"), "not Prometheus text"),
        (Answer(body=b"metric{a="), "not Prometheus text"),
        (Answer(body=b"\xff\xfe"), "decode"),
        (Answer(body=b"x" * 2000), "MiB"),
        (Answer(wait_s=1.0), "no answer within 0.3 s"),
    ],
)
def test_a_broken_endpoint_is_a_result(answer: Answer, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with endpoint(answer) as address:
        seen = scrape(metrics_url(address), timeout_s=0.3)
    assert reason in str(seen.error)
    assert seen.samples == ()


def test_a_closed_port_is_a_result() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert scrape(f"http://127.0.0.1:{port}/metrics").error == "Connection refused"


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert all(isinstance(sample.value, float) for sample in found)


@pytest.mark.parametrize(
    ("given_", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/metrics"),
        ("http://node:8080", "http://node:8080/metrics"),
        ("http://node:8080/", "http://node:8080/metrics"),
        ("https://node/deep/metrics", "https://node/deep/metrics"),
        ("[::1]:8080", "http://[::1]:8080/metrics"),
    ],
)
def test_an_address_may_be_short(given_: str, url: str) -> None:
    assert metrics_url(given_) == url


@pytest.mark.parametrize(
    "given_", ["", "file:///etc/passwd", "ftp://node/x", "node:port", "node:99999", "http://", "a b:80", "node:0"]
)
def test_what_is_no_address_is_refused(given_: str) -> None:
    with pytest.raises(BadInput) as caught:
        metrics_url(given_)
    assert caught.value.code == "watch.url"


def between(before: str, after: str, seconds: float = 2.0) -> Increase:
    ledger = Ledger(60.0)
    ledger.add(triton(before, 0.0))
    ledger.add(triton(after, seconds))
    return ledger.over(60.0)


def test_models_of_the_service_with_their_times() -> None:
    """The figures of the recorded texts: differences divided by 24 requests and 22 executions."""
    (model,) = models_of(triton(TRITON_AFTER, 2.0), between(TRITON_BEFORE, TRITON_AFTER), "detector")
    before, after = (triton(text, 0.0) for text in (TRITON_BEFORE, TRITON_AFTER))

    def grew(name: str) -> float:
        values = [one.value(f"nv_inference_{name}_total", model="detector_r4") for one in (before, after)]
        return float(values[1] or 0) - float(values[0] or 0)

    runs = grew("exec_count")
    assert (model.model, model.version, model.requests_per_s, model.failures_per_s) == ("detector_r4", "4", 12.0, 0.0)
    assert model.batch == pytest.approx(24 / runs)
    assert model.queue_ms == pytest.approx(grew("queue_duration_us") / 24 / 1000)
    assert model.infer_ms == pytest.approx(grew("compute_infer_duration_us") / 24 / 1000)
    # It slept for 10 ms in each execution, one after the other: busy for that part of the two seconds.
    assert model.busy == pytest.approx(runs * 0.0105 / 2, rel=0.1)


def test_other_services_and_idle_models_are_left_out() -> None:
    seen, grown = triton(TRITON_AFTER, 2.0), between(TRITON_BEFORE, TRITON_AFTER)
    assert models_of(seen, grown, "detect") == ()
    assert models_of(seen, between(TRITON_AFTER, TRITON_AFTER), "detector") == ()
    waiting = TRITON_AFTER.replace('count{model="detector_r4",version="4"} 0', 'count{model="detector_r4",version="4"} 3')
    (model,) = models_of(triton(waiting, 2.0), between(TRITON_AFTER, TRITON_AFTER), "detector")
    assert (model.pending, model.batch, model.queue_ms, model.busy) == (3, None, None, 0.0)


def test_gpus_are_shown_where_there_are_any() -> None:
    assert gpus_of(triton(TRITON_AFTER, 0.0)) == ()
    first, second = gpus_of(triton(TRITON_AFTER + GPU, 0.0))
    assert (first.uuid, first.utilization, first.power_w, first.power_limit_w) == ("GPU-a", 0.61, 212.4, 400.0)
    assert first.memory_used_bytes == 7 * 2**30
    assert (second.uuid, second.utilization, second.memory_total_bytes, second.power_w) == ("GPU-b", 0.0, None, None)
