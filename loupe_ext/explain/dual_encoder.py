"""Why a model with two encoders scores an image and a text as it does."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from loupe_ext._checks import check_choice, check_flag, check_index, check_int, check_names, check_number
from loupe_ext._indices import Index
from loupe_ext.explain.designs import MAX_SIDE, Design, design, least_coalitions
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.explain.explanations import DualEncoderExplanation
from loupe_ext.explain.fits import Fit, fit, product
from loupe_ext.explain.within import MOST, pairs_within
from loupe_ext.extras import needs

NODES = 8  # of the quadrature over p for Shapley, where it is not exact by design
STREAM = 4096  # streams of random numbers that each side has to itself
METHODS = {"all": "enumeration", "folded": "Hadamard blocks", "sizes": "least squares by size"}


@overload
def explain_dual_encoder(
    image: MaskedEncoder,
    text: MaskedEncoder,
    *,
    index: Index = "banzhaf",
    p: float = 0.5,
    num_coalitions: int = 1024,
    within: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
    tolerance: float | None = None,
    progress: bool = False,
) -> DualEncoderExplanation: ...


@overload
def explain_dual_encoder(
    image: MaskedEncoder,
    text: Sequence[MaskedEncoder],
    *,
    index: Index = "banzhaf",
    p: float = 0.5,
    num_coalitions: int = 1024,
    within: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
    tolerance: float | None = None,
    progress: bool = False,
) -> list[DualEncoderExplanation]: ...


def explain_dual_encoder(
    image: MaskedEncoder,
    text: MaskedEncoder | Sequence[MaskedEncoder],
    *,
    index: Index = "banzhaf",
    p: float = 0.5,
    num_coalitions: int = 1024,
    within: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
    tolerance: float | None = None,
    progress: bool = False,
) -> DualEncoderExplanation | list[DualEncoderExplanation]:
    r"""The interaction of every part of an image with every part of a text, and the value of each, with errors.

    The game is v(S, T) = <f(S), g(T)>. Since its two coalitions are drawn apart, the interaction of i and j is
    <A_i, B_j>, the vector-valued p-Banzhaf values of both sides, and Shapley's is its integral over p. So
    `num_coalitions` passes of each encoder serve all pairs, and those of the image serve any number of texts.
    A side with 2^n <= num_coalitions is enumerated. Of others:

    - Banzhaf, p = 1/2: folded Hadamard blocks, and least squares of the differences of complements. Unbiased.
    - Banzhaf, other p, and Shapley: coalitions without repetition, so many of each size, and weighted least squares
      at p, or at 8 nodes of Gauss and Legendre. The bias is of the order of one over their number.

    Standard errors are those of the delta method, from residuals by HC2 (p = 1/2) or HC3 (the others; with few
    coalitions HC2 is too small there). Intervals of 1.96 of them covered .94 to .97 of the pairs
    (p = 1/2), .95 to .99 (the others).

    Args:
        image, text: a side each, or a sequence of texts. Embeddings of both have the same d, and their dtype does not
            matter: everything after is float64 on the CPU.
        index: "banzhaf", or "shapley".
        p: a player's probability in "banzhaf". (Of a side not enumerated, 1e-6 and 1 - 1e-6 stand for all beyond.)
        num_coalitions: passes of each encoder at most, besides the two of all players and of none.
        within: "image", "text" or both: the sides whose own pairs are wanted too. Unless the side is enumerated, it
            must have at most 90 players, and num_coalitions be n^2 or more: errors were .5 to .7 of the
            interactions there, and .1 to .3 at 4 n^2. (A Gaussian process, of 8,192 coalitions at most; standard errors
            by jackknife.)
        seed: 0 to 2^64 - 1. The same seed gives the same coalitions, whatever the batches, the other texts and their
            order.
        batch_size: masks that an encoder gets at a time.
        tolerance: coalitions are doubled until no pair's standard error is above it, or `num_coalitions` is reached.
            None: all are taken.
        progress: whether to show a bar on the terminal.

    Returns:
        `DualEncoderExplanation`; a list of them for a sequence of texts.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; there are too few coalitions for the players;
            an embedding is not finite, or not of the other side's length.
        ImportError: rich is missing, for the bar.
    """
    check_index(index, p)
    p = float(p)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    num_coalitions = check_int("num_coalitions", num_coalitions, 2, 2**24)
    batch_size = check_int("batch_size", batch_size, 1, 2**24)
    tolerance = None if tolerance is None else check_number("tolerance", tolerance, 0)
    progress = check_flag("progress", progress)
    within = check_names("within", within)
    for name in within:
        check_choice("within", name, ("image", "text"))
    one = isinstance(text, MaskedEncoder)
    texts: Sequence[MaskedEncoder] = [text] if isinstance(text, MaskedEncoder) else text
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"text: expected a MaskedEncoder or a sequence of them, got {type(text).__name__}")
    names = ["text"] if one else [f"text[{at}]" for at in range(len(texts))]
    least = [
        _least(name, side, index, p, num_coalitions, name.partition("[")[0] in within)
        for name, side in zip(["image", *names], [image, *texts], strict=True)
    ]

    def side(name: str, encoder: MaskedEncoder, stream: int, least: int) -> _Side:
        return _Side(name, encoder, partial(design, encoder.n, index, p, seed, stream), least, batch_size, progress)

    shown = side("image", image, 0, least[0])
    found = [
        _explain(shown, side(name, encoder, STREAM, fewest), index, p, num_coalitions, within, tolerance)
        for name, encoder, fewest in zip(names, texts, least[1:], strict=True)
    ]
    return found[0] if one else found


def _least(name: str, encoder: object, index: Index, p: float, most: int, within: bool) -> int:
    """The fewest coalitions that a side needs, which `most` must allow."""
    if not isinstance(encoder, MaskedEncoder):
        raise TypeError(f"{name}: expected a MaskedEncoder, got {type(encoder).__name__}")
    n = encoder.n
    if not 1 <= n <= MAX_SIDE:
        raise ValueError(f"{name}: expected 1 to {MAX_SIDE} players, got {n}")
    least = least_coalitions(n, index, p)
    if within:
        if n * n > MOST and most < 2**n:
            raise ValueError(f"within: expected at most {math.isqrt(MOST)} players of {name}, got {n}")
        least = min(max(least, n * n), 2**n)
    if most < least:
        what = f"the pairs within the {n} players" if within else f"the {n} players"
        raise ValueError(f"num_coalitions: expected at least {least} for {what} of {name}, got {most}")
    return least


class _Side:
    """One encoder: what it has embedded, and the fits to it."""

    def __init__(
        self,
        name: str,
        encoder: MaskedEncoder,
        design: Callable[[int], Design],
        least: int,
        batch_size: int,
        progress: bool,
    ) -> None:
        self.name, self.encoder, self.n = name, encoder, encoder.n
        self.design, self.least, self.batch_size, self.progress = design, least, batch_size, progress
        self.rows: dict[bytes, int] = {}  # where a mask's embedding is
        self.found = torch.empty(0, 0, dtype=torch.float64)
        self.fits: dict[tuple[int, tuple[float, ...]], list[Fit]] = {}

    def ends(self) -> Tensor:
        """Embeddings [2, d] of no players and of all."""
        return self.embeddings(_ends(self.n))

    def passes(self, most: int) -> int:
        """The distinct coalitions among so many and the ends."""
        return len({*_keys(self.design(most).masks), *_keys(_ends(self.n))})

    def fit(self, most: int, nodes: Sequence[float]) -> list[Fit]:
        """Of each node, from so many coalitions at most."""
        key = (most, tuple(nodes))
        if key not in self.fits:
            drawn = self.design(most)
            embeddings = self.embeddings(drawn.masks)
            self.fits[key] = [fit(drawn, embeddings, p) for p in nodes]
        return self.fits[key]

    def pairs(self, most: int, other: Sequence[Fit], nodes: Sequence[float], shares: Sequence[float]) -> list[Tensor]:
        """Interactions of its own players and their errors, with the other side's fit."""
        drawn = self.design(most)
        if drawn.kind != "all":
            drawn = self.design(min(most, MOST))
        return list(pairs_within(drawn, self.embeddings(drawn.masks), [x.mean for x in other], nodes, shares))

    def embeddings(self, masks: Tensor) -> Tensor:
        """float64 [K, d] of masks [K, n]. None is embedded twice."""
        keys = _keys(masks)
        new = list({key: at for at, key in reversed(list(enumerate(keys))) if key not in self.rows}.values())[::-1]
        if new:
            batches = masks[new].split(self.batch_size)
            fresh = [self._embed(batch) for batch in (self._with_bar(batches) if self.progress else batches)]
            d = self.found.shape[1] or fresh[0].shape[1]
            other = next((x.shape[1] for x in fresh if x.shape[1] != d), d)
            if other != d:
                raise ValueError(f"{self.name}: expected embeddings of one length, got {d} and {other}")
            self.rows |= {keys[at]: len(self.found) + k for k, at in enumerate(new)}
            self.found = torch.cat([self.found, *fresh] if len(self.found) else fresh)
        return self.found[[self.rows[key] for key in keys]]

    def _embed(self, masks: Tensor) -> Tensor:
        found = self.encoder(masks).to("cpu", torch.float64, copy=True)  # who reuses a buffer, overwrites it
        if not found.isfinite().all():
            bad = int(found.isfinite().all(1).logical_not().nonzero()[0])
            players = masks[bad].nonzero().flatten().tolist()
            raise ValueError(
                f"{self.name}: expected finite embeddings, got a NaN or an infinity "
                f"where {len(players)} of {self.n} players are there: {players[:8]}{'...' * (len(players) > 8)}"
            )
        return found

    def _with_bar(self, batches: Sequence[Tensor]) -> Iterable[Tensor]:
        with needs("rich"):
            from rich.console import Console
            from rich.progress import track
        return track(batches, self.name, console=Console(stderr=True), transient=True)


def _explain(
    image: _Side,
    text: _Side,
    index: Index,
    p: float,
    num_coalitions: int,
    within: Sequence[str],
    tolerance: float | None,
) -> DualEncoderExplanation:
    f, g = image.ends(), text.ends()
    if f.shape[1] != g.shape[1]:
        raise ValueError(f"{text.name}: expected embeddings of the image's length {f.shape[1]}, got {g.shape[1]}")
    enumerated = 2 ** max(image.n, text.n) <= num_coalitions
    rare = max(p, 1e-100)  # whose square is a float still
    nodes, shares = ([rare], [1.0]) if index == "banzhaf" else _quadrature(image.n + text.n - 1, enumerated)
    for most in _budgets(max(image.least, text.least), num_coalitions, tolerance is not None):
        a, b = image.fit(most, nodes), text.fit(most, nodes)
        players = [x.players for x in a], [x.players for x in b]
        pairs, errors = product(*players, shares)
        if tolerance is not None and errors.max() <= tolerance:
            break
    image_values, image_errors = product(players[0], [x.mean for x in b], shares)
    text_values, text_errors = product(players[1], [x.mean for x in a], shares)
    own = {"image": (image, b), "text": (text, a)}
    found = {side: own[side][0].pairs(most, own[side][1], nodes, shares) for side in within}
    of_image, of_text = (found.get(side, (None, None)) for side in ("image", "text"))
    kinds = [METHODS[side.design(most).kind] for side in (image, text)]
    return DualEncoderExplanation(
        image=image.encoder.players,
        text=text.encoder.players,
        pairs=pairs,
        pair_errors=errors,
        image_values=image_values[:, 0],
        image_value_errors=image_errors[:, 0],
        text_values=text_values[:, 0],
        text_value_errors=text_errors[:, 0],
        score=float(f[1] @ g[1]),
        baseline=float(f[0] @ g[0]),
        image_pairs=of_image[0],
        image_pair_errors=of_image[1],
        text_pairs=of_text[0],
        text_pair_errors=of_text[1],
        index=index,
        p=p,
        method="exact, by enumeration" if set(kinds) == {METHODS["all"]} else "image: {}; text: {}".format(*kinds),
        image_passes=image.passes(most),
        text_passes=text.passes(most),
    )


def _keys(masks: Tensor) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(masks.numpy(), axis=1)]


def _ends(n: int) -> Tensor:
    return torch.tensor([[False], [True]]).expand(2, n)


def _budgets(first: int, most: int, doubling: bool) -> Iterator[int]:
    while doubling and first < most:
        yield first
        first *= 2
    yield most


def _quadrature(degree: int, enumerated: bool) -> tuple[list[float], list[float]]:
    """Gauss and Legendre's nodes and weights on 0 to 1, exact for a polynomial of the degree if both are enumerated."""
    count = degree // 2 + 1
    nodes, shares = np.polynomial.legendre.leggauss(count if enumerated else min(count, NODES))
    return ((nodes + 1) / 2).tolist(), (shares / 2).tolist()
