"""Our P95 against NVIDIA's perf_analyzer on the same served model at the same constant rate.

Protocol: the demo detector is served; its knee is searched; at 40 % of it both generators send the same encoded image over
HTTP at a constant rate, in turn, five windows each (A B A B ...), ours through `redline.measure.open_loop`, theirs through
perf_analyzer 2.51.0 (unpacked from the tritonclient 2.51.0 wheel, with the libraries of the server's wheel). The disagreement
is the ratio of the two medians of P95; the A/A interval is the range of our own windows over their median. Agreement: within
10 % or within the A/A interval, whichever is larger.

    python benchmarks/served_perf_analyzer.py --work FOLDER [--output FILE]
"""

from __future__ import annotations

import base64
import csv
import json
import os
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from redline.data import read_bytes
from redline.measure.knee import find_knee
from redline.measure.load import open_loop
from redline.serve.environment import server_home
from redline.serve.names import model_name
from serving_case import demo_case, parser, watched, write

WHEEL = "tritonclient==2.51.0"
WINDOWS, WINDOW_S = 5, 9.0
SHARE_OF_KNEE = 0.4
PARTS = 3
"""perf_analyzer calls a measurement stable after so many windows, and joins them."""
CLIENTS = 32
AGREEMENT = 0.10


def main() -> int:
    given = parser(__doc__).parse_args()
    case, result = demo_case(given.work, given.minutes), dict[str, Any]()
    program = unpacked(given.work / "perf_analyzer")
    candidate = case.served_candidate()
    image = max((read_bytes(one) for one in case.dataset.images), key=len)
    with case.served(candidate) as live, watched(result):
        port, model = live.host.server().known.http_port, model_name("tune", live.number, "entry")

        def ours(rate: float, mode: Any = "constant", seconds: float = WINDOW_S) -> Any:
            def send(requests: Any) -> None:
                for _ in requests:
                    live.endpoint.send(image)

            return open_loop(send, rate_per_s=rate, seconds=seconds, mode=mode, concurrency=CLIENTS)

        ours(20.0)  # warm
        p95 = case.spec.objective.p95_ms
        knee = find_knee(
            lambda rate: ours(rate, "poisson", 3.0), p95_ms=p95, start_rate=60, low=5, high=1000, noise=None
        ).rate_per_s
        rate = max(1.0, float(round(SHARE_OF_KNEE * knee)))
        data = given.work / "perf_analyzer" / "image.json"
        data.write_text(json.dumps({"data": [{"image": {"b64": encoded(image)}}]}))
        mine, theirs = [], []
        for _ in range(WINDOWS):
            mine.append(ours(rate).p95_ms)
            theirs.append(perf_analyzer(program, port, model, rate, data))
    ratio = statistics.median(mine) / statistics.median(theirs)
    spread = (max(mine) - min(mine)) / statistics.median(mine)
    result |= {
        "knee_per_s": knee,
        "rate_per_s": rate,
        "p95_ms_ours": mine,
        "p95_ms_perf_analyzer": theirs,
        "ratio": ratio,
        "a_a_interval": spread,
        "agrees": abs(ratio - 1) <= max(AGREEMENT, spread),
    }
    write(given, {case.name: result})
    return 0 if result["agrees"] else 1


def encoded(image: bytes) -> str:
    """A BYTES element as perf_analyzer wants it: its length, four bytes, before it."""
    return base64.b64encode(len(image).to_bytes(4, "little") + image).decode()


def perf_analyzer(program: list[str], port: int, model: str, rate: float, data: Path) -> float:
    """P95, ms, of one window at a constant rate."""
    report = data.with_suffix(".csv")
    report.unlink(missing_ok=True)
    command = [
        *program, "-m", model, "-u", f"127.0.0.1:{port}", "-i", "http", "--request-rate-range", f"{rate:g}:{rate:g}:1",
        "--request-distribution", "constant", "--input-data", str(data), "--measurement-mode", "count_windows",
        "--measurement-request-count", str(int(rate * WINDOW_S / PARTS)), "--max-trials", str(PARTS), "-s", "999",
        "--percentile", "95",
        "-f", str(report), "--verbose-csv",
    ]  # fmt: skip
    libraries = str(Path(program[0]).parent / "libs")
    done = subprocess.run(
        command, env={**os.environ, "LD_LIBRARY_PATH": libraries}, capture_output=True, text=True, check=False
    )
    if not report.exists():
        raise SystemExit(f"perf_analyzer wrote nothing:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    return float(row["p95 latency"]) / 1000


def unpacked(folder: Path) -> list[str]:
    """perf_analyzer out of its wheel, with the two libraries that the server's wheel has under other names."""
    program = folder / "perf_analyzer"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), WHEEL]
        subprocess.run(pip, check=True)
        wheel = next(folder.glob("tritonclient-2.51.0-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("bin/perf_analyzer"))
            program.write_bytes(archive.read(name))
        program.chmod(0o755)
        libraries = folder / "libs"
        libraries.mkdir(exist_ok=True)
        bundled = next(server_home().glob("lib/python*/site-packages/nvidia_pytriton.libs"))
        for pattern, name in (("libcudart-*.so.12*", "libcudart.so.12"), ("libb64-*.so.0d", "libb64.so.0d")):
            (libraries / name).unlink(missing_ok=True)
            (libraries / name).symlink_to(next(bundled.glob(pattern)))
    return [str(program)]


if __name__ == "__main__":
    sys.exit(main())
