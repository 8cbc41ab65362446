"""Speed on a GPU, by device events: `python -m bench.gpu_speed out.json [seconds [before.json]]`; `make gpu-check` runs
it, and `python -m bench.gpu_table` prints what it found.

Every row: median microseconds per call; those of a device-to-device copy that moves the bytes which the op must (every
input read and every result written once), and of the operations that it must do, one per lane and cycle: the floors.
Then those of its peer (bench/gpu_cases.py), and what an earlier run had. Input sets take turns, of twice the L2 cache
together. The file is rewritten after every row, and no row is begun after `seconds`.
"""

import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import loupe_ext
from bench.gpu_cases import Case, cases

LANES = 128  # of a multiprocessor
HOLD = 40_000_000  # cycles, about 20 ms: the host queues all of a round meanwhile, so its cost is not in the times


def size_of(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def microseconds(
    calls: list[Callable[[], Any]],
    event: Callable[[], Any],
    hold: Callable[[], object],
    synchronize: Callable[[], object],
    rounds: int = 3,
    length: int = 8,
) -> float:
    """Median microseconds of a call on the device, the calls taking turns; each was called once before."""
    turns = itertools.cycle(calls)
    for _ in calls:
        next(turns)()
    times = []
    for _ in range(rounds):
        synchronize()
        hold()
        marks = [event() for _ in range(length + 1)]
        marks[0].record()
        for mark in marks[1:]:
            next(turns)()
            mark.record()
        synchronize()
        times += [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return statistics.median(times)


def host_microseconds(call: Callable[[], Any], synchronize: Callable[[], object], length: int = 20) -> float:
    """What a call costs the host, which does not wait for the device."""
    times = []
    for _ in range(length):
        synchronize()
        before = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - before))
    return statistics.median(times)


def measure(
    case: Case, cache: int, timed: Callable[[list[Callable[[], Any]]], float], rate: float = 0
) -> dict[str, Any]:
    """A case's row; `timed` gives the microseconds of calls that take turns, `cache` is the L2 cache in bytes, `rate`
    the operations in a microsecond (0: not known)."""
    first, tensors = case.make()
    count = min(max(2, math.ceil(2 * cache / size_of(tensors))), 16)
    calls = [first, *(case.make()[0] for _ in range(count - 1))]
    half = math.ceil(size_of(tensors) / 2)
    copies = [torch.empty(2, half, dtype=torch.uint8, device=tensors[0].device) for _ in range(count)]
    ours = timed(calls)
    copy = timed([lambda x=x: x[1].copy_(x[0]) for x in copies])
    row = {"op": case.op, "size": case.size, "direction": case.direction, "backend": case.backend}
    row |= {"us": round(ours, 1), "copy_us": round(copy, 1), "of_copy": round(copy / ours, 4), "sets": count}
    operations = case.operations / rate if rate else 0
    floor = max(copy, operations)
    return {**row, "operations_us": round(operations, 1), "times_floor": round(ours / floor, 2)}


def earlier(path: Path | None) -> dict[tuple[str, ...], float]:
    """The microseconds of an earlier run's rows."""
    found = json.loads(path.read_text()) if path else {}
    rows = found.get("speed", found).get("rows", [])
    return {(x["op"], x["size"], x["direction"], x["backend"]): x["us"] for x in rows if "us" in x}


def write(path: Path, content: object) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def main(path: Path, seconds: float, before: Path | None = None) -> int:
    until = time.monotonic() + seconds
    event = lambda: torch.cuda.Event(enable_timing=True)  # noqa: E731
    hold = lambda: torch.cuda._sleep(HOLD)  # noqa: E731
    timed = lambda calls: microseconds(calls, event, hold, torch.cuda.synchronize)  # noqa: E731
    device = torch.cuda.get_device_properties(0)
    cache = getattr(device, "L2_cache_size", 50 << 20)
    rate = LANES * device.multi_processor_count * getattr(device, "clock_rate", 0) / 1000  # the clock is in kHz
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"operations_per_us": rate, "rows": rows, "host_us": {}, "complete": False}
    old, peers = earlier(before), {}
    for backend in ("cuda", "triton"):  # Triton last: it compiles for seconds what it is asked for the first time
        small = torch.randn(4, 16, 32, device="cuda")
        lengths = torch.full((4,), 16, device="cuda")
        for what, options in (("pairwise", {}), ("pairwise, lengths", {"region_lengths": lengths})):
            call = lambda: loupe_ext.pairwise_interactions(small, backend=backend, **options)  # noqa: B023, E731
            call()
            host = host_microseconds(call, torch.cuda.synchronize)
            result["host_us"][f"{what}, {backend}"] = round(host, 1)
        for case in cases(backend, "cuda"):
            if time.monotonic() > until:
                write(path, result)
                return 1
            try:
                row = measure(case, cache, timed, rate)
                if case.peer is not None:
                    if case.name not in peers:
                        peers[case.name] = round(timed([case.peer()]), 1)
                    row["peer_us"] = peers[case.name]
                if (*case.name, backend) in old:
                    row["before_us"] = old[(*case.name, backend)]
            except Exception as error:  # the other rows are still worth having
                row = {"op": case.op, "size": case.size, "direction": case.direction, "backend": backend}
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
            print(" ".join(str(x) for x in row.values()), flush=True)
            write(path, result)
    result["complete"] = True
    write(path, result)
    return int(any("error" in x for x in rows))


if __name__ == "__main__":
    given = sys.argv[3:]
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2] if sys.argv[2:] else 60), Path(given[0]) if given else None))
