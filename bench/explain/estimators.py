"""Interactions of all pairs of any game, from equal numbers of evaluations: rows of the README's table."""

import time

import torch

from loupe_ext import games, interactions

PEERS = ("SVARM-IQ", "KernelSHAP-IQ", "permutations", "ProxySHAP", "ProxySHAP, adjusted")


def run(where, quick):
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

        start = time.process_time()
        ours = interactions(game, method="stratified", budget=budget).pairs
        add("loupe_ext", ours, time.process_time() - start)
        for peer in where.known(PEERS):
            inside = [0.0]

            def values(masks, game=game, inside=inside):
                start = time.process_time()
                found = game(torch.tensor(masks)).numpy()
                inside[0] += time.process_time() - start
                return found

            pairs, seconds = where.approximate(values, game.n, budget, peer, "SII", 0)
            add(f"{peer} (shapiq {where.version})", torch.tensor(pairs), seconds + inside[0])
    return {"rows": rows}
