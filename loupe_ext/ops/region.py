"""Interactions of regions of an image: LOUPE's token level."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from loupe_ext._checks import (
    check_choice,
    check_flag,
    check_floating,
    check_index,
    check_int,
    check_lengths,
    check_number,
    check_tensor,
    is_mapped,
)
from loupe_ext._dtypes import no_autocast
from loupe_ext._indices import Index
from loupe_ext.ops._native import Backend, resolve_backend
from loupe_ext.ops._region import region_maxima, region_walks
from loupe_ext.ops.coalitions import (
    MAX_PLAYERS,
    pack_coalitions,
    sample_coalitions,
    sample_permutations,
    unpack_coalitions,
)

GAMES = ("pooled-cosine", "late-interaction")
ROUND = 256  # walks a kernel call; fixed, since how sums are split shows in their bits


def region_interactions(
    patches: Tensor,
    text: Tensor,
    regions: Tensor,
    *,
    game: Literal["pooled-cosine", "late-interaction"] = "pooled-cosine",
    text_lengths: Tensor | None = None,
    index: Index = "shapley",
    p: float = 0.5,
    num_samples: int = 256,
    standard_error: float | None = None,
    max_samples: int = 65536,
    seed: int = 0,
    antithetic: bool = True,
    first_problem: int = 0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    r"""How much the patches of each region gain or lose by acting as one (LOUPE, Li et al., NeurIPS 2022, section 3.2).

    Patches are the players, the text is fixed, and the interaction of a region :math:`R` is

    .. math:: I(R) = E_T\Big[v(T \cup R) - \sum_{i \in R} v(T \cup i) + (|R| - 1)\, v(T)\Big]

    over coalitions :math:`T` of the patches outside :math:`R`: of uniform size and uniform given it ("shapley"), or
    every patch in :math:`T` with probability `p` ("banzhaf"). In both games patches of one object replace each other,
    so :math:`I(R)` is negative on objects: :math:`-I(R)/|R|` finds them.

    "pooled-cosine": :math:`v(T)` is the cosine of the text with the sum of the patches in :math:`T`, which is how an
    image's and a text's global embeddings are compared when patches are pooled by a mean or by weights. The sum's
    squared norm counts as at least :math:`4 n \varepsilon \sum_{i \in T} |x_i|^2` (:math:`\varepsilon` of the dtype it
    is computed in), which is above its rounding error: where the patches of :math:`T` cancel, :math:`v(T)` is about 0.
    It is estimated by walks over random permutations, whose prefixes without the region's patches are one coalition of
    each size.
    "late-interaction": :math:`v(T) = \tfrac12 [\operatorname{mean}_{i \in T} \max_j s_{ij} + \tfrac1N \sum_j
    \max_{i \in T} s_{ij}]` with :math:`s_{ij}` the inner product of patch and word (normalise the features for
    cosines). It has a closed form: nothing is sampled, and the standard errors are 0.

    All regions of an image walk the same permutations. Leaving one region's patches out of a uniform permutation leaves
    a uniform permutation of the others, so every region's estimate is unbiased by itself; the estimates of one image's
    regions are correlated, and their differences mostly have less noise for it. Shared are the Gram matrix, the draws
    and the running sums of the whole prefix; a region then pays its own size per step. Feature width is paid once.

    Args:
        patches: [B, n, d] or [n, d], up to 1024 patches; float16, bfloat16, float32 or float64.
        text: [B, d] (pooled-cosine) or word features [B, N, d] (late-interaction), in the dtype of `patches`.
        regions: masks, bool [B, R, n], or packed bits, int64 [B, R, ceil(n / 64)], as `pack_coalitions` makes them;
            `boxes_to_regions` makes masks of boxes.
        game: "pooled-cosine" or "late-interaction".
        text_lengths: [B] int32 or int64, how many of the N words each text has (late-interaction). None: all of them.
            Words beyond are never read; an image whose length is out of range comes back NaN.
        index: "shapley" or "banzhaf".
        p: probability of the Banzhaf index, strictly between 0 and 1. Not used by "shapley".
        num_samples: walks ("shapley") or coalitions ("banzhaf") an image.
        standard_error: None, or the standard error that is wanted: `num_samples` more are drawn for the regions that
            are above it until none is, or until `max_samples`. Whether to go on has to be read from the device, so
            torch.compile cannot hold this loop in one graph, nor torch.vmap map over it; and stopping at a lucky moment
            makes the error look a little smaller than it is.
        max_samples: the most samples for `standard_error`.
        seed: 0 to 2^64 - 1.
        antithetic: samples are drawn in pairs, the second the reverse (the complement) of the first; the standard error
            is that of the pairs' means.
        first_problem: where this part of a larger batch starts. Image b draws what `sample_permutations` (or
            `sample_coalitions`) draws for problem `first_problem` + b.
        backend: "auto" (by device), "cpu", "cuda" or "triton", of the kernels.

    Returns:
        Interactions and their standard errors, [B, R] (or [R]) in the dtype of `patches`; float64 is computed in
        float64, everything else in float32, under autocast too. Regions of no patch and of one have interaction 0.

        An image that holds NaN or infinity, or whose text does, comes back NaN; others are not touched by it. The draws
        are the same everywhere: backends agree to rounding, and on one backend thread count and split of the batch
        show at most in the rounding of torch's matrix product. The results are labels: they carry no gradient, whatever
        the inputs require.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the backend is absent or cannot run on the tensors' device; or `standard_error` under torch.vmap.

    Example:
        >>> import torch, loupe_ext
        >>> patches = torch.eye(4)  # the text speaks of the first two, which are the region
        >>> regions = torch.tensor([[True, True, False, False]])
        >>> loupe_ext.region_interactions(patches, patches[0] + patches[1], regions)
        (tensor([-0.2357]), tensor([0.]))
    """
    probability = check_index(index, p)
    check_choice("game", game, GAMES)
    antithetic = check_flag("antithetic", antithetic)
    pairs = 2 if antithetic else 1
    num_samples = check_int("num_samples", num_samples, 2 * pairs, 2**31)  # fewer have no standard error
    max_samples = check_int("max_samples", max_samples, 0 if standard_error is None else num_samples, 2**31)
    if num_samples % pairs:
        raise ValueError(f"num_samples: expected an even number with antithetic=True, got {num_samples}")
    if isinstance(standard_error, bool) or not isinstance(standard_error, (int, float, type(None))):
        raise TypeError(f"standard_error: expected None or a float, got {type(standard_error).__name__}")
    if standard_error is not None and not standard_error > 0:
        raise ValueError(f"standard_error: expected None or a positive number, got {standard_error}")
    check_tensor("patches", patches)
    single = patches.dim() == 2
    inputs = (patches, text, regions, text_lengths)
    if single:
        inputs = tuple(x.unsqueeze(0) if isinstance(x, Tensor) else x for x in inputs)  # type: ignore[assignment]
    patches, text, regions, text_lengths = inputs
    _check_inputs(patches, text, regions, text_lengths, game)
    resolve_backend(backend, patches.device)
    wide = torch.float64 if patches.dtype == torch.float64 else torch.float32
    x, t = patches.detach().to(wide), text.detach().to(wide)
    masks = regions if regions.dtype == torch.bool else unpack_coalitions(regions, x.shape[1])
    with no_autocast(x.device):
        if x.numel() == 0 or t.numel() == 0 or masks.numel() == 0:
            interactions = errors = x.new_zeros(masks.shape[:2])
        elif game == "late-interaction":
            interactions = _late_interactions(x @ t.transpose(-1, -2), masks, text_lengths, probability, backend)
            errors = interactions.abs() * 0
        else:
            start = {"seed": seed, "antithetic": antithetic, "first_problem": first_problem}
            most = num_samples if standard_error is None else max_samples // pairs * pairs
            a, gram = _pooled_cosine(x, t)
            interactions, errors = _walked(
                a, gram, masks, probability, num_samples, standard_error, most, backend, start
            )
    results = interactions.to(patches.dtype), errors.to(patches.dtype, copy=True)
    return (results[0].squeeze(0), results[1].squeeze(0)) if single else results


def boxes_to_regions(boxes: Tensor, height: int, width: int, patch: float = 1.0) -> Tensor:
    """Masks bool [..., height * width] of the patches of a grid, row by row, whose centre lies in each box [..., 4].

    Boxes are x0, y0, x1, y1 from the grid's upper left corner, `patch` is the side of a patch in the same unit.
    """
    check_tensor("boxes", boxes)
    if boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError(f"boxes: expected a real dtype, got {boxes.dtype}")
    patch = check_number("patch", patch, 0, above=True)
    if boxes.dim() < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected shape [..., 4], got {tuple(boxes.shape)}")
    height, width = check_int("height", height, 1, MAX_PLAYERS), check_int("width", width, 1, MAX_PLAYERS)
    x, y = (patch * (torch.arange(n, device=boxes.device) + 0.5) for n in (width, height))
    x0, y0, x1, y1 = boxes.unsqueeze(-1).unbind(-2)
    rows, columns = (y >= y0) & (y <= y1), (x >= x0) & (x <= x1)
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(-2)


def _check_inputs(patches: Tensor, text: Tensor, regions: Tensor, text_lengths: Tensor | None, game: str) -> None:
    check_floating("patches", patches)
    if patches.dim() != 3:
        raise ValueError(f"patches: expected shape [B, n, d] or [n, d], got {tuple(patches.shape)}")
    B, n, d = patches.shape
    if n > MAX_PLAYERS:
        raise ValueError(f"patches: expected up to {MAX_PLAYERS} patches, got {n}")
    check_tensor("text", text)
    shape = (B, d) if game == "pooled-cosine" else (B, *text.shape[1:2], d)
    if text.shape != shape:
        wanted = f"({B}, {d})" if game == "pooled-cosine" else f"({B}, N, {d})"
        raise ValueError(
            f"text: expected shape {wanted} beside patches {tuple(patches.shape)}, got {tuple(text.shape)}"
        )
    if text.dtype != patches.dtype:
        raise TypeError(f"text: expected the dtype of patches ({patches.dtype}), got {text.dtype}")
    check_tensor("regions", regions)
    if regions.dtype not in (torch.bool, torch.int64):
        raise TypeError(f"regions: expected masks of bool or packed bits of int64, got {regions.dtype}")
    last = n if regions.dtype == torch.bool else (n + 63) // 64
    if regions.dim() != 3 or regions.shape[0] != B or regions.shape[2] != last:
        raise ValueError(f"regions: expected shape ({B}, R, {last}), got {tuple(regions.shape)}")
    for name, value in (("text", text), ("regions", regions)):
        if value.device != patches.device:
            raise ValueError(f"{name}: expected the device of patches ({patches.device}), got {value.device}")
    if text_lengths is not None:
        if game != "late-interaction":
            raise ValueError("text_lengths: expected None for game='pooled-cosine', whose text is one vector")
        check_lengths("text_lengths", text_lengths, patches.shape[:1], patches.device)


def _pooled_cosine(patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The game's a [B, n] and G [B, n, n]. A cosine sees no scale: both are brought to 1, so that nothing overflows."""

    def scaled(x: Tensor) -> Tensor:
        largest = x.abs().amax(tuple(range(1, x.dim())), keepdim=True)
        return x / torch.where(largest == 0, torch.ones_like(largest), largest)

    x, t = scaled(patches), scaled(text)
    norm = t.norm(dim=-1, keepdim=True)
    t = t / torch.where(norm == 0, torch.ones_like(norm), norm)
    return (x @ t.unsqueeze(-1)).squeeze(-1), x @ x.transpose(-1, -2)


def _walked(
    a: Tensor,
    gram: Tensor,
    masks: Tensor,
    p: float | None,
    at_once: int,
    wanted: float | None,
    most: int,
    backend: Backend,
    start: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Interactions and standard errors [B, R], of `at_once` samples more until the errors are as wanted or `most`."""
    packed, moments, done = pack_coalitions(masks), None, 0
    while done < most:
        samples = min(ROUND, at_once - done % at_once, most - done)
        orders = _orders(a, samples, p, backend, first_sample=done, **start)
        drawn = _moments(region_walks(a, gram, packed, orders, p is None, backend), start["antithetic"])
        moments = drawn if moments is None else _merged(moments, drawn, packed)
        done += samples
        if wanted is not None and done % at_once == 0 and done < most:
            above = _standard_errors(moments) > wanted
            if is_mapped(above):
                raise RuntimeError("standard_error: region_interactions expected None under torch.vmap, got a number")
            if not above.any():
                break
            packed = packed.masked_fill(~above.unsqueeze(-1), 0)  # a region without patches costs nothing
    assert moments is not None
    squares = gram.diagonal(dim1=-2, dim2=-1)  # not finite wherever a patch is not
    finite = (a.isfinite().all(-1) & squares.isfinite().all(-1)).unsqueeze(-1)
    results = moments[1], _standard_errors(moments)
    return tuple(torch.where(finite, x, torch.full_like(x, torch.nan)) for x in results)  # type: ignore[return-value]


def _orders(a: Tensor, samples: int, p: float | None, backend: Backend, **start: Any) -> Tensor:
    """Who joins at each step of each walk, int32 [B, samples, n]; -1 is nobody."""
    B, n = a.shape
    if p is None:
        return sample_permutations(n, samples, B, device=a.device, backend=backend, **start)
    drawn = sample_coalitions(n, samples, B, index="banzhaf", p=p, device=a.device, backend=backend, **start)
    return torch.where(unpack_coalitions(drawn, n), torch.arange(n, dtype=torch.int32, device=a.device), -1)


Moments = tuple[Tensor, Tensor, Tensor]  # number, mean and sum of squared deviations of samples, float64 [B, R]


def _moments(values: Tensor, antithetic: bool) -> Moments:
    x = values.double()
    if antithetic:
        x = (x[..., ::2] + x[..., 1::2]) / 2
    number = x.shape[-1]
    first = x[..., 0]
    x = x - first.unsqueeze(-1)
    mean = _total(x) / number
    squares = (_total(x * x) - number * mean * mean).clamp(min=0)
    return torch.full_like(mean, number), first + mean, squares


def _total(x: Tensor) -> Tensor:
    """The sum over the last dimension, in one order everywhere: torch.sum's depends on the shape and the device."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        rest = x[..., 2 * half :]
        x = torch.cat([x[..., :half] + x[..., half : 2 * half], rest], -1)
    return x.squeeze(-1)


def _merged(old: Moments, new: Moments, packed: Tensor) -> Moments:
    """Both together, for regions that were still sampled; the old for those that were not."""
    n, delta = old[0] + new[0], new[1] - old[1]
    both = n, old[1] + delta * new[0] / n, old[2] + new[2] + delta * delta * old[0] * new[0] / n
    sampled = (packed != 0).any(-1)
    return tuple(torch.where(sampled, y, x) for x, y in zip(old, both, strict=True))  # type: ignore[return-value]


def _standard_errors(moments: Moments) -> Tensor:
    number, _, squares = moments
    return (squares / (number - 1) / number).sqrt()


def _late_interactions(
    scores: Tensor, regions: Tensor, lengths: Tensor | None, p: float | None, backend: str
) -> Tensor:
    """Exact interactions [B, R] of the late-interaction game; python_ref/region.py has the formula."""
    B, n, N = scores.shape
    words = torch.full((B,), N, device=scores.device) if lengths is None else lengths.long()
    valid = (words >= 0) & (words <= N)
    words = torch.where(valid, words, 0)
    spoken = torch.arange(N, device=scores.device) < words.unsqueeze(-1)  # [B, N]
    scores = torch.where(spoken.unsqueeze(1), scores, torch.zeros_like(scores))
    best = scores.masked_fill(~spoken.unsqueeze(1), -torch.inf).amax(-1)
    best = torch.where((words > 0).unsqueeze(-1), best, torch.zeros_like(best))  # [B, n]
    members = regions.to(scores.dtype)
    k = regions.sum(-1)
    inside = (members @ best.unsqueeze(-1)).squeeze(-1) / k.clamp(min=1)
    outside = ((1 - members) @ best.unsqueeze(-1)).squeeze(-1) / (n - k).clamp(min=1)
    spread, empty = (table[k].to(scores.dtype) for table in _mean_weights(n, p, scores.device))
    mean = spread * (inside - outside) - empty * (k - 1) * outside

    # Psi's slope just below a patch is the chance that T holds none of the r outside patches from there up.
    ranks = torch.arange(n + 1, dtype=scores.dtype, device=scores.device)
    slopes = 1 / (ranks + 1) if p is None else (1 - p) ** ranks
    u, order = scores.transpose(1, 2).sort(dim=-1, descending=True)
    maxima = region_maxima(u, order, pack_coalitions(regions), slopes, words, backend)
    finite = (scores.flatten(1).isfinite().all(-1) & valid).unsqueeze(-1)
    exact = torch.where(k < 2, torch.zeros_like(mean), (mean + maxima) / 2)
    return torch.where(finite, exact, torch.full_like(exact, torch.nan))


def _mean_weights(n: int, p: float | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """For |R| = 0 .. n, over the size c of T: E[|R| / (c + |R|) - |R| / (c + 1)] and P(c = 0), float64 [n + 1]."""
    k = torch.arange(n + 1, dtype=torch.float64, device=device).unsqueeze(-1)
    c, m = k.T, n - k
    if p is None:
        chance = 1 / (m + 1) * (c <= m)
    else:
        log_ways = torch.lgamma(m + 1) - torch.lgamma(c + 1) - torch.lgamma((m - c).clamp(min=0) + 1)
        chance = torch.exp(log_ways + c * math.log(p) + (m - c) * math.log1p(-p)) * (c <= m)
    spread = (chance * (k / (c + k).clamp(min=1) - k / (c + 1))).sum(-1)
    return spread, chance[:, 0]
