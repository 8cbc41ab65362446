import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from loupe_ext import _C, pack_coalitions, sample_coalitions, sample_permutations, unpack_coalitions
from python_ref import coalitions as reference
from tests import emulation
from tests.backends import SLOW, device_of, every_backend, selected
from tests.triton_ahead import compiled

DISTRIBUTIONS = {
    "uniform": {},
    "stratified": {"stratified": True},
    "not-antithetic": {"antithetic": False},
    "half": {"index": "banzhaf"},
    "third": {"index": "banzhaf", "p": 1 / 3},
    "rare": {"index": "banzhaf", "p": 1e-9},
}
PLAYERS = (0, 1, 2, 5, 33, 64, 65, 130)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def draw(backend: str, what: str, players: int, samples: int, problems: int, **options) -> torch.Tensor:
    if backend == "emulated-cuda":
        distribution, p = options.pop("index", "shapley"), options.pop("p", 0.5)
        threshold = 0 if distribution == "shapley" else min(max(round(p * 2**32), 1), 2**32 - 1)
        seed = options.get("seed", 0)
        return emulation.sample(
            what,
            problems,
            samples,
            options.get("first_problem", 0),
            options.get("first_sample", 0),
            seed - 2**64 if seed >= 2**63 else seed,
            players,
            options.get("antithetic", True),
            options.get("stratified", False),
            threshold,
        )
    sample = sample_coalitions if what == "coalitions" else sample_permutations
    with selected(backend) as name:
        return sample(players, samples, problems, backend=name, device=device_of(backend), **options).cpu()


def members(coalitions: torch.Tensor, players: int) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in unpack_coalitions(coalitions, players)]


def test_reference_philox_matches_the_published_answers():
    for answer in json.loads(Path("tests/data/philox.json").read_text()):
        assert list(reference.philox(tuple(answer["counter"]), tuple(answer["key"]))) == answer["output"]


@every_backend
@every_distribution
def test_same_bits_as_the_reference(backend, distribution):
    options = DISTRIBUTIONS[distribution]
    p = options.get("p", 0.5) if "index" in options else None
    flags = {k: v for k, v in options.items() if k not in ("index", "p")}
    start = {"seed": 2**63 + 5, "first_problem": 2**40, "first_sample": 3}
    for players in PLAYERS if backend not in SLOW else PLAYERS[:6]:
        got = draw(backend, "coalitions", players, 9, 2, **options, **start)
        for b in range(2):
            problem = 2**40 + b
            want = [reference.coalition(players, 3 + k, problem, 2**63 + 5, p, **flags) for k in range(9)]
            assert members(got[b], players) == want


@every_backend
def test_same_permutations_as_the_reference(backend):
    for antithetic in (True, False):
        for players in (0, 1, 2, 7, 64, 150) if backend not in SLOW else (0, 1, 7, 33):
            got = draw(backend, "permutations", players, 5, 2, seed=11, antithetic=antithetic)
            for b in range(2):
                want = [reference.permutation(players, k, b, 11, antithetic) for k in range(5)]
                assert got[b].tolist() == want


@every_distribution
def test_blocks_of_threads_share_samples_out(distribution):
    options = {**DISTRIBUTIONS[distribution], "first_sample": 3, "seed": 4}
    for players in (70, 130):
        want = draw("cpu-" + _C.cpu_target(), "coalitions", players, 301, 2, **options)
        assert torch.equal(want, draw("emulated-cuda", "coalitions", players, 301, 2, **options))
    options = {"first_sample": 3, "antithetic": options.get("antithetic", True)}
    want = draw("cpu-" + _C.cpu_target(), "permutations", 20, 301, 2, **options)
    assert torch.equal(want, draw("emulated-cuda", "permutations", 20, 301, 2, **options))


@pytest.mark.parametrize("dtype", ["coalitions", "permutations"])
def test_largest_game(dtype):
    got = draw("cpu-" + _C.cpu_target(), dtype, 1024, 6, 1)[0]
    assert torch.equal(got, draw("emulated-cuda", dtype, 1024, 6, 1)[0])
    if dtype == "permutations":
        assert torch.equal(got.sort(-1).values, torch.arange(1024, dtype=torch.int32).expand(6, -1))


@every_distribution
def test_any_part_of_a_batch_has_the_same_bits(distribution):
    threads = torch.get_num_threads()
    whole = sample_coalitions(70, 1201, 3, seed=5, **DISTRIBUTIONS[distribution])
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, sample_coalitions(70, 1201, 3, seed=5, **DISTRIBUTIONS[distribution]))
    finally:
        torch.set_num_threads(threads)
    part = sample_coalitions(70, 300, 2, seed=5, first_problem=1, first_sample=601, **DISTRIBUTIONS[distribution])
    assert torch.equal(part, whole[1:, 601:901])
    assert torch.equal(sample_coalitions(70, 1201, seed=5, **DISTRIBUTIONS[distribution]), whole[0])


def test_seeds_problems_and_streams_differ():
    draws = [
        sample_coalitions(64, 50, seed=s, first_problem=b).flatten()
        for s, b in ((0, 0), (1, 0), (2**32, 0), (0, 1), (0, 2**32))
    ]
    for x, y in itertools.combinations(draws, 2):
        assert (x == y).float().mean() < 0.1


def chi_square_tail(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Probability of a chi-square at least this large, if the distribution were the expected one."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = torch.tensor((len(counts) - 1) / 2.0, dtype=torch.float64)
    return torch.special.gammaincc(degrees, statistic / 2).item()


class TestDistribution:
    """Chi-square tests with fixed seeds, at a level that a right distribution misses once in a million."""

    draws = 1_000_000
    level = 1e-6

    @pytest.mark.parametrize("antithetic", [False, True])
    @pytest.mark.parametrize("stratified", [False, True])
    def test_size_is_uniform_and_the_coalition_given_it(self, antithetic, stratified):
        n = 6
        masks = sample_coalitions(n, self.draws, seed=1, antithetic=antithetic, stratified=stratified)[:, 0]
        if antithetic:
            assert torch.equal(masks[1::2], masks[::2] ^ (2**n - 1))
            masks = masks[::2]  # the second of a pair is not independent of the first
        counts = torch.bincount(masks, minlength=2**n).double()
        size = unpack_coalitions(torch.arange(2**n)[:, None], n).sum(-1)
        chance = torch.tensor([1 / ((n + 1) * math.comb(n, int(c))) for c in size], dtype=torch.float64)
        assert chi_square_tail(counts, chance * len(masks)) > self.level
        for c in range(n + 1):  # given its size, uniform
            inside = counts[size == c]
            if len(inside) > 1:
                assert chi_square_tail(inside, inside.sum().expand(len(inside)) / len(inside)) > self.level
        sizes = torch.zeros(n + 1, dtype=torch.float64).scatter_add_(0, size, counts)
        if stratified:
            assert sizes.max() - sizes.min() <= 1

    def test_stratified_start_is_uniform(self):
        n = 6
        sizes = unpack_coalitions(sample_coalitions(n, 1, 70_000, stratified=True, seed=3), n).sum(-1).flatten()
        counts = torch.bincount(sizes, minlength=n + 1).double()
        assert chi_square_tail(counts, torch.full_like(counts, 10_000)) > self.level

    @pytest.mark.parametrize("p", [0.5, 0.3, 0.875])
    def test_bernoulli(self, p):
        n = 6
        masks = sample_coalitions(n, self.draws, seed=2, index="banzhaf", p=p, antithetic=False)[:, 0]
        counts = torch.bincount(masks, minlength=2**n).double()
        size = unpack_coalitions(torch.arange(2**n)[:, None], n).sum(-1)
        chance = torch.tensor([p ** int(c) * (1 - p) ** (n - int(c)) for c in size], dtype=torch.float64)
        assert chi_square_tail(counts, chance * self.draws) > self.level

    def test_antithetic_bernoulli_keeps_its_law_and_is_negatively_correlated(self):
        masks = unpack_coalitions(sample_coalitions(40, 200_000, seed=4, index="banzhaf", p=0.3), 40).double()
        first, second = masks[::2], masks[1::2]
        for half in (first, second):
            assert abs(half.mean().item() - 0.3) < 1e-3
        assert ((first - 0.3) * (second - 0.3)).mean().item() == pytest.approx(-0.09, abs=1e-3)  # -p^2: never both

    def test_permutations(self):
        orders = sample_permutations(5, self.draws, seed=6, antithetic=False).long()
        codes = (orders * (5 ** torch.arange(5))).sum(-1)
        counts = torch.unique(codes, return_counts=True)[1].double()
        assert len(counts) == math.factorial(5)
        assert chi_square_tail(counts, torch.full_like(counts, self.draws / len(counts))) > self.level


class TestPacking:
    @pytest.mark.parametrize("players", [0, 1, 63, 64, 65, 200])
    def test_round_trip(self, players):
        masks = torch.rand(3, 5, players, generator=torch.Generator().manual_seed(0)) < 0.4
        packed = pack_coalitions(masks)
        assert packed.shape == (3, 5, (players + 63) // 64)
        assert torch.equal(unpack_coalitions(packed, players), masks)

    def test_bits(self):
        assert pack_coalitions(torch.tensor([True, False, True])).tolist() == [5]
        assert pack_coalitions(torch.arange(64) == 63).tolist() == [-(2**63)]


class TestTorchLibrary:
    def test_opcheck(self):
        numbers = (3, 4, 0, 0, 1, 70, True, False, 0)
        for what in ("coalitions", "permutations"):
            torch.library.opcheck(torch.ops.loupe.sample, (what, *numbers, torch.device("cpu"), "auto"))

    def test_compile_fullgraph(self):
        def masks(x):
            return x + unpack_coalitions(sample_coalitions(70, 8, x.shape[0], seed=3), 70)

        x = torch.zeros(4, 8, 70)
        assert torch.equal(torch.compile(masks, fullgraph=True, backend="aot_eager")(x), masks(x))

    def test_meta(self):
        assert sample_coalitions(70, 8, 3, device="meta").shape == (3, 8, 2)

    def test_just_in_time_kernels_compile_for_a_gpu(self):
        kernels = pytest.importorskip("loupe_ext.triton.coalitions")
        out = torch.empty(3, 8, 2, dtype=torch.int64)
        for stratified, threshold in ((False, 0), (True, 0), (False, round(0.3 * 2**32))):
            numbers = (3, 8, 2**40, 5, -7, 70, True, stratified, threshold)
            (built,) = compiled(kernels, "_coalitions_kernel", lambda x=numbers: kernels.sample(out, "coalitions", *x))
            assert built.asm["cubin"]
        out = torch.empty(3, 8, 70, dtype=torch.int32)
        numbers = (3, 8, 0, 0, 2**40, 70, True, False, 0)
        (built,) = compiled(kernels, "_permutations_kernel", lambda: kernels.sample(out, "permutations", *numbers))
        assert built.asm["cubin"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"num_players": -1}, ValueError, "num_players: expected 0 to 1024, got -1"),
            ({"num_players": 1025}, ValueError, "num_players: expected 0 to 1024, got 1025"),
            ({"num_players": 3.0}, TypeError, "num_players: expected an int, got float"),
            ({"num_players": True}, TypeError, "num_players: expected an int, got bool"),
            ({"num_samples": -1}, ValueError, "num_samples: expected 0 to 4294967294, got -1"),
            ({"num_problems": -2}, ValueError, "num_problems: expected 0 to"),
            ({"seed": -1}, ValueError, "seed: expected 0 to 18446744073709551615, got -1"),
            ({"seed": 2**64}, ValueError, "seed: expected 0 to"),
            ({"first_sample": 2**32 - 3}, ValueError, "first_sample: expected 0 to 4294967291, got 4294967293"),
            ({"first_problem": 2**63}, ValueError, "first_problem: expected 0 to"),
            ({"index": "owen"}, ValueError, "index: expected 'shapley' or 'banzhaf', got 'owen'"),
            ({"index": "banzhaf", "p": 1.0}, ValueError, "p: expected a probability"),
            ({"index": "banzhaf", "stratified": True}, ValueError, "stratified: expected index='shapley'"),
            ({"backend": "tpu"}, ValueError, "backend: expected one of"),
            ({"device": "meta", "backend": "vulkan"}, ValueError, "backend: expected one of"),
        ],
    )
    def test_sample_coalitions(self, options, error, message):
        with pytest.raises(error, match=message):
            sample_coalitions(**{"num_players": 4, "num_samples": 3, **options})

    def test_packing(self):
        with pytest.raises(TypeError, match=r"masks: expected a bool tensor \[..., n\], got torch.int64 \(2,\)"):
            pack_coalitions(torch.tensor([1, 0]))
        with pytest.raises(TypeError, match=r"coalitions: expected an int64 tensor, got torch.float32"):
            unpack_coalitions(torch.zeros(1), 3)
        with pytest.raises(ValueError, match=r"coalitions: expected shape \[..., 2\], got \(3, 1\)"):
            unpack_coalitions(torch.zeros(3, 1, dtype=torch.int64), 70)
