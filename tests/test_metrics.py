"""What a run writes as it goes, and takes up again."""

import json
import math

import pytest
import torch

from loupe_ext.train.metrics import Metrics, read


def add(metrics: Metrics, *losses: float, **more: float) -> None:
    for loss in losses:
        metrics.add({name: torch.tensor(value) for name, value in {"loss": loss, **more}.items()})


def test_a_reading_has_the_means_since_the_last(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    add(metrics, 1.0, 3.0, error=math.nan)
    add(metrics, 5.0, error=0.5)
    assert metrics.read(3, None, seconds=0.1) == {"loss": 3, "error": 0.5}  # of what there was
    add(metrics, 7.0)
    assert metrics.read(4, None) == {"loss": 7}
    metrics.note(4, {"validation/acc50": 0.25})
    lines = read(tmp_path / "metrics.jsonl")
    assert lines == metrics.lines
    assert lines[0] == {"step": 3, "loss": 3, "error": 0.5, "seconds": 0.1}
    history = metrics.history()
    assert history["step"].tolist() == [3, 4, 4]
    assert history["validation/acc50"].isnan().tolist() == [True, True, False]


def test_a_loss_that_is_not_finite_says_where():
    metrics = Metrics()
    add(metrics, 1.0)
    add(metrics, math.inf, cmc=2.0)
    with pytest.raises(FloatingPointError, match=r"the loss is inf at step 11 .*'cmc': 2.0"):
        metrics.read(12, None)


def test_lines_of_steps_that_were_not_kept_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    for step in (2, 4, 6):
        add(first, float(step))
        first.read(step, None, rate=math.nan)
    later = Metrics(path)
    later.resume(4)
    assert [line["step"] for line in later.lines] == [line["step"] for line in read(path)] == [2, 4]
    assert later.history()["rate"].isnan().all()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        '{"step": true}',
        '{"step": "2"}',
        '{"step": 2, "loss": "x"}',
        '{"step": 2, "loss": [1]}',
        '{"step": 2, "loss": 0.5',
    ],
    ids=lambda line: line[:20],
)
def test_lines_that_are_none_are_left_out(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = {"step": 1, "loss": 0.5}
    path.write_text(json.dumps(kept) + "\n" + line + "\n" + json.dumps(kept) + "\n")
    assert read(path) == [kept, kept]
    path.write_bytes(b"\xff\n" + path.read_bytes())
    assert read(path) == [kept, kept]
