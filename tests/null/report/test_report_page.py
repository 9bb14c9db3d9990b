"""The page and the summary say what the record says, escape what they are given, and survive what is missing."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import make_load, make_parity, make_record
from rich.console import Console

from redline.errors import StoreError
from redline.records import Choice, Knee, RunRecord, Traffic, Verdict
from redline.report import print_summary, render_html, write_report

HOSTILE = "<script>alert(1)</script>\"'&[bold]"
SECTIONS = ["steps", "front", "latency", "accuracy", "pictures", "trials", "refusals", "run"]


class Page(HTMLParser):
    """Ids, tags and references of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] += 1
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.references += [str(found[name]) for name in ("href", "src", "xlink:href") if name in found]
        self.references += [f"#{key}" for name in ("aria-labelledby",) for key in (found.get(name) or "").split()]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return make_record(tmp_path)


def summary(record: RunRecord, width: int = 80) -> str:
    stream = io.StringIO()
    print_summary(record, Console(file=stream, width=width, color_system=None), Path("runs/one"))
    return stream.getvalue()


def test_the_page_has_every_section_and_the_numbers(record: RunRecord) -> None:
    html = render_html(record)
    page = Page(html)
    assert [key for key in page.ids if key in SECTIONS] == SECTIONS
    choice = record.trials[3]
    assert choice.objective_load is not None
    p95 = f"{choice.objective_load.p95_ms:.1f}"
    assert f"P95 {p95} of 150 ms at 20/s" in html
    assert "holds that P95 up to 28.9/s" in html
    assert "mAP drop 0.03 % of 0.5 % allowed (95 % interval −0.28 to 0.34 %, 61 images)" in html
    assert html.count('<tr class="') == len(record.trials) + 1
    for refusal in record.refusals:
        assert refusal.reason.replace(">", "&gt;") in html
    assert "Resize: antialias is not implemented" in html


def test_padding_stands_with_the_shapes_as_expected_and_as_measured(record: RunRecord) -> None:
    html = render_html(record)
    assert "<td>minimal<small>3.7 % padding</small></td>" in html
    assert "<td>2 buckets<small>9.1 % padding</small></td>" in html
    expected = "320 × 416 (75 %), 416 × 416 (25 %); padding 9.1 % of the network&#39;s pixels expected, 9.1 % measured"
    assert f"{expected} (fixed 28.6 %, minimal 3.7 %)" in html
    row = next(line for line in summary(record, 140).splitlines() if "2 buckets" in line)
    assert " 9.1 " in row
    unlawful = replace(record, buckets=None, trials=tuple(replace(t, padding_pct=None) for t in record.trials))
    assert "Shape buckets" not in render_html(unlawful)
    assert "<td>minimal</td>" in render_html(unlawful)


def test_ids_are_unique_and_references_stay_inside(record: RunRecord) -> None:
    page = Page(render_html(record))
    assert [key for key, count in Counter(page.ids).items() if count > 1] == []
    inside = {f"#{key}" for key in page.ids}
    outside = [found for found in page.references if found not in inside and not found.startswith("data:")]
    assert outside == ["run.json"]
    assert page.tags["script"] == page.tags["iframe"] == page.tags["img"] == 0


def test_pictures_are_inline_and_small(record: RunRecord) -> None:
    html = render_html(record)
    images = re.findall(r'<image href="data:image/jpeg;base64,[^"]+" width="(\d+)" height="(\d+)"', html)
    assert images == [("480", "320"), ("480", "360")]
    assert html.count("the image file is no longer there") == 1
    assert "Photo: A. Example, CC BY 2.0" in html
    assert len(html) < 400_000


def test_low_scores_are_counted_not_drawn(record: RunRecord) -> None:
    assert render_html(record).count("1 below the line not drawn") == 3


def test_everything_is_escaped(record: RunRecord) -> None:
    pictures = tuple(replace(picture, credit=HOSTILE, path=HOSTILE) for picture in record.pictures[:1])
    boxes = tuple(replace(box, label=HOSTILE) for box in pictures[0].found)
    trials = tuple(replace(trial, latency=Verdict(answer="fail", reason=HOSTILE)) for trial in record.trials)
    hostile = replace(
        record,
        id=HOSTILE,
        model=replace(record.model, name=HOSTILE),
        notes=(HOSTILE,),
        trials=trials,
        pictures=(replace(pictures[0], found=boxes, truth=boxes),),
        refusals=tuple(replace(refusal, what=HOSTILE, reason=HOSTILE) for refusal in record.refusals),
    )
    html = render_html(hostile)
    assert "<script" not in html
    assert Page(html).tags["script"] == 0
    assert "<script>alert(1)</script>\"'&[bold]" in summary(hostile, 200)


@pytest.mark.parametrize("answer", ["pass", "fail", "inconclusive"])
def test_the_verdict_leads(record: RunRecord, answer: str) -> None:
    headline = {"pass": "Objective met", "fail": "Objective not met", "inconclusive": "Inconclusive"}[answer]
    changed = replace(record, choice=replace(record.choice, verdict=Verdict(answer=answer, reason="because")))  # type: ignore[arg-type]
    assert f'<strong class="pill">{headline}</strong>' in render_html(changed)
    assert headline in summary(changed).splitlines()[1]


def test_a_run_that_measured_nothing_still_has_a_page(record: RunRecord) -> None:
    empty = {"parity": None, "screen": None, "objective_load": None, "knee": None, "latency": None}
    bare = replace(
        record,
        baseline=replace(record.baseline, **empty),
        trials=tuple(replace(trial, **empty) for trial in record.trials),
        refusals=(),
        pictures=(),
        noise=None,
        onnx=None,
        notes=(),
        choice=Choice(candidate=None, trial=None, verdict=Verdict(answer="fail", reason="no candidate passed")),
        data=replace(record.data, boxes=None, traffic=Traffic(shapes=(), origin="evaluation images")),
    )
    html = render_html(bare)
    assert "no candidate could be measured" in html
    assert "<svg" not in html
    assert "no candidate passed" in summary(bare)


def test_partial_and_odd_measurements_do_not_break_the_page(record: RunRecord) -> None:
    choice, infinite = record.trials[3], float("inf")
    broken = replace(make_load(50.0, 0.1), histogram="broken", p95_ms=infinite, max_ms=infinite, first_error=HOSTILE)
    parity = replace(
        make_parity(0.0, float("nan"), float("nan"), "fail", finite=False), verdict=Verdict(answer="fail", reason="not usable")
    )
    odd = replace(
        choice, objective_load=broken, knee=Knee(rate_per_s=0.0, steps=()), parity=parity, confirmation=make_load(60.0, 0.1)
    )
    html = render_html(replace(record, trials=tuple(odd if trial is choice else trial for trial in record.trials)))
    assert "not finite" in html
    body = re.sub(r"base64,[^\"]+", "", html.split("</style>")[1])
    assert re.findall(r"\b(nan|inf|-inf)\b", body) == []


def test_an_overloaded_baseline_is_cut_not_hidden(record: RunRecord) -> None:
    html = render_html(replace(record, baseline=replace(record.baseline, objective_load=make_load(20_000.0, 0.4))))
    assert 'class="cut"' in html
    assert re.search(r'class="value baseline-text"[^>]*>\d\d,\d{3} ms<', html)


def test_agreement_is_not_called_map(record: RunRecord) -> None:
    choice = record.trials[3]
    assert choice.parity is not None
    parity = replace(choice.parity, accuracy=replace(choice.parity.accuracy, kind="agreement"))
    changed = replace(
        record, trials=tuple(replace(trial, parity=parity) if trial is choice else trial for trial in record.trials)
    )
    html = render_html(changed)
    assert "Agreement, not mAP:" in html
    assert "agreement drop 0.03 %" in html
    assert "agreement drop" in summary(changed)


def test_the_page_is_written_whole(record: RunRecord, tmp_path: Path) -> None:
    path = write_report(record, tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == render_html(record)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_written(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        write_report(record, tmp_path / "file")


@pytest.mark.parametrize("width", [80, 128, 140])
def test_the_summary_fits_its_terminal(record: RunRecord, width: int) -> None:
    text = summary(record, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "holds that P95 up to 28.9/s" in text
    row = next(line for line in text.splitlines() if "★" in line)
    assert all(value in row for value in ("31.2", "28.9", "66.0/97.7", "0.03 −0.28..0.34", "pass"))
    assert "no NVIDIA GPU was found" in text
    assert "runs/one/report.html" in text


def test_many_trials_are_summed_up(record: RunRecord) -> None:
    more = tuple(replace(trial, digest=f"{index}-{trial.digest}") for index in range(3) for trial in record.trials)
    assert "and 35 more trials in the report" in summary(replace(record, trials=(*record.trials, *more)))


def test_importing_the_room_is_light() -> None:
    heavy = ("jinja2", "PIL", "rich", "hdrh", "numpy", "matplotlib")
    code = f"import sys, redline.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
