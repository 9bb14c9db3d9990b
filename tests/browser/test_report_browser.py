"""report.html in headless Chromium: silent console, no request, no sideways scrolling, every drawing has a size."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redline.records import RunRecord
from redline.report import write_report

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FIXTURE = Path(__file__).parents[1] / "null" / "report" / "report_fixture.py"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--allow-file-access-from-files"]
FLAGS += ["--enable-logging=stderr", "--v=0"]
FRAME = """<!doctype html><title>frame</title>
<iframe src="PAGE" width="WIDTH" height="900" style="border:0"></iframe>
<script>
onload = () => setTimeout(() => {
  const copy = document.createElement("pre");
  copy.id = "copy";
  copy.textContent = document.querySelector("iframe").contentDocument.getElementById("probe").textContent;
  document.body.append(copy);
}, 300);
</script>
"""
PROBE = """
<script>
addEventListener("load", () => {
  const shown = [...document.querySelectorAll("svg")].filter(s => s.getClientRects().length);
  const box = element => element.getBoundingClientRect();
  const text = [...document.querySelectorAll("svg text")].filter(t => t.getClientRects().length);
  const chart = text.filter(t => !t.classList.contains("chip-text"));
  const result = {
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    svgs: shown.length,
    empty: shown.filter(s => box(s).width < 60 || box(s).height < 40).length,
    outside: chart.filter(t => box(t).left < -1 || box(t).right > innerWidth + 1).map(t => t.textContent),
    smallest: Math.min(...chart.map(t => box(t).height)),
    requests: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    images: [...document.querySelectorAll("svg image")].length,
    title: document.title,
  };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
});
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
Open = Callable[[Path, int], tuple[dict[str, Any], str]]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    made: RunRecord = runpy.run_path(str(FIXTURE))["make_record"](tmp_path)
    return made


@pytest.fixture
def visit(tmp_path: Path) -> Open:
    """Open a page in a fresh profile at a width; what the probe saw, and Chromium's log."""

    def opened(page: Path, width: int) -> tuple[dict[str, Any], str]:
        # Headless windows are no narrower than 500: a narrower page is shown in a frame of its own size.
        frame = tmp_path / f"frame-{width}.html"
        frame.write_text(FRAME.replace("PAGE", page.name).replace("WIDTH", str(width)), encoding="utf-8")
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / f'profile-{width}'}", "--window-size=1400,1000"]
        command += ["--virtual-time-budget=4000", "--dump-dom", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = re.search(r'<pre id="copy">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found is not None, f"the probe did not run: {done.stderr[-2000:]}"
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), done.stderr

    return opened


def probed(page: Path) -> Path:
    """A copy of the page with the probe in it, which the page's own policy would refuse to run."""
    html = page.read_text(encoding="utf-8")
    assert html.count("default-src 'none'; ") == 1
    html = html.replace("default-src 'none'; ", "default-src 'none'; script-src 'unsafe-inline'; ").replace(
        "</body>", PROBE + "</body>"
    )
    copy = page.with_name("probed.html")
    copy.write_text(html, encoding="utf-8")
    return copy


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(record: RunRecord, tmp_path: Path, visit: Open, width: int) -> None:
    seen, log = visit(probed(write_report(record, tmp_path)), width)
    assert console(log) == []
    assert seen["width"] == width
    assert seen["scroll"] <= width, "the page scrolls sideways"
    assert seen["svgs"] >= 8 + 2 * len(record.pictures)
    assert seen["empty"] == 0
    assert seen["outside"] == []
    assert seen["smallest"] >= 11, "chart text is scaled too small to read"
    assert seen["requests"] == []
    assert seen["images"] == 2
    assert seen["title"] == "yolox_nano: objective met – redline"


def test_the_probe_sees_what_is_wrong(record: RunRecord, tmp_path: Path, visit: Open) -> None:
    """The test above can fail: a console error, a request that the policy refuses, and a page too wide."""
    page = probed(write_report(record, tmp_path))
    spoiled = (
        '<script>console.error("spoiled")</script><img src="missing.png" alt=""><div style="width:3000px">wide</div></main>'
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", spoiled), encoding="utf-8")
    seen, log = visit(page, 1280)
    assert any("spoiled" in line for line in console(log))
    assert any("missing.png" in line for line in console(log))
    assert seen["scroll"] >= 3000


def test_the_page_as_written_is_silent(record: RunRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert console(done.stderr) == []
    assert done.stdout.count("<section") == 8
