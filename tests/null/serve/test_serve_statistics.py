"""What the server says of a model's executions, by batch size."""

from __future__ import annotations

from typing import Any

import pytest

from redline.serve.control import Control


def test_the_time_of_each_batch_size_is_input_compute_and_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(count: int, spent: int) -> dict[str, int]:
        return {"count": count, "ns": spent}

    sums = {name: part(5, 9) for name in ("success", "fail", "queue", "compute_infer")}
    batches = [
        {"batch_size": size, "compute_input": part(n, 1), "compute_infer": part(n, spent), "compute_output": part(n, 2)}
        for size, n, spent in ((4, 2, 70), ("1", 3, "30"))
    ]
    stats = {"inference_stats": sums, "inference_count": 11, "execution_count": 5, "batch_stats": batches}

    def answer(*_: Any) -> dict[str, Any]:
        return {"model_stats": [stats]}

    monkeypatch.setattr(Control, "_ask", answer)
    found = Control(1, "").statistics("entry", 1)
    assert found.batches == ((1, 3, 33), (4, 2, 73))
    assert found.mean_batch == 2.2
