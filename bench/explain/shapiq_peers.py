"""shapiq's estimators, of the shapiq that is installed or of another Python's, on games that only the caller can play.

With numpy and shapiq alone, so that it runs where neither torch nor this package is (shapiq 1.8 needs Python 3.12):
`Elsewhere("path/to/python")` starts this file there, which asks for values over its standard output. Both have
`version`, `known` and `approximate`.
"""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time

import numpy as np

PEERS = {  # class, options
    "SVARM-IQ": ("SVARMIQ", {}),
    "SHAP-IQ": ("SHAPIQ", {}),
    "KernelSHAP-IQ": ("KernelSHAPIQ", {}),
    "permutations": ("PermutationSamplingSII", {}),
    "regression (FBII)": ("RegressionFBII", {"pairing_trick": True}),
    "ProxySHAP": ("ProxySHAP", {}),
    "ProxySHAP, adjusted": ("ProxySHAP", {"pairing_trick": False, "adjustment": True, "k_folds": 5}),
}


def approximate(game, n, budget, peer, index, seed):
    """Interactions of all pairs [n, n], and the processor's seconds outside the game.

    `game`: masks bool [S, n] -> float64 [S]; `peer`: of `PEERS`; `index`: "SII", or "BII" (Banzhaf, p = 1/2).
    """
    import shapiq.approximator

    kind, options = PEERS[peer]
    if kind != "RegressionFBII":  # whose pairs are Banzhaf's
        options = {**options, "index": index}
    if index == "BII" and kind in ("ProxySHAP", "RegressionFBII"):
        options["sampling_weights"] = np.array([math.comb(n, k) / 2**n for k in range(n + 1)])
    inside = 0.0

    def timed(masks):
        nonlocal inside
        start = time.process_time()
        values = game(np.asarray(masks, bool).reshape(-1, n))
        inside += time.process_time() - start
        return values

    start = time.process_time()
    approximator = getattr(shapiq.approximator, kind)(n=n, max_order=2, random_state=seed, **options)
    found = approximator.approximate(budget, timed)
    seconds = time.process_time() - start - inside
    pairs = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            pairs[i, j] = pairs[j, i] = found[(i, j)]
    return pairs, seconds


class Here:
    """The shapiq that is installed."""

    version = importlib.metadata.version("shapiq")
    approximate = staticmethod(approximate)

    def known(self, peers):
        """Those that this version has; ProxySHAP knows its options since 1.8."""
        new = [int(x) for x in self.version.split(".")[:2]] >= [1, 8]
        return [peer for peer in peers if new or not peer.startswith("ProxySHAP")]


class Elsewhere(Here):
    """The shapiq of another Python."""

    def __init__(self, python):
        pipe = subprocess.PIPE
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([python, "-W", "ignore", __file__], stdin=pipe, stdout=pipe, env=environment)
        self.version = self._read()["version"]

    def approximate(self, game, n, budget, peer, index, seed):
        self._write(json.dumps([n, budget, peer, index, seed]).encode() + b"\n")
        while "masks" in (answer := self._read()):
            masks = np.frombuffer(self.process.stdout.read(answer["masks"] * n), bool).reshape(-1, n)
            self._write(np.asarray(game(masks), np.float64).tobytes())
        return np.array(answer["pairs"]), answer["seconds"]

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the other Python ended with status {self.process.wait()}")
        return json.loads(line)

    def _write(self, what):
        self.process.stdin.write(what)
        self.process.stdin.flush()


def serve():
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    def tell(what, more=b""):
        answers.write(json.dumps(what).encode() + b"\n" + more)
        answers.flush()

    def game(masks):
        tell({"masks": len(masks)}, masks.tobytes())
        return np.frombuffer(source.read(8 * len(masks)), np.float64).copy()

    tell({"version": Here.version})
    for line in source:
        n, *rest = json.loads(line)
        pairs, seconds = approximate(game, n, *rest)
        tell({"pairs": pairs.tolist(), "seconds": seconds})


if __name__ == "__main__":
    serve()
