"""Interactions of all pairs of any game, from equal numbers of evaluations: rows of the README's table."""

import time

import torch

from bench.explain import shapiq_peers
from loupe_ext import games, interactions

PEERS = ("SVARM-IQ", "KernelSHAP-IQ", "permutations", "ProxySHAP", "ProxySHAP, adjusted")


def run(shapiqs, quick):
    rows = []
    for sides, budget in ((3, 40),) if quick else ((10, 2**14), (16, 2**14)):
        generator = torch.Generator().manual_seed(0)
        game = games.MaxMean(torch.rand(sides, sides, generator=generator, dtype=torch.float64))
        true = interactions(game).pairs

        def add(method, found, seconds, true=true, n=game.n, budget=budget):
            error = ((found - true).norm() / true.norm()).item()
            game = f"max-mean, {n} players"
            rows.append({"game": game, "evaluations": budget, "method": method, "error": error, "seconds": seconds})
            print(f"{game}: {method} {error:.1%} in {seconds:.2g} s", flush=True)

        start = time.perf_counter()
        ours = interactions(game, method="stratified", budget=budget).pairs
        add("loupe_ext", ours, time.perf_counter() - start)
        for where in shapiqs:
            for peer in PEERS:
                if peer in shapiq_peers.NEW and not hasattr(where, "process"):
                    continue
                values = lambda masks, game=game: game(torch.tensor(masks)).numpy()  # noqa: E731
                start = time.perf_counter()
                pairs, _ = where.approximate(values, game.n, budget, peer, "SII", 0)
                add(f"{peer} (shapiq {where.version()})", torch.tensor(pairs), time.perf_counter() - start)
    return rows
