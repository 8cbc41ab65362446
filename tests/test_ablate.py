"""The command `loupe ablate`: its rows, its two passes, what it writes, and how it goes on."""

import csv
import itertools
import json
import statistics

import pytest
from loupe_experiments import ablation
from loupe_experiments.ablation import ROWS, STEPS, TIME, Ablation, equal_time, paces
from loupe_experiments.rows import Row

from loupe_ext.cli import main
from loupe_ext.objective import ObjectiveConfig

for package in ("matplotlib", "PIL", "rich", "safetensors", "sklearn", "yaml"):
    pytest.importorskip(package)

pytestmark = pytest.mark.xdist_group("ablate")  # one worker runs it, for all tests

METRICS = ("i2t_r1", "t2i_r1", "pointing", "acc50", "miou")


def result(row: str, data: str, seed: int, milliseconds: float, value: float = 0.5, **more: float) -> dict:
    return {
        "row": row,
        "data": data,
        "seed": seed,
        "steps": 100,
        "threshold": 0.3,
        "centred": False,
        "milliseconds_per_step": milliseconds,
        "metrics": dict.fromkeys(METRICS, value) | more,
        "cpu": "Abacus",
        "cores": 2,
        "python": "3",
        "torch": "2",
        "date": "2026-01-01",
    }


def test_rows_differ_in_their_objective_alone():
    objective = {
        "cmc",
        "late_interaction",
        "sparse_grouping",
        "region_phrase",
        "proposal_phrase",
        "fsa",
        "tsa",
        "boxes",
    }
    details = {"fsa.source", "fsa.coalitions", "literal", "regions", "boxes.colour"}
    assert len({row.key for row in ROWS}) == len(ROWS) == 17
    assert len({repr(row.changes) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row.changes) <= objective | details
        assert row.objective != ObjectiveConfig() or row.key == "default"
    configs = {run.row.key: run.config for run in Ablation(1, 10, 64, 12).runs()}
    assert {key for key, config in configs.items() if not config.objective.boxes.weight} == {
        "paper",
        "default-tsa-gradient-boxes",
    }
    assert all(config.objective.cmc.weight == 1 for config in configs.values())
    with_regions = {key for key, config in configs.items() if config.objective.region_phrase.weight}
    assert with_regions == {row.key for row in ROWS if row.key.startswith("default")}


def test_runs_are_every_row_on_every_data_set_for_every_seed():
    runs = Ablation(3, 10, 64, 12).runs()
    assert len({run.key for run in runs}) == len(runs) == 3 * 3 * len(ROWS)
    some = Ablation(2, 10, 64, 12, data=("digits",), rows=("default", "cmc")).runs()
    assert [(run.data, run.row.key, run.seed) for run in some] == [
        ("digits", row, seed) for seed in (0, 1) for row in ("cmc", "default")
    ]


def test_equal_time_is_as_many_steps_as_the_pace_allows():
    runs = Ablation(2, 100, 64, 12, data=("scenes", "digits"), rows=("cmc", "cmc-tsa", "default")).runs()
    pace = {("cmc", "scenes"): 0.5, ("default", "scenes"): 1.0, ("cmc", "digits"): 3.0, ("default", "digits"): 1.0}
    timed = equal_time(runs, pace)
    steps = {(run.row.key, run.data, run.seed): run.steps for run in timed}
    expected = {("cmc", "scenes"): 200, ("default", "scenes"): 100, ("cmc", "digits"): 33, ("default", "digits"): 100}
    assert steps == {(*which, seed): count for which, count in expected.items() for seed in range(2)}
    same = {run.key for run in runs} & {run.key for run in timed}
    assert same == {run.key for run in runs if run.row.key == "default"}


def test_pace_is_a_median_of_ratios_within_rounds_and_is_measured_once(monkeypatch, tmp_path):
    busy = itertools.cycle([1, 30, 1, 1, 1])  # the machine, by rounds
    asked = []

    def seconds(data, configs):
        asked.append((data, set(configs)))
        own = {"default": 2.0, "cmc": 1.0, "cmc-tsa": 5.0}
        load = [next(busy) for _ in range(5)]
        return {row: [own[row] * x for x in load] for row in configs}

    monkeypatch.setattr(ablation, "_seconds_per_step", seconds)
    path = tmp_path / "pace.json"
    runs = Ablation(2, 100, 64, 12, data=("scenes",), rows=("cmc", "default")).runs()
    want = {("cmc", "scenes"): 0.5, ("default", "scenes"): 1.0}
    assert paces(runs, path) == paces(runs, path) == want
    more = Ablation(2, 100, 64, 12, data=("scenes",), rows=("cmc", "cmc-tsa", "default")).runs()
    assert paces(more, path) == want | {("cmc-tsa", "scenes"): 2.5}
    assert asked == [("scenes", {"cmc", "default"}), ("scenes", {"cmc-tsa", "default"})]
    assert paces([run for run in runs if run.row.key != "default"], path) == {}


def test_tables_show_what_a_row_has_by_data_set_and_pass():
    found = [result("cmc", "scenes", seed, 20.0, 0.25 + 0.1 * seed) for seed in range(2)]
    passes = {STEPS: [*found, result("default", "digits", 0, 30.0, ap50=0.125)], TIME: found}
    text = ablation.markdown(passes)
    assert text.count("**Rendered scenes, equal steps**") == text.count("**Rendered scenes, equal time**") == 1
    assert text.count("handwritten digits") == 1
    shown = f"30.0 ± {100 * statistics.stdev([0.25, 0.35]):.1f}"
    assert text.count(f"| {' | '.join([*[shown] * 3, '-', *[shown] * 2])} |") == 2  # "-": the control of pointing
    assert "| 12.5 | 30 | 100 |" in text
    assert "| - | 20 ± 0 | 100 ± 0 |" in text
    read = list(csv.DictReader(ablation.comma_separated(passes).splitlines()))
    assert [line["pass"] for line in read] == [STEPS] * 3 + [TIME] * 2
    assert [line["ap50"] for line in read] == ["", "", "0.125", "", ""]


@pytest.mark.parametrize("passes", [{STEPS: []}, {STEPS: [result("cmc", "digits", 0, 1.0)], TIME: []}])
def test_plot_of_little(passes):
    assert ablation.plot(passes).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """A folder where a row failed, and where then the same command, with the row mended, made two passes."""
    out = tmp_path_factory.mktemp("ablation")
    tiny = ["--steps", "3", "--pairs", "64", "--scenes", "8", "--workers", "1", "--seeds", "1", "--data", "scenes"]
    command = ["ablate", "--out", str(out), *tiny, "--rows", "cmc", "default"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ablation, "ROWS", (Row("cmc", "Impossible", {"window": 99}), Row("default", "Default recipe", {}))
        )
        failed = main(command)
    after_failure = {name: (out / name).read_text() for name in ("runs.csv", "table.md")}
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    mended = main([*command, "--equal-time"])
    return command, out, (failed, mended), after_failure, before


def test_a_failing_row_keeps_the_others(ablated):
    _, _, (failed, _), after_failure, before = ablated
    assert failed == 1
    assert [line["row"] for line in csv.DictReader(after_failure["runs.csv"].splitlines())] == ["default"]
    assert "Default recipe" in after_failure["table.md"]
    assert "Impossible" not in after_failure["table.md"]
    assert [path.name for path in before] == ["scenes-default-0-3.json"]


def test_the_same_command_goes_on(ablated, capsys):
    command, out, (_, mended), _, before = ablated
    assert mended == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    everything = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert main([*command, "--equal-time"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == everything
    assert "table.md" in capsys.readouterr().out


def test_what_it_writes(ablated):
    _, out, *_ = ablated
    lines = list(csv.DictReader((out / "runs.csv").open()))
    assert [(line["pass"], line["row"]) for line in lines] == [
        (p, r) for p in (STEPS, TIME) for r in ("cmc", "default")
    ]
    pace = {key: entry["pace"] for key, entry in json.loads((out / "pace.json").read_text()).items()}
    assert pace["scenes-default"] == 1
    steps = {(line["pass"], line["row"]): int(line["steps"]) for line in lines}
    assert steps[STEPS, "cmc"] == steps[STEPS, "default"] == steps[TIME, "default"] == 3
    assert steps[TIME, "cmc"] == max(1, round(3 / pace["scenes-cmc"]))
    assert all(line[name] for line in lines for name in ("cpu", "cores", "python", "torch", "date"))
    assert all(0 <= float(line[name]) <= 1 for line in lines for name in METRICS)
    table = (out / "table.md").read_text()
    assert "loupe ablate --seeds 1 --steps 3" in table
    assert table.count("| CMC |") == 2
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rows", "cmc", "paint"], "rows: expected some of cmc"),
        (["--data", "photos"], "data: expected some of scenes, digits, pictograms, got photos"),
        (["--rows", "cmc", "--equal-time"], "rows: expected default among them"),
        (["--pairs", "8"], "train_size: expected at least a batch"),
    ],
)
def test_it_says_what_is_wrong(more, said, tmp_path, capsys):
    assert main(["ablate", "--out", str(tmp_path / "out"), *more]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())
