"""Explanations beside the peers: python -m bench.explain {minilm,clip,estimators,late,pointing} ... [--quick]

Each part that is named runs (a few minutes on a core), puts its figures into bench/results/explain.json, and
docs/explain-peers.md is written anew from all that are there; with no part named, that alone. `--shapiq PYTHON`: the
Python of an environment with a newer shapiq (1.8 needs Python 3.12: `pip install shapiq xgboost-cpu`), whose estimators
then stand for those of the shapiq installed here.
"""

import argparse
import datetime
import functools
import json
import os
from pathlib import Path

import torch

from bench.explain import dual, estimators, late, pointing, shapiq_peers, tables

PARTS = ("minilm", "clip", "estimators", "late", "pointing")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.explain", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--shapiq", metavar="PYTHON", help="a Python with another shapiq")
    parser.add_argument("--model", metavar="FOLDER", help="of `loupe train`, for pointing; default: trains one")
    parser.add_argument("--results", type=Path, default=Path("bench/results/explain.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/explain-peers.md"))
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"part: expected {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    where = shapiq_peers.Elsewhere(options.shapiq) if options.shapiq else shapiq_peers.Here()
    runs = {
        "minilm": functools.partial(dual.minilm, where),
        "clip": functools.partial(dual.clip, where),
        "estimators": functools.partial(estimators.run, where),
        "late": late.run,
        "pointing": functools.partial(pointing.run, folder=options.model),
    }
    for part in options.parts:
        found = runs[part](options.quick)
        about = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "torch": torch.__version__}
        results[part] = {"about": about, **found}
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    options.table.write_text(tables.page(results))


if __name__ == "__main__":
    main()
