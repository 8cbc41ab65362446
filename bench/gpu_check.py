"""Everything that a GPU has to confirm, in one command and without a network: `make gpu-check`.

Builds the extension with CUDA for this machine's GPU into build/gpu-check, runs the tests there (CUDA and Triton beside
the reference), compute-sanitizer on the small ones, and the benchmarks, and writes bench/results/<gpu>-<date>.json.
"""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = tuple(f"tests/test_{op}.py" for op in ("pairwise", "sides", "coalitions", "moments", "region", "region_late"))
WORK = ROOT / "build" / "gpu-check"
SMALL = (
    "(1x7 or 9x5 or ragged or ties or two-sided or same or players or every-size or 17-walks) "
    "and (cuda or triton) and not emulated and not interpreted"
)


def run(*command: object, log: str, cwd: Path = WORK, **environment: str) -> tuple[int, str]:
    """Runs a command, shows its last lines, keeps all of it in a log; its exit status and output."""
    print(f"$ {' '.join(str(x) for x in command)}", flush=True)
    env = {**os.environ, "PYTHONPATH": str(WORK / "site"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [str(x) for x in command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    (WORK / log).write_text(done.stdout)
    print("\n".join(done.stdout.splitlines()[-6:]), flush=True)
    return done.returncode, done.stdout


def main() -> int:
    try:
        import torch
    except ImportError:
        print("gpu-check: this Python has no torch; nothing was checked")
        return 1
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device that torch can use was found; nothing was checked")
        return 1
    gpu = torch.cuda.get_device_name()
    capability = "".join(str(x) for x in torch.cuda.get_device_capability())
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    python = sys.executable
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile"]
    built, _ = run(
        *pip,
        "--target",
        WORK / "site",
        ROOT,
        log="build.log",
        LOUPE_CUDA="ON",
        CMAKE_ARGS=f"-DCMAKE_CUDA_ARCHITECTURES={capability}",
    )
    if built != 0:
        print(f"gpu-check: the build failed; see {WORK / 'build.log'}")
        return 1
    # Away from the sources: their loupe_ext has no compiled module and would be imported first.
    for folder in ("tests", "bench", "python_ref", "csrc"):
        shutil.copytree(ROOT / folder, WORK / folder, ignore=shutil.ignore_patterns("results", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", WORK)

    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    checks: dict[str, dict[str, object]] = {}
    status, output = run(*pytest, *TESTS, "-k", "not emulated", log="tests.log")
    checks["tests"] = {"passed": status == 0, "summary": output.strip().splitlines()[-1]}
    status, output = run(*pytest, "tests/test_train.py", "-k", "on_cuda", log="training.log")
    summary = output.strip().splitlines()[-1]
    checks["training"] = {"passed": status == 0 and " passed" in summary, "summary": summary}  # skipped is not passed
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        if sanitizer is None:
            checks[tool] = {"passed": None, "summary": "compute-sanitizer was not found"}
            continue
        small = [
            *pytest,
            *TESTS,
            "-k",
            SMALL,
        ]
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *small]
        status, output = run(*command, log=f"{tool}.log")
        lines = [
            line for line in output.splitlines() if re.search(r"ERROR SUMMARY|RACECHECK SUMMARY|passed|failed", line)
        ]
        checks[tool] = {"passed": status == 0, "summary": " | ".join(lines[-2:])}
    report = WORK / "bench.json"
    status, _ = run(
        *pytest,
        "bench",
        "-k",
        "cuda or triton",
        "--benchmark-disable-gc",
        f"--benchmark-json={report}",
        log="bench.log",
    )
    checks["benchmarks"] = {"passed": status == 0}

    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    result = ROOT / "bench" / "results" / f"{name}-{datetime.date.today()}.json"
    if report.exists():
        status, table = run(python, "-m", "bench.table", report, result, log="table.log")
        print(table)
    kept = json.loads(result.read_text()) if result.exists() else {}
    cuda = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1:]
    versions = {"gpu": gpu, "nvcc": cuda, "torch_cuda": torch.version.cuda, "machine": platform.platform()}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({**kept, **versions, "checks": checks}, indent=1) + "\n")
    failed = [name for name, check in checks.items() if check["passed"] is False]
    print(f"gpu-check: {', '.join(failed) + ' failed' if failed else 'all passed'}; wrote {result.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
