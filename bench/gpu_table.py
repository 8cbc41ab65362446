"""The findings of `make gpu-check` as Markdown: `python -m bench.gpu_table bench/results/<gpu>-<date>.json`."""

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "us": "us",
    "before_us": "before",
    "of_copy": "of copy",
    "times_floor": "x floor",
    "peer_us": "peer",
}


def table(found: dict[str, Any]) -> str:
    """One line per op, size, direction and backend; a cell is empty where there was nothing to measure."""
    lines = [
        f"{found['gpu']}, torch {found['torch']}",
        "",
        "| op | size | direction | backend | " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * (4 + len(COLUMNS)),
    ]
    for row in found["speed"]["rows"]:
        cells = [row[x] for x in ("op", "size", "direction", "backend")]
        cells += [row["error"]] if "error" in row else [row.get(x, "") for x in COLUMNS]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    costs = ", ".join(f"{what}: {us} us" for what, us in found["speed"]["host_us"].items())
    return "\n".join([*lines, "", f"A call's cost on the host: {costs}."])


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
