"""What of `make gpu-check` (bench/gpu_check.py) can be tested without a GPU."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu_check, gpu_speed, gpu_table
from tests.backends import BACKENDS, INTERPRETED, SLOW, TOLERANCE, in_turn
from tests.samples import pairs_problems

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the other test run has been here")


PLANTED = """
import torch, loupe_ext
from tests.backends import device_of, every_backend

@every_backend
def test_hands_over_what_is_on_the_cpu(backend):
    loupe_ext.pairwise_interactions(torch.zeros(2, 2), backend=backend)

@every_backend
def test_numbers_say_nothing(backend):
    x = torch.zeros(2, 2, device=device_of(backend))
    assert loupe_ext.pairwise_interactions(x, backend=backend).cpu().sum() == 1
"""


def test_no_gpu_test_hands_cpu_tensors_to_its_backend(tmp_path):
    (tmp_path / "test_planted.py").write_text(PLANTED)
    plugins = ["-p", "no:xdist", "-p", "tests.fake_gpu", "-c", "pyproject.toml", "--rootdir", "."]
    command = [sys.executable, "-m", "pytest", *gpu_check.TESTS, tmp_path, "-m", "gpu", *plugins, "--tb=line"]
    done = subprocess.run(command, env={**os.environ, "LOUPE_GPU_DEVICE": "meta"}, capture_output=True, text=True)
    failed = re.findall(r"FAILED \S*::(\S+)", done.stdout)
    assert failed == [f"test_hands_over_what_is_on_the_cpu[{x}]" for x in ("cuda", "triton")], done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60


def test_dtypes_in_turn_reach_every_backend_and_every_problem():
    cases = [x.values for x in in_turn(pairs_problems)]
    for backend in BACKENDS:
        for problem in pairs_problems(small=backend in SLOW):
            dtypes = {dtype for b, p, dtype in cases if (b, str(p)) == (backend, problem.name)}
            assert len(dtypes) == (2 if backend in SLOW else 3)
        assert {dtype for b, _, dtype in cases if b == backend} == set(TOLERANCE)


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and that nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class TestPhases:
    @pytest.fixture
    def check(self, tmp_path):
        (tmp_path / "work").mkdir()
        shares = {"first": 1, "second": 1, "last": 2}
        return gpu_check.Check(tmp_path / "results" / "gpu.json", tmp_path / "work", 8, shares)

    def found(self, check):
        return json.loads(check.path.read_text())

    def test_a_phase_leaves_its_unused_time_to_the_next(self, check):
        given = []
        for name in ("first", "second", "last"):
            check.phase(name, lambda most: given.append(most) or {"passed": True})
        assert given == pytest.approx([2, 8 / 3, 8], abs=0.5)

    def test_every_phase_is_written_as_it_ends_and_an_error_is_one(self, check):
        assert not check.phase("first", lambda most: 1 / 0)
        assert self.found(check)["checks"]["first"]["summary"] == "ZeroDivisionError: division by zero"
        assert not self.found(check)["complete"]
        assert check.phase("second", lambda most: {"passed": True})
        assert check.phase("last", lambda most: {"passed": True})
        assert self.found(check)["complete"]
        assert list(check.path.parent.iterdir()) == [check.path]

    def test_no_time_left_is_a_failure_that_is_written(self, check):
        check.until = time.monotonic()
        assert not check.phase("first", lambda most: {"passed": True})
        assert self.found(check)["checks"]["first"]["summary"] == "no time was left"

    def test_a_command_is_cut_off_with_all_that_it_started(self, check):
        begin = time.monotonic()
        wrong, output = check.run("log", ["bash", "-c", "echo begun; sleep 100 & echo $!; wait"], 2)
        assert time.monotonic() - begin < 10
        assert wrong == "cut off after 2 s"
        begun, child = output.split()
        assert begun == "begun"
        end = time.monotonic() + 5
        while alive(int(child)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(int(child))

    def test_failures_are_told_as_they_happen_also_of_a_run_that_is_cut_off(self, check, capsys):
        (check.work / "bench").symlink_to(gpu_check.ROOT / "bench")
        (check.work / "test_planted.py").write_text(
            "import os, time\n"
            "def test_right(): pass\n"
            "def test_wrong(): assert 'left' == 'right', 'two sides'\n"
            "def test_that_ends_the_run_once_the_failure_is_told():\n"
            "    while 'two sides' not in open(os.environ['LOUPE_REPORT']).read(): time.sleep(0.01)\n"
            "    os.kill(os.getppid(), 9)\n"
        )
        result = check.tests("planted", ["-n", "1", "test_planted.py"], 100)
        assert not result["passed"]
        assert result["summary"] == "1 passed, 1 failed, 0 skipped; exit status -9"
        (failure,) = result["failures"]
        assert failure["test"] == "test_planted.py::test_wrong"
        assert "two sides" in failure["error"]
        assert "FAILED test_planted.py::test_wrong: AssertionError: two sides" in capsys.readouterr().out

    def test_tests_that_are_all_skipped_did_not_pass(self, check, monkeypatch):
        def run(log, command, seconds, LOUPE_REPORT):
            Path(LOUPE_REPORT).write_text('{"test": "test_it", "outcome": "skipped", "seconds": 0}\n')
            return "", ""

        monkeypatch.setattr(check, "run", run)
        result = check.tests("planted", [], 1)
        assert (result["passed"], result["summary"]) == (False, "0 passed, 0 failed, 1 skipped")


class TestSpeed:
    def test_times_are_the_devices_and_calls_take_turns(self):
        """A device that works through a queue, while the host's clock stands still."""
        clock, order = [0.0], []

        class Event:
            def record(self):
                self.at = clock[0]

            def elapsed_time(self, end):  # in milliseconds
                return end.at - self.at

        def call(name, milliseconds):
            def work():
                order.append(name)
                clock[0] += milliseconds

            return work

        def hold():
            clock[0] += 1000

        calls = [call("a", 2.0), call("b", 2.5), call("c", 2.0)]
        assert gpu_speed.microseconds(calls, Event, hold, lambda: None, rounds=2, length=7) == 2000
        assert order == [*"abc"] * 5 + ["a", "b"]

    def test_input_sets_exceed_the_cache_and_the_copy_moves_as_many_bytes(self):
        made, timed = [], []

        def make():
            x = torch.zeros(100)
            made.append(x)
            return (lambda: None), [x, x]  # read, and written: 800 bytes

        def record(calls):
            timed.append([call() for call in calls])
            return 4.0 if len(timed) == 1 else 1.0

        row = gpu_speed.measure(gpu_speed.Case("op", "size", "forward", "cuda", make), 2000, record)
        assert row["sets"] == len(made) == len(timed[0]) == 5  # twice 2,000 bytes
        assert [x.numel() for x in timed[1]] == [400] * 5  # bytes read, and as many written
        assert row["of_copy"] == 0.25
        assert row["times_floor"] == 4

    @pytest.mark.parametrize(("operations", "us", "times"), [(30, 3, 1.33), (5, 0.5, 4)])
    def test_the_floor_is_the_copy_or_the_operations(self, operations, us, times):
        case = gpu_speed.Case("op", "size", "forward", "cuda", lambda: (int, [torch.zeros(9)]), operations)
        row = gpu_speed.measure(case, 0, lambda calls: 4.0 if calls[0] is int else 1.0, rate=10)
        assert (row["operations_us"], row["times_floor"]) == (us, times)

    def test_an_earlier_runs_rows_are_found(self, tmp_path):
        same = {"op": "a", "size": "1 x 2", "direction": "forward", "backend": "cuda"}
        found = {"speed": {"rows": [{**same, "us": 7.5}, {**same, "backend": "triton", "error": "no"}]}}
        (tmp_path / "old.json").write_text(json.dumps(found))
        assert gpu_speed.earlier(tmp_path / "old.json") == {("a", "1 x 2", "forward", "cuda"): 7.5}
        assert gpu_speed.earlier(None) == {}

    def test_the_check_hands_over_the_last_run_on_this_gpu(self, tmp_path, monkeypatch):
        names = ("h100-2026-01-01", "h100-2026-01-02", "h100-2026-01-03", "h100-pcie-2026-01-01", "a100-2026-01-02")
        for name in names:
            (tmp_path / f"{name}.json").write_text("{}")
        check, given = gpu_check.Check(tmp_path / "h100-2026-01-03.json", tmp_path, 9), []
        monkeypatch.setattr(check, "run", lambda log, command, seconds: given.append(command[-1]) or ("", ""))
        assert check.speed(9)["passed"]
        assert given == [tmp_path / "h100-2026-01-02.json"]

    def test_every_case_can_be_called(self):
        seen = set()
        for case in gpu_speed.cases("cpu", "cpu", shrink=1 << 13):
            call, tensors = case.make()
            call()
            assert gpu_speed.size_of(tensors) > 0
            assert case.operations > 0
            if case.peer is not None:
                case.peer()()
            seen.add(case.name)
        assert len(seen) == 24 + 4 + 8 + 2 + 4
        assert {x.name for x in gpu_speed.cases("triton", "cpu", shrink=1 << 13)} < seen

    def test_the_table_has_a_line_for_every_row(self):
        row = {"op": "a", "size": "1 x 2", "direction": "forward", "backend": "cuda"}
        measured = {"us": 10.0, "copy_us": 5.0, "of_copy": 0.5, "times_floor": 2.0, "peer_us": 70.0, "before_us": 30.0}
        speed = {"rows": [{**row, **measured}, {**row, "error": "no"}], "host_us": {"pairwise, cuda": 9.5}}
        lines = gpu_table.table({"gpu": "H100", "torch": "2.4", "speed": speed}).splitlines()
        assert lines[4] == "| a | 1 x 2 | forward | cuda | 10.0 | 30.0 | 0.5 | 2.0 | 70.0 |"
        assert lines[5] == "| a | 1 x 2 | forward | cuda | no |"
        assert lines[-1] == "A call's cost on the host: pairwise, cuda: 9.5 us."


class TestLimits:
    def limits(self, tmp_path, monkeypatch, output, wrong=""):
        check = gpu_check.Check(tmp_path / "gpu.json", tmp_path, 9)
        monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/bin/{name}")
        monkeypatch.setattr(check, "run", lambda log, command, seconds: (wrong, output))
        return check.limits(9), check.found.get("limits")

    def test_every_launch_has_its_metrics(self, tmp_path, monkeypatch):
        dram, _, _, _, _, conflicts = gpu_check.METRICS
        output = "==PROF== Connected\n" + '"ID","Kernel Name","Metric Name","Metric Value"\n'
        for k, name in enumerate(("pairwise_kernel<float, 0>", "pairwise_kernel<float, 1>")):
            output += f'"{k}","{name}","{dram}","{40 + k}.5"\n"{k}","{name}","{conflicts}","1,234"\n'
        result, found = self.limits(tmp_path, monkeypatch, output)
        assert result == {"passed": True, "summary": "2 launches"}
        assert found[1] == {"kernel": "pairwise_kernel<float, 1>", dram: 41.5, conflicts: 1234}

    def test_without_permission_it_fails_and_says_so(self, tmp_path, monkeypatch):
        result, found = self.limits(tmp_path, monkeypatch, "==ERROR== ERR_NVGPUCTRPERM", "exit status 1")
        assert not result["passed"]
        assert "ERR_NVGPUCTRPERM" in result["summary"]
        assert found == []
