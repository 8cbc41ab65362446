"""Everything that a GPU has to confirm, in one command and without a network: `make gpu-check`.

Builds the extension with CUDA for this machine's GPU into build/gpu-check, runs there the tests marked `gpu` (CUDA and
Triton beside the reference), the training test, compute-sanitizer on a few tests, bench/gpu_speed.py, and ncu on the
pairwise kernels, for what limits them. Each phase has a share of --seconds, and is ended when that is over. Failures
are printed as they happen, and bench/results/<gpu>-<date>.json is rewritten after every phase, so that a run cut off
tells what it found.
"""

import argparse
import csv
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OPS = ("pairwise", "sides", "maxsim_credit", "coalitions", "moments", "region", "region_late")
TESTS = tuple(f"tests/test_{op}.py" for op in OPS)
WORK = ROOT / "build" / "gpu-check"
SHARES = {"build": 80, "tests": 110, "training": 25, "sanitizer": 40, "speed": 90, "limits": 15}
METRICS = (
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
)
LAUNCHES = """
import torch, loupe_ext
from bench.gpu_cases import PAIRS
for shape in PAIRS:
    x = torch.randn(shape, device="cuda", requires_grad=True)
    loupe_ext.pairwise_interactions(x).sum().backward()
"""
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Of each op: short lines, several a warp, ragged lengths, ties, two score matrices; words of one bit and of two.
FEW = (
    "(9x5-float64 or ragged-float64 or ties-float64 or two-sided-float64 or 65-players-float64 or every-size or "
    "17-walks or test_same_permutations or maxima_match) and cuda and not triton"
)


class Check:
    """Runs phases within a time, and rewrites their findings as JSON after each."""

    def __init__(self, path: Path, work: Path, seconds: float, shares: Mapping[str, float] = SHARES) -> None:
        self.path, self.work, self.left = path, work, dict(shares)
        self.until = time.monotonic() + seconds
        self.found: dict[str, Any] = {"complete": False, "checks": {}}

    def phase(self, name: str, run: Callable[[float], dict[str, Any]]) -> bool:
        """`run` is told its seconds: its share of what is left, the shares of phases gone by not counted."""
        begin = time.monotonic()
        most = max(self.until - begin, 0) * self.left[name] / sum(self.left.values())
        del self.left[name]
        print(f"== {name}, at most {most:.0f} s", flush=True)
        try:
            result = run(most) if most > 0 else {"passed": False, "summary": "no time was left"}
        except Exception as error:  # the phases after it still tell something
            result = {"passed": False, "summary": f"{type(error).__name__}: {error}"}
        self.found["checks"][name] = {**result, "seconds": round(time.monotonic() - begin, 1)}
        self.found["complete"] = not self.left
        self.write()
        print(f"== {name}: {'passed' if result['passed'] else 'FAILED'}: {result.get('summary', '')}", flush=True)
        return bool(result["passed"])

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(partial, self.path)

    def start(self, log: str, command: list[object], **environment: str) -> subprocess.Popen:
        """A command in a process group of its own, which writes to a log."""
        print(f"$ {' '.join(str(x) for x in command)}", flush=True)
        env = {**os.environ, "PYTHONPATH": str(self.work / "site"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        with (self.work / log).open("w") as file:
            words = [str(x) for x in command]
            return subprocess.Popen(
                words, cwd=self.work, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, process: subprocess.Popen, log: str, seconds: float) -> tuple[str, str]:
        """Waits for it, printing lines with FAILED as they come: how it ended ("" if well), and its output."""
        until, shown = time.monotonic() + max(seconds, 0), 0
        while True:
            ended = process.poll() is not None
            late = not ended and time.monotonic() > until
            if late:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                process.wait()
            output = (self.work / log).read_text(errors="replace")
            lines = output.splitlines()
            for line in lines[shown:]:
                if line.startswith("FAILED "):
                    print(line, flush=True)
            shown = len(lines)
            if ended or late:
                how = f"cut off after {seconds:.0f} s" if late else f"exit status {process.returncode}"
                return ("" if ended and process.returncode == 0 else how), output
            time.sleep(0.1)

    def run(self, log: str, command: list[object], seconds: float, **environment: str) -> tuple[str, str]:
        return self.finish(self.start(log, command, **environment), log, seconds)

    def tests(self, name: str, arguments: list[object], seconds: float) -> dict[str, Any]:
        """Runs pytest; how many tests ended how, and every failure with its error, also of a run cut off."""
        report = self.work / f"{name}.jsonl"
        report.write_text("")
        command = [sys.executable, "-m", "pytest", "-p", "bench.report", *arguments]
        wrong, _ = self.run(f"{name}.log", command, seconds, LOUPE_REPORT=str(report))
        lines = [json.loads(x) for x in report.read_text().splitlines()]
        counts = {x: sum(line["outcome"] == x for line in lines) for x in ("passed", "failed", "skipped")}
        slowest = sorted(lines, key=lambda x: -x["seconds"])[:10]
        return {
            "passed": not wrong and counts["passed"] > 0,  # all skipped is not passed
            "summary": f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
            + (f"; {wrong}" if wrong else ""),
            "failures": [x for x in lines if x["outcome"] == "failed"],
            "slowest": {x["test"]: x["seconds"] for x in slowest},
        }

    def sanitizer(self, seconds: float) -> dict[str, Any]:
        """compute-sanitizer's tools side by side."""
        program = shutil.which("compute-sanitizer")
        if program is None:
            return {"passed": False, "summary": "compute-sanitizer was not found"}
        until = time.monotonic() + seconds
        pytest = [sys.executable, "-m", "pytest", *TESTS, "-m", "gpu", "-k", FEW]
        options = ["--error-exitcode", "9", "--target-processes", "all"]
        running = {x: self.start(f"{x}.log", [program, "--tool", x, *options, *pytest]) for x in TOOLS}
        ends, told = {}, re.compile(r"ERROR SUMMARY|RACECHECK SUMMARY|passed|failed|no tests")
        for tool, process in running.items():
            wrong, output = self.finish(process, f"{tool}.log", until - time.monotonic())
            ends[tool] = " | ".join([*[x for x in output.splitlines() if told.search(x)][-2:], *filter(None, [wrong])])
        clean = all(
            re.search(r"\d+ passed", x) and "exit status" not in x and "cut off" not in x for x in ends.values()
        )
        return {"passed": clean, "summary": str(ends)}

    def speed(self, seconds: float) -> dict[str, Any]:
        path = self.work / "speed.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.gpu_speed", path, max(seconds - 10, 1)]  # it ends by itself
        gpu = self.path.stem[: -len("-2000-01-01")]
        before = sorted(x for x in self.path.parent.glob(f"{gpu}-????-??-??.json") if x.name < self.path.name)
        wrong, output = self.run("speed.log", [*command, *before[-1:]], seconds)
        print(output)
        told = json.loads(path.read_text()) if path.exists() else {"rows": []}
        self.found["speed"] = told | {"before": before[-1].name if before else None}
        return {"passed": not wrong, "summary": f"{len(told['rows'])} rows" + (f"; {wrong}" if wrong else "")}

    def limits(self, seconds: float) -> dict[str, Any]:
        """What ncu says of every pairwise kernel, forward and backward, of every size."""
        program = shutil.which("ncu")
        if program is None:
            return {"passed": False, "summary": "ncu was not found"}
        options = ["--csv", "--metrics", ",".join(METRICS), "--kernel-name", "regex:pairwise"]
        wrong, output = self.run("limits.log", [program, *options, sys.executable, "-c", LAUNCHES], seconds)
        lines = output.splitlines()
        first = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
        launches: dict[str, dict[str, Any]] = {}
        for row in csv.DictReader(lines[first:]):
            if row["Metric Name"] in METRICS:
                launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
                launch[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
        self.found["limits"] = list(launches.values())
        passed = not wrong and bool(launches)
        return {
            "passed": passed,
            "summary": f"{len(launches)} launches" + (f"; {wrong}: {lines[-1:]}" if wrong else ""),
        }

    def build(self, seconds: float, capability: str) -> dict[str, Any]:
        """For this GPU alone, with what this Python has, beside copies of the tests: the sources' own loupe_ext has no
        compiled module and would be imported first."""
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
        pip += ["--no-compile", "--target", self.work / "site", ROOT]
        options = {"LOUPE_CUDA": "ON", "CMAKE_ARGS": f"-DCMAKE_CUDA_ARCHITECTURES={capability}"}
        wrong, output = self.run("build.log", pip, seconds, **options)
        for folder in ("tests", "bench", "python_ref", "csrc"):
            shutil.copytree(ROOT / folder, self.work / folder, ignore=shutil.ignore_patterns("results", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.work)
        return {"passed": not wrong, "summary": wrong and f"{wrong}: {output[-2000:]}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=360, help="for all phases together")
    seconds = parser.parse_args().seconds
    try:
        import torch
    except ImportError:
        print("gpu-check: this Python has no torch; nothing was checked")
        return 1
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device that torch can use was found; nothing was checked")
        return 1
    gpu = torch.cuda.get_device_name()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    check = Check(ROOT / "bench" / "results" / f"{name}-{datetime.date.today()}.json", WORK, seconds)
    nvcc = shutil.which("nvcc")
    cuda = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.splitlines()[-1:] if nvcc else []
    check.found |= {"gpu": gpu, "nvcc": cuda, "torch": torch.__version__, "machine": platform.platform()}
    capability = "".join(str(x) for x in torch.cuda.get_device_capability())
    many = ["-n", "auto"] if importlib.util.find_spec("xdist") else []
    if check.phase("build", lambda most: check.build(most, capability)):
        check.phase("tests", lambda most: check.tests("tests", [*TESTS, "-m", "gpu", *many], most))
        training = ["tests/test_train.py", "tests/test_late_interaction.py", "-k", "on_cuda or test_cuda"]
        check.phase("training", lambda most: check.tests("training", training, most))
        check.phase("sanitizer", check.sanitizer)
        check.phase("speed", check.speed)
        check.phase("limits", check.limits)
    failed = [name for name, result in check.found["checks"].items() if not result["passed"]]
    print(
        f"gpu-check: {', '.join(failed) + ' failed' if failed else 'all passed'}; wrote {check.path.relative_to(ROOT)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
