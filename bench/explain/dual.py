"""Dual encoders: cross interactions from equal passes of each encoder, against the truth, by us and by the peers."""

import statistics
import time

import torch

from bench.explain.models import clocked, embedded, random_clip, sentence, subsets, tabulated
from loupe_ext.explain import explain_dual_encoder

TEXTS = (
    "why was the old river bridge closed to cars last week",
    "divers found deep cracks in its stone pillars after the flood",
)


HARDNESS = {"mild": 1.0, "hard": 3.0}  # how large the random weights are, of their usual size


def banzhaf(table, p=0.5):
    """Vector-valued p-Banzhaf values [n, d] of a side, from the embeddings of all its coalitions [2^n, d]."""
    masks = subsets((len(table) - 1).bit_length())
    n, sizes = (
        masks.shape[1],
        (masks.sum(1, keepdim=True) - masks.long()).double(),
    )  # of the coalition without the player
    weights = p**sizes * (1 - p) ** (n - 1 - sizes) * (2 * masks.double() - 1)
    return weights.T @ table


def truth(image, text, index):
    """Cross interactions [n_I, n_T] from both tables; Shapley's by as many nodes as make the integral exact."""
    if index == "banzhaf":
        return banzhaf(image) @ banzhaf(text).T
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(((len(image) * len(text)) - 1).bit_length() // 2)
    return sum(w / 2 * banzhaf(image, p) @ banzhaf(text, p).T for p, w in zip((nodes + 1) / 2, weights, strict=True))


def joint_fit(f, x, g, y, rows=2**14):
    """FIxLIP's cross-modal regression (NeurIPS 2025) at p = 1/2: one least squares over all products of both sides.

    Of embeddings [K, d] and masks bool [K, n] of each side: constant, players and cross pairs. Its normal equations
    are summed up in parts, which spares it the matrix of K^2 rows that its authors' code makes.
    """
    m, n = x.shape[1], y.shape[1]
    x, y, values = x.double(), y.double(), f @ g.T
    width = 1 + m + n + m * n
    gram, moments = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    step = max(1, rows // len(y))
    for start in range(0, len(x), step):
        a = x[start : start + step].repeat_interleave(len(y), 0)
        b = y.repeat(len(a) // len(y), 1)
        design = torch.cat([torch.ones(len(a), 1), a, b, (a[:, :, None] * b[:, None]).flatten(1)], 1)
        gram += design.T @ design
        moments += design.T @ values[start : start + step].flatten()
    return torch.linalg.lstsq(gram, moments[:, None]).solution[1 + m + n :, 0].view(m, n)


def by_us(image, text, K, index, seed):
    (image, spent_i), (text, spent_t) = clocked(image), clocked(text)
    start = time.process_time()
    found = explain_dual_encoder(image, text, index=index, num_coalitions=K, seed=seed)
    return found, time.process_time() - start - spent_i[0] - spent_t[0]


def by_joint_fit(image, text, K, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(K, side.n, generator=generator) < 0.5 for side in (image, text))
    f, g = embedded(image, x), embedded(text, y)
    start = time.process_time()
    found = joint_fit(f, x, g, y)
    return found, time.process_time() - start


def by_shapiq(where, peer, image, text, K, index, seed):
    """Of the game of all players: each evaluation is a pass of both encoders."""
    m = image.n

    def game(masks):
        masks = torch.tensor(masks)
        return (embedded(image, masks[:, :m]) * embedded(text, masks[:, m:])).sum(1).numpy()

    name = "SII" if index == "shapley" else "BII"
    pairs, seconds = where.approximate(game, m + text.n, K, peer, name, seed)
    return torch.tensor(pairs)[:m, m:], seconds


def error(found, true):
    return ((found - true).norm() / true.norm()).item()


PEERS = {
    "banzhaf": ("SVARM-IQ", "regression (FBII)", "ProxySHAP", "ProxySHAP, adjusted"),
    "shapley": ("SVARM-IQ", "KernelSHAP-IQ", "permutations", "ProxySHAP", "ProxySHAP, adjusted"),
}


def compare(game, image, text, true, index, budgets, seeds, where):
    """A row per method and budget: error against `true` and seconds outside the encoders. `where` None: of us alone."""
    rows = []

    def add(method, K, calls):
        found = [(error(pairs, true), seconds) for pairs, seconds in calls]
        errors, seconds = zip(*found, strict=True)
        rows.append(
            {
                "game": game,
                "index": index,
                "passes": K,
                "method": method,
                "error": statistics.fmean(errors),
                "spread": statistics.stdev(errors) if len(errors) > 1 else None,
                "seconds": statistics.median(seconds),
                "seeds": len(errors),
            }
        )
        print(f"{game}, {index}, {K}: {method} {rows[-1]['error']:.3f}, {rows[-1]['seconds']:.2g} s", flush=True)

    for K in budgets:
        ours = (by_us(image, text, K, index, seed) for seed in range(seeds))
        add("loupe_ext", K, ((found.pairs, seconds) for found, seconds in ours))
        if where is None:
            continue
        if index == "banzhaf":
            add("joint least squares (FIxLIP)", K, [by_joint_fit(image, text, K, 0)])
        for peer in where.known(PEERS[index]):
            if peer == "SVARM-IQ" and image.n + text.n > 60:
                continue  # it takes many minutes
            add(f"{peer} (shapiq {where.version})", K, [by_shapiq(where, peer, image, text, K, index, 0)])
    return rows


def coverage(game, image, text, true, index, K, seeds):
    """How often an interval of 1.96 standard errors holds the truth, over all pairs."""
    inside = [
        ((found.pairs - true).abs() <= 1.96 * found.pair_errors + 1e-9).double().mean().item()
        for found in (by_us(image, text, K, index, seed)[0] for seed in range(100, 100 + seeds))
    ]
    print(f"coverage, {game}, {index}, {K}: {statistics.fmean(inside):.3f}", flush=True)
    return {"game": game, "index": index, "passes": K, "seeds": seeds, "coverage": statistics.fmean(inside)}


def overhead(image, text, K):
    """What explaining costs beside the passes of both encoders."""
    (clocked_image, spent_i), (clocked_text, spent_t) = clocked(image), clocked(text)
    start = time.process_time()
    explain_dual_encoder(clocked_image, clocked_text, num_coalitions=K)
    total, inside = time.process_time() - start, spent_i[0] + spent_t[0]
    print(f"overhead at {image.n} x {text.n}, {K}: {(total - inside) / inside:.2%} of {inside:.1f} s", flush=True)
    return {"game": f"CLIP {image.n} x {text.n}", "passes": K, "encoders": inside, "share": (total - inside) / inside}


def minilm(where, quick):
    """MiniLM's own weights, the truth by enumeration."""
    texts = TEXTS if not quick else [" ".join(text.split()[:4]) for text in TEXTS]
    (image, f), (text, g) = (tabulated(sentence(text)) for text in texts)
    game = f"MiniLM {image.n} x {text.n}"
    rows, covers = [], []
    for index in ("banzhaf", "shapley"):
        true = truth(f, g, index)
        budgets = [2 ** max(image.n, text.n)] if quick else [256, 1024]
        rows += compare(game, image, text, true, index, budgets, 1 if quick else 10, where)
        covers += [coverage(game, image, text, true, index, K, 1 if quick else 40) for K in budgets]
    return {"errors": rows, "coverage": covers}


def clip(where, quick):
    """CLIP's architecture, the truth from many passes; and what explaining costs beside the passes."""
    rows, covers = [], []
    for name, scale in HARDNESS.items():
        image, text = random_clip(*((2, 3) if quick else (7, 12)), scale=scale)
        text, _ = tabulated(text)
        game = f"CLIP, {name}, {image.n} x {text.n}"
        true = by_us(image, text, 2**4 if quick else 2**14, "banzhaf", 2**32)[0].pairs
        budgets = [16] if quick else [128, 1024]
        peers = where if name == "mild" else None
        rows += compare(game, image, text, true, "banzhaf", budgets, 1 if quick else 3, peers)
        covers += [coverage(game, image, text, true, "banzhaf", K, 1 if quick else 8) for K in budgets]
    image, text = random_clip(*((2, 3, 24, 1) if quick else (14, 20, 192, 4)))
    return {"errors": rows, "coverage": covers, "overhead": overhead(image, text, 16 if quick else 512)}
