"""Prints pytest-benchmark's JSON as the README's table, and keeps a compact copy of the medians.

python -m bench.table build/bench.json [bench/results/cpu.json]
"""

import json
import sys
from pathlib import Path

KEYS = ("device", "direction", "size", "side")
VALUES = ("seconds", "pairs")
TITLES = {
    "region": "`region_interactions`, 32 regions per image, 256 walks of each (or exact)",
    "late": "`late_interaction_similarity` of B images with B captions, 49 x 32, d = 256, forward and backward",
    "moments": "`coalition_moments`, 16,384 coalitions, float32",
    "explain": "`plan` and `aggregate`: interactions of all pairs, estimated; the time holds the game's own",
    "pairwise": "`pairwise_interactions`, batches of float32 problems",
    "credit": "`maxsim_credit`, float32, by entry of the scores",
    "coalitions": "`sample_coalitions` and `sample_permutations`, a sample",
    "values, max-mean": "`shapley_values`, float32, by entry of the scores",
    "values, maxsim": '`shapley_values(game="maxsim")`, float32, by entry of the scores',
    "all pairs, max-mean": '`pairwise_interactions(pairs="all")`, float32, by entry of the scores',
    "all pairs, maxsim": '`pairwise_interactions(pairs="all", game="maxsim")`, float32, by entry of the scores',
}


def medians(report: dict) -> dict[str, dict[tuple[str, ...], tuple]]:
    """op -> (device, direction, size, side) -> median seconds and pairs a call, an estimator's error or peak bytes."""
    found: dict = {}
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        key = tuple(info[k] for k in KEYS)
        found.setdefault(info["op"], {})[key] = (
            entry["stats"]["median"],
            info["pairs"],
            *(info[k] for k in ("error", "peak") if k in info),
        )
        for side, (seconds, peak) in info.get("others", {}).items():  # timed in turns with this one
            found[info["op"]][(*key[:3], side)] = (seconds, info["pairs"], peak)
    return found


def batch_table(times: dict, device: str) -> list[str]:
    sizes = [size for d, direction, size, side in times if (d, direction, side) == (device, "forward", "loupe_ext")]
    rows = [
        "| M x N | forward, ns per pair | torch, times as long | backward, ns per pair | torch, times as long |"
        " 2 threads | one problem |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        cells = []
        for direction in ("forward", "backward"):
            reference, of_reference = times[device, direction, size, "reference"]
            ours, pairs = times[device, direction, size, "loupe_ext"]
            cells += [f"{ours / pairs * 1e9:.2f}", f"{reference / of_reference / (ours / pairs):.0f} x"]
        threaded = times.get((device, "forward", size, "loupe_ext, 2 threads"))
        one = times.get((device, "one", size, "loupe_ext"))
        cells.append(f"{times[device, 'forward', size, 'loupe_ext'][0] / threaded[0]:.2f} x" if threaded else "-")
        cells.append(f"{one[0] * 1e6:.0f} us" if one else "-")
        rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


def draw_table(times: dict, device: str) -> list[str]:
    rows = ["| players | uniform, ns | torch, times as long | banzhaf, ns | permutation, ns | copy of the bits, ns |"]
    rows.append("|---|---|---|---|---|---|")
    for d, direction, size, side in times:
        if (d, direction, side) == (device, "draw", "uniform"):
            ns = {
                key[3]: seconds / samples * 1e9
                for key, (seconds, samples) in times.items()
                if key[:3] == (device, "draw", size)
            }
            cells = [f"{ns['uniform']:.1f}", f"{ns['torch'] / ns['uniform']:.0f} x"]
            cells += [f"{ns[x]:.1f}" for x in ("banzhaf", "permutations", "copy")]
            rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


def moments_table(times: dict, device: str) -> list[str]:
    rows = ["| n x C | forward, us | torch, times as long | unpacking too | backward, us | torch | unpacking too |"]
    rows.append("|---|---|---|---|---|---|---|")
    for d, direction, size, side in times:
        if (d, direction, side) == (device, "moments", "loupe_ext"):
            cells = []
            for way in ("moments", "moments, backward"):
                ours = times[device, way, size, "loupe_ext"][0]
                cells.append(f"{ours * 1e6:.0f}")
                cells += [f"{times[device, way, size, x][0] / ours:.1f} x" for x in ("torch", "torch, unpacking")]
            rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


def estimate_table(times: dict, device: str) -> list[str]:
    rows = ["| game, evaluations | by | seconds | times as long | relative error |", "|---|---|---|---|---|"]
    for d, direction, size, side in sorted(times, key=lambda key: key[2]):
        if (d, direction) == (device, "estimate"):
            seconds, evaluations, error = times[d, direction, size, side]
            ratio = seconds / times[d, direction, size, "loupe_ext"][0]
            rows.append(f"| {size}, {evaluations:,} | {side} | {seconds:.2g} | {ratio:.2g} x | {error:.1%} |")
    return rows


def region_table(times: dict, device: str) -> list[str]:
    rows = [
        "| size | ms per batch | ns per step | torch, times as long | 4 x the walks | 2 threads |",
        "|---|---|---|---|---|---|",
    ]
    for d, direction, size, side in times:
        if d == device and direction in ("walk", "late") and side == "loupe_ext":
            seconds, steps = times[device, direction, size, side]
            of = lambda x, key=(device, direction, size): times[(*key, x)][0] if (*key, x) in times else None  # noqa: E731
            more, threaded = of("loupe_ext, 1024 walks"), of("loupe_ext, 2 threads")
            cells = [f"{seconds * 1e3:.1f}", f"{seconds / steps * 1e9:.2f}" if direction == "walk" else "-"]
            cells += [f"{of('reference') / seconds:.0f} x", f"{more / seconds:.2f} x as long" if more else "-"]
            rows.append(f"| {size} | {' | '.join(cells)} | {f'{seconds / threaded:.2f} x' if threaded else '-'} |")
    return rows


def late_table(times: dict, device: str) -> list[str]:
    rows = [
        "| B | ms | einsum, times as long | 2 threads, ms | einsum, 2 threads | peak memory, MiB | of einsum, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in [key[2] for key in times if key[0] == device and key[3] == "loupe_ext"]:
        cells = []
        for suffix in ("", ", 2 threads"):
            ours, einsum = (times.get((device, "both", size, side + suffix)) for side in ("loupe_ext", "einsum"))
            cells += [f"{ours[0] * 1e3:.0f}", f"{einsum[0] / ours[0]:.2f} x"] if ours and einsum else ["-", "-"]
        cells += [f"{times[device, 'both', size, side][2] / 2**20:.0f}" for side in ("loupe_ext", "einsum")]
        rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


TABLES = {
    "coalitions": draw_table,
    "moments": moments_table,
    "explain": estimate_table,
    "region": region_table,
    "late": late_table,
}


def shapiq_table(times: dict) -> list[str]:
    rows = ["| M x N | shapiq, exact | loupe_ext, per problem | ratio |", "|---|---|---|---|"]
    for device, direction, size, side in times:
        if (direction, side) == ("shapiq", "shapiq"):
            seconds, pairs = times[device, direction, size, side]
            ours, all_pairs = times[device, direction, size, "loupe_ext"]
            ours *= pairs / all_pairs
            rows.append(f"| {size} | {seconds:.2f} s | {ours * 1e6:.2f} us | {seconds / ours:.1e} |")
    return rows


def main(source: str, keep: str | None = None) -> None:
    report = json.loads(Path(source).read_text())
    every = medians(report)
    machine = report["machine_info"]
    about = {
        "date": report["datetime"][:10],
        "processor": machine["cpu"].get("brand_raw", machine["processor"]),
        "simd": machine["cpu_target"],
        "gpu": machine.get("gpu"),
        "python": machine["python_version"],
        "torch": machine["torch"],
    }
    print(", ".join(f"{k} {v}" for k, v in about.items() if v), end="\n\n")
    for op, times in every.items():
        title = TITLES.get(op, op)
        for device in dict.fromkeys(key[0] for key in times):
            if (rows := TABLES.get(op, batch_table)(times, device))[2:]:
                print(f"{title}, on {device}:\n")
                print("\n".join(rows), end="\n\n")
        targets = [key for key in times if key[1] == "target"]
        if targets:
            print(f"{title}, forward, on other SIMD targets, ns per pair:\n")
            sizes = list(dict.fromkeys(key[2] for key in targets))
            print(f"| target | {' | '.join(sizes)} |\n|---|{'---|' * len(sizes)}")
            for side in dict.fromkeys(key[3] for key in targets):
                cells = (times["cpu", "target", size, side] for size in sizes)
                print(f"| {side} | {' | '.join(f'{seconds / pairs * 1e9:.2f}' for seconds, pairs in cells)} |")
            print()
        if any(key[1] == "shapiq" for key in times):
            print(f"{title}, beside the same by enumeration:\n")
            print("\n".join(shapiq_table(times)), end="\n\n")
    if keep:
        rows = [
            {
                "op": op,
                **dict(zip(KEYS, key, strict=True)),
                **dict(zip((*VALUES, "peak" if op == "late" else "error"), values, strict=False)),
            }
            for op, times in every.items()
            for key, values in times.items()
        ]
        Path(keep).parent.mkdir(parents=True, exist_ok=True)
        Path(keep).write_text(json.dumps({**about, "medians": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
