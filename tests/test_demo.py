"""The experiment's table and report, and the commands of `loupe`."""

import csv
import io
import json
import re

import pytest
from loupe_experiments import report, rows, runs, table

from loupe_ext.cli import main
from loupe_ext.train import Interrupted

for package in ("faster_coco_eval", "matplotlib", "PIL", "rich", "safetensors", "sklearn", "yaml"):
    pytest.importorskip(package)

pytestmark = pytest.mark.xdist_group("demo")  # one worker runs it, for all tests

METRICS = ("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5", "pointing", "acc50", "acc30", "miou")
SMALL = ["demo", "--steps", "2", "--pairs", "64", "--scenes", "12", "--workers", "1"]


def result(row: str, seed: int, value: float, **more: float) -> dict:
    metrics = dict.fromkeys(METRICS, value) | more
    return {
        "row": row,
        "data": "scenes",
        "seed": seed,
        "threshold": 0.3,
        "centred": False,
        "milliseconds_per_step": 50.0,
        "metrics": metrics,
    }


def test_table_shows_mean_spread_and_the_best():
    found = table.lines([result("cmc", 0, 0.25), result("cmc-fsa", 0, 0.5), result("cmc", 1, 0.35)], "scenes")
    assert [line.row.key for line in found] == ["cmc", "cmc-fsa"]
    assert found[0].cells["acc50"].mean == pytest.approx(0.3)
    assert found[0].cells["acc50"].spread == pytest.approx(0.1 / 2**0.5)
    text = table.markdown(found)
    assert "| 30.0 ± 7.1 |" in text
    assert "| **50.0** |" in text
    assert "**30.0" not in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_table_leaves_out_what_a_row_does_not_have():
    found = table.lines([result("cmc", 0, 0.25), result("default", 0, 0.5, recall=0.75, ap50=0.6)], "scenes")
    assert found[0].texts()["recall"] == found[0].texts()["ap50"] == "-"
    assert found[1].texts()["recall"] == "75.0"
    assert found[1].texts()["ap50"] == "60.0"
    assert table.lines([result("cmc", 0, 0.25)], "digits") == []


def test_csv_holds_every_run_unrounded():
    read = list(csv.DictReader(io.StringIO(table.comma_separated([result("cmc", s, 0.1 + 0.2) for s in range(3)]))))
    assert [line["seed"] for line in read] == ["0", "1", "2"]
    assert float(read[0]["acc50"]) == 0.1 + 0.2
    assert read[0]["recall"] == read[0]["ap30"] == ""


def test_rows_differ_in_their_objective_alone():
    configs = [run.config for run in rows.plan(1, 10, 64, 20) if run.data == "scenes"]
    assert len(configs) == len(rows.ROWS) == 5
    terms = ("cmc", "late_interaction", "region_phrase", "proposal_phrase", "fsa", "boxes")
    allowed = {"name", *(f"objective.{term}.weight" for term in terms)}
    first = configs[0].flat()
    for config in configs:
        assert {name for name, value in config.flat().items() if value != first[name]} <= allowed


def test_plan_has_every_row_for_every_seed():
    runs = rows.plan(3, 10, 64, 20)
    assert len({run.key for run in runs}) == len(runs) == 3 * (5 + 5 + 1)
    short = rows.plan(3, 10, 64, 20, short=True)
    assert {(run.data, run.row.key) for run in short} == {(data, row) for data, of in rows.SHORT.items() for row in of}
    assert len(short) == 3 * (3 + 1 + 1)
    assert {(run.steps, run.train_size) for run in runs if run.data == "pictograms"} == {(4, 64)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


def test_demo_writes_all_it_promises(demo):
    assert len(list(csv.DictReader((demo / "results.csv").open()))) == 5
    assert (demo / "table.md").read_text().count("Default recipe") == 4
    assert not list(demo.rglob("*.partial"))
    results = [json.loads(path.read_text()) for path in (demo / "runs").glob("*.json")]
    assert all(0 <= value <= 1 for one in results for value in one["metrics"].values())
    detecting = {one["row"] for one in results if {"ap30", "ap50"} <= set(one["metrics"])}
    assert detecting == {"default", "default-without-fsa"}


def test_demo_again_repeats_nothing(demo):
    before = {path: path.stat().st_mtime_ns for path in (demo / "runs").rglob("*")}
    assert main([*SMALL, "--out", str(demo)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (demo / "runs").rglob("*")} == before


def test_a_worker_that_is_told_to_end_takes_no_further_run(tmp_path, monkeypatch):
    def end(*_):
        raise Interrupted(15, 1, 2, None)

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(runs, "perform", end)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit):
        runs._work(rows.plan(1, 2, 64, 12)[0], tmp_path)


def test_report_has_a_head_over_every_column():
    assert sum(columns for _, columns in report.GROUPS) == len(table.HEADS)


def test_report_is_self_contained(demo):
    page = (demo / "report.html").read_text()
    assert page.count('class="card"') == 16
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert not re.search(r'src="(?!data:)|<link|<script|url\(|@import', page)
    assert "$" not in re.sub(r'"data:[^"]*"', "", page)
    for line in table.lines([json.loads(p.read_text()) for p in (demo / "runs").glob("*.json")], "scenes"):
        assert line.row.title in page
        assert f">{line.texts()['acc50']}</td>" in page
