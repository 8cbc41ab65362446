"""Losses of a batch over real processes, beside the same batch in one."""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from loupe_ext import losses
from loupe_ext._checks import unchecked
from tests.no_sync import no_sync
from tests.samples import random_pairs

B = 8  # pairs of the global batch
REGION_LENGTHS = torch.tensor([4, 2, 3, 1, 5, 5, 2, 3])
PHRASE_LENGTHS = torch.tensor([2, 1, 2, 2, 3, 3, 1, 2])  # ranks that hold the first half can pad to less
CENTRES = torch.tensor([[x, y] for x in (2.0, 6, 10, 14) for y in (2.0, 6, 10, 14)]).double()


def inputs() -> dict[str, torch.Tensor]:
    corner = random_pairs(B, 3, 2, 5).abs() * 4
    return {
        "images": random_pairs(1, B, 6)[0],
        "texts": random_pairs(1, B, 6, 1)[0],
        "regions": random_pairs(B, 5, 6, 2),
        "phrases": random_pairs(B, 3, 6, 3),
        "boxes": random_pairs(B, 16, 4, 4) * 8,
        "targets": torch.cat([corner, corner + 5], -1),
        "scale": torch.tensor([2.5]).double(),
    }


def steps(x, own, group):
    """The losses of the pairs `own` by name. Regions and phrases are padded as far as these pairs need."""
    m, n = (lengths[own] for lengths in (REGION_LENGTHS, PHRASE_LENGTHS))
    regions, phrases = x["regions"][own, : m.max()], x["phrases"][own, : n.max()]
    of = {"region_lengths": m, "phrase_lengths": n, "group": group}
    boxes = x["boxes"][own]
    return {
        "cmc": losses.cmc_loss(x["images"][own], x["texts"][own], x["scale"], group=group),
        "region_phrase": losses.region_phrase_loss(regions, phrases, x["scale"], **of),
        "late_interaction": losses.late_interaction_loss(regions, phrases, x["scale"], m, n, group=group),
        "fsa": losses.fsa_loss(regions, phrases, x["scale"], **of),
        "boxes": losses.box_loss(boxes, boxes.sum(-1), x["targets"][own], CENTRES, n, group=group),
    }


def unread(x, own, group):
    """The same of full padding, by which nobody has to tell the others, nor to wait for a device."""
    boxes, regions, phrases = x["boxes"][own], x["regions"][own], x["phrases"][own]
    of = {"region_lengths": REGION_LENGTHS[own], "phrase_lengths": PHRASE_LENGTHS[own], "group": group}
    return (
        losses.cmc_loss(x["images"][own], x["texts"][own], x["scale"], group=group)
        + losses.region_phrase_loss(regions, phrases, x["scale"], **of)
        + losses.late_interaction_loss(regions, phrases, x["scale"], group=group)
        + losses.fsa_loss(regions, phrases, x["scale"], **of)
        + losses.box_loss(boxes, boxes.sum(-1), x["targets"][own], CENTRES, PHRASE_LENGTHS[own], group=group)
    )


def results(own=slice(None), group=None):
    """Losses and gradients by name, and estimated interactions of the pairs `own`."""
    x = {key: value.requires_grad_() for key, value in inputs().items()}
    found = {}
    for name, loss in steps(x, own, group).items():
        found |= with_gradients(name, loss, x)
    with unchecked(), no_sync():
        found |= with_gradients("unchecked", unread(x, own, group), x)
    scores = random_pairs(B, 5, 3, 6)[own]
    found["interactions"] = losses.sampled_interactions(scores, scores, 16, 7, first_problem=range(B)[own][0])
    return found


def with_gradients(name, loss, x):
    grads = zip(x, torch.autograd.grad(loss, list(x.values()), allow_unused=True), strict=True)
    return {name: loss.detach(), **{f"{name} {key}": grad for key, grad in grads if grad is not None}}


def refused(rank, group):
    """What is said where processes hold different numbers of pairs, in each of them."""
    x = inputs()
    try:
        losses.cmc_loss(x["images"][: rank + 1], x["texts"][: rank + 1], 1.0, group=group)
    except ValueError as error:
        return str(error)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 4)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4, timeout=timedelta(seconds=60))
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for group in (halves[rank // 2], dist.group.WORLD):
        at, world = dist.get_rank(group), dist.get_world_size(group)
        size = B // world
        torch.save(results(slice(at * size, (at + 1) * size), group), f"{folder}/{world}-{at}.pt")
        Path(f"{folder}/{world}-{at}.json").write_text(json.dumps(refused(at, group)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not in each process
    ranks = [context.Process(target=work, args=(rank, folder)) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * 4
    return Path(folder)


@pytest.mark.parametrize("world", [2, 4])
def test_the_mean_over_processes_is_the_global_batchs(ran, world):
    want, ranks = results(), [torch.load(ran / f"{world}-{rank}.pt") for rank in range(world)]
    assert all(rank.keys() == want.keys() for rank in ranks)
    for name, value in want.items():
        if name == "interactions":
            assert torch.equal(torch.cat([rank[name] for rank in ranks]), value)
        else:  # a gradient is 0 where it is not a process's own pairs: the sum is all of them
            mean = torch.stack([rank[name] for rank in ranks]).mean(0)
            torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("world", [2, 4])
def test_different_numbers_of_pairs_are_refused_by_all(ran, world):
    said = {json.loads((ran / f"{world}-{rank}.json").read_text()) for rank in range(world)}
    assert said == {f"images: expected the same number of pairs in every process, got 1 to {world}"}


def test_a_group_of_another_kind():
    x = inputs()
    with pytest.raises(TypeError, match=r"group: expected None or a torch\.distributed\.ProcessGroup, got 'gloo'"):
        losses.cmc_loss(x["images"], x["texts"], 1.0, group="gloo")
