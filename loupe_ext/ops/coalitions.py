"""Random coalitions and permutations of players, drawn by counter: the same bits everywhere."""

from typing import Any

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import as_device, check_flag, check_index, check_int, check_tensor
from loupe_ext._indices import Index
from loupe_ext.ops._native import Backend, address, current_stream, on_device, resolve_backend
from loupe_ext.ops._register import register

MAX_PLAYERS = 1024


def sample_coalitions(
    num_players: int,
    num_samples: int,
    num_problems: int | None = None,
    *,
    seed: int = 0,
    index: Index = "shapley",
    p: float = 0.5,
    stratified: bool = False,
    antithetic: bool = True,
    first_problem: int = 0,
    first_sample: int = 0,
    device: torch.device | str = "cpu",
    backend: Backend = "auto",
) -> Tensor:
    r"""Random coalitions from the distribution of an interaction index, as packed bits.

    Sample :math:`k` of problem :math:`b` depends on the seed, :math:`b` and :math:`k` alone (Philox4x32-10 by counter):
    the same bits on every backend, for any thread count, split of the batch or world size. Draw a part of a larger
    batch with `first_problem` and `first_sample`.

    Args:
        num_players: 0 to 1024. (For the interaction of a coalition :math:`S`, the players outside :math:`S`.)
        num_samples: samples per problem; with `antithetic`, samples 2j and 2j + 1 are a pair.
        num_problems: None for one problem without a batch dimension.
        seed: 0 to 2^64 - 1.
        index: "shapley": a size uniform on 0..n, then a uniform subset of that size, the distribution of the
            Shapley interaction index. "banzhaf": every player with probability `p`, kept to 32 binary digits.
        p: probability of "banzhaf", strictly between 0 and 1.
        stratified: the sizes of "shapley" go round 0..n from a random start instead of being drawn: every size equally
            often, up to one, in every problem.
        antithetic: the second of a pair is the complement of the first ("banzhaf": drawn from the complement of its
            random words, which is the coalition's complement for p = 1/2).
        first_problem, first_sample: where this part of the batch starts.
        device: of the result.
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        int64 [num_problems, num_samples, ceil(n / 64)] (or [num_samples, ...]); bit i % 64 of word i / 64 is player i.
        `unpack_coalitions` makes masks of them. Integers below a bound are the high word of a product, so they are
        uniform up to bound / 2^32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of its range.
        RuntimeError: the backend is absent or cannot run on the device.
    """
    probability = check_index(index, p)
    stratified = check_flag("stratified", stratified)
    if stratified and probability is not None:
        raise ValueError("stratified: expected index='shapley', whose sizes are uniform, got index='banzhaf'")
    threshold = 0 if probability is None else min(max(round(probability * 2**32), 1), 2**32 - 1)
    return _sample(
        "coalitions",
        num_players,
        num_samples,
        num_problems,
        first_problem,
        first_sample,
        seed,
        antithetic,
        device,
        backend,
        stratified,
        threshold,
    )


def sample_permutations(
    num_players: int,
    num_samples: int,
    num_problems: int | None = None,
    *,
    seed: int = 0,
    antithetic: bool = True,
    first_problem: int = 0,
    first_sample: int = 0,
    device: torch.device | str = "cpu",
    backend: Backend = "auto",
) -> Tensor:
    """Uniform random permutations of the players 0..n-1 (Fisher and Yates' shuffle); see `sample_coalitions`.

    With `antithetic`, sample 2j + 1 is the reverse of sample 2j. `sample_coalitions` shares none of the random words.

    Returns:
        int32 [num_problems, num_samples, n] (or [num_samples, n] for num_problems None).

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of its range.
        RuntimeError: the backend is absent or cannot run on the device.
    """
    return _sample(
        "permutations",
        num_players,
        num_samples,
        num_problems,
        first_problem,
        first_sample,
        seed,
        antithetic,
        device,
        backend,
    )


def unpack_coalitions(coalitions: Tensor, num_players: int) -> Tensor:
    """Packed coalitions int64 [..., ceil(n / 64)] as masks bool [..., n]."""
    num_players = _check_packed(coalitions, num_players)
    octets = coalitions.contiguous().view(torch.uint8)  # an eighth of the memory of the words' bits
    bits = 2 ** torch.arange(8, dtype=torch.uint8, device=coalitions.device)
    return (octets.unsqueeze(-1) & bits).flatten(-2)[..., :num_players].bool()


def pack_coalitions(masks: Tensor) -> Tensor:
    """Masks bool [..., n] as packed coalitions int64 [..., ceil(n / 64)]."""
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.dim() < 1:
        got = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks: expected a bool tensor [..., n], got {got}")
    check_tensor("masks", masks)
    words = (masks.shape[-1] + 63) // 64
    padded = torch.nn.functional.pad(masks, (0, 64 * words - masks.shape[-1]))
    shifts = torch.arange(64, device=masks.device)
    return (padded.reshape(*masks.shape[:-1], words, 64).long() << shifts).sum(-1)  # distinct bits: a sum is an or


def _check_packed(coalitions: object, num_players: int) -> int:
    num_players = check_int("num_players", num_players, 0, MAX_PLAYERS)
    words = (num_players + 63) // 64
    if not isinstance(coalitions, Tensor) or coalitions.dtype != torch.int64:
        got = coalitions.dtype if isinstance(coalitions, Tensor) else type(coalitions).__name__
        raise TypeError(f"coalitions: expected an int64 tensor, got {got}")
    check_tensor("coalitions", coalitions)
    if coalitions.dim() < 1 or coalitions.shape[-1] != words:
        raise ValueError(f"coalitions: expected shape [..., {words}], got {tuple(coalitions.shape)}")
    return num_players


def _sample(
    what: str,
    num_players: int,
    num_samples: int,
    num_problems: int | None,
    first_problem: int,
    first_sample: int,
    seed: int,
    antithetic: bool,
    device: torch.device | str,
    backend: str,
    stratified: bool = False,
    threshold: int = 0,
) -> Tensor:
    num_players = check_int("num_players", num_players, 0, MAX_PLAYERS)
    problems = 1 if num_problems is None else check_int("num_problems", num_problems, 0, 2**31)
    last = 2**32 - 2  # one counter is kept for the starts of stratified sizes
    num_samples = check_int("num_samples", num_samples, 0, last)
    first_problem = check_int("first_problem", first_problem, 0, 2**62)
    first_sample = check_int("first_sample", first_sample, 0, last - num_samples)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    device, antithetic = as_device("device", device), check_flag("antithetic", antithetic)
    resolve_backend(backend, device)
    signed = seed - 2**64 if seed >= 2**63 else seed  # an op's integers are signed
    numbers = (problems, num_samples, first_problem, first_sample, signed, num_players)
    out = _draw(what, *numbers, antithetic, stratified, threshold, device, backend)
    return out.squeeze(0) if num_problems is None else out


def _empty(what: str, problems: int, samples: int, players: int, device: torch.device) -> Tensor:
    if what == "coalitions":
        return torch.empty(problems, samples, (players + 63) // 64, dtype=torch.int64, device=device)
    return torch.empty(problems, samples, players, dtype=torch.int32, device=device)


def _implementation(
    what: str,
    problems: int,
    samples: int,
    first_problem: int,
    first_sample: int,
    seed: int,
    players: int,
    antithetic: bool,
    stratified: bool,
    threshold: int,
    device: torch.device,
    backend: str,
) -> Tensor:
    chosen = resolve_backend(backend, device)
    numbers = (problems, samples, first_problem, first_sample, seed, players, antithetic, stratified, threshold)
    out = _empty(what, problems, samples, players, device)
    if device.type == "meta":
        return out
    with on_device(out.device):
        if chosen == "triton":
            from loupe_ext.triton import coalitions as kernels

            kernels.sample(out, what, *numbers)
            return out
        call, draw = _C.SampleCall(*numbers), getattr(_C, f"sample_{what}_{chosen}")
        draw(call, address(out), torch.get_num_threads() if chosen == "cpu" else current_stream(out.device))
    return out


def _fake(
    what: str, problems: int, samples: int, first_problem: int, first_sample: int, seed: int, players: int, *rest: Any
) -> Tensor:
    return _empty(what, problems, samples, players, rest[3])


_draw = register(
    "sample(str what, SymInt problems, SymInt samples, int first_problem, int first_sample, int seed, int players,"
    " bool antithetic, bool stratified, int threshold, Device device, str backend) -> Tensor",
    _implementation,
    _fake,
    dispatch=("BackendSelect",),
)
