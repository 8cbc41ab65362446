"""A step that waits for nothing: losses and heat boxes under a mode that refuses host reads."""

import pytest
import torch
from loupe_experiments.ablation import ROWS
from scipy.ndimage import label

from loupe_ext import boxes_to_regions, losses, region_interactions
from loupe_ext._checks import check_range, unchecked
from loupe_ext.model import dual, heat
from loupe_ext.model.regions import box_features, centres, propose, window_features
from loupe_ext.train import build
from loupe_ext.train.step import Step
from tests.no_sync import HostReadError, no_sync
from tests.samples import random_pairs
from tests.training import SMALL, scenes

LENGTHS = torch.tensor([2, 3, 1])
IMAGES, TEXTS = random_pairs(2, 3, 5)
REGIONS, PHRASES = random_pairs(3, 4, 5, 1), random_pairs(3, 3, 5, 2)
PATCHES = random_pairs(3 * 4, 4, 5, 3).view(3, 4, 4, 5)
BOXES = torch.tensor([0.0, 0, 8, 8]).double() + random_pairs(3, 16, 4, 4)
SCALE = torch.tensor([3.0])
CROSS = [[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3]
READ_EARLIER = {"region_lengths": LENGTHS, "phrase_lengths": LENGTHS}


def token_level(patches):
    confidence = patches.sum(-1).flatten(1)
    taken = propose(BOXES, confidence, 3)
    boxes = BOXES.gather(1, taken[..., None].expand(-1, -1, 4))
    masks = boxes_to_regions(boxes, 4, 4, 4.0)
    found, _ = region_interactions(patches.flatten(1, 2), TEXTS, masks, num_samples=4)
    words, _ = region_interactions(patches.flatten(1, 2), PHRASES, masks, game="late-interaction", text_lengths=LENGTHS)
    features = box_features(patches, boxes)
    return losses.tsa_loss(confidence.gather(1, taken), found + words, masks.sum(-1), LENGTHS) + features.sum()


def boxes_from_heat(patches):
    with torch.no_grad():
        maps = heat.sharpened(heat.heat_maps(patches, PHRASES).flatten(0, 1), torch.ones(9, 3, 16, 16))
        targets = heat.heat_boxes(maps, 0.3, 2).view(3, 3, 4)
    return losses.box_loss(BOXES + patches.sum(), patches.sum(-1).flatten(1), targets, centres(4, 4), LENGTHS)


STEPS = {
    "cmc": (lambda x: losses.cmc_loss(x, TEXTS, SCALE), IMAGES),
    "region_phrase": (lambda x: losses.region_phrase_loss(x, PHRASES, SCALE, **READ_EARLIER), REGIONS),
    "windows": (lambda x: losses.region_phrase_loss(window_features(x, 2, 1), PHRASES, SCALE), PATCHES),
    "late_interaction": (lambda x: losses.late_interaction_loss(x, PHRASES, SCALE, LENGTHS, LENGTHS), REGIONS),
    "sparse_grouping": (lambda x: losses.sparse_grouping_loss(x, PHRASES, SCALE, LENGTHS), REGIONS),
    "fsa": (lambda x: losses.fsa_loss(x, PHRASES, SCALE, LENGTHS, LENGTHS), REGIONS),
    "fsa of own phrases": (lambda x: losses.fsa_loss(x, PHRASES, SCALE, LENGTHS, negatives=False), REGIONS),
    "sampled": (
        lambda x: losses.fsa_loss(
            x, PHRASES, SCALE, interactions=losses.alignment_interactions(x @ PHRASES.mT, LENGTHS, LENGTHS, 4)
        ),
        REGIONS,
    ),
    "tsa": (token_level, PATCHES),
    "boxes": (boxes_from_heat, PATCHES),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_loss_waits_for_the_device_forward_or_backward(name, monkeypatch):
    monkeypatch.setattr(heat, "ON_HOST", ())
    function, x = STEPS[name]
    want_input, x = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = function(want_input)
    want.backward()
    with unchecked(), no_sync():
        value = function(x)
        value.backward()
    assert torch.equal(value, want)
    assert torch.equal(x.grad, want_input.grad)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.cpu(),
        lambda x: x.to("meta"),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.repeat_interleave((x[0, 0] > 0).long()),
        lambda x: losses.fsa_loss(x, PHRASES, SCALE, LENGTHS),  # its lengths are checked
        lambda x: heat.heat_boxes(x, 0.5),  # by scipy
    ],
)
def test_the_mode_refuses_what_reads_a_tensor(read):
    read(REGIONS)
    with no_sync(), pytest.raises(HostReadError):
        read(REGIONS)


def test_unchecked_still_checks_what_needs_no_reading():
    bad = torch.tensor([2, 3, 9])
    with unchecked():
        assert losses.region_phrase_loss(REGIONS, PHRASES, SCALE, region_lengths=bad).isfinite()
        check_range("x", bad, 0, 2)
        with pytest.raises(ValueError, match=r"region_lengths: expected shape \(3,\)"):
            losses.fsa_loss(REGIONS, PHRASES, SCALE, bad[:2])
        with pytest.raises(TypeError, match="phrase_lengths: expected dtype int32 or int64"):
            losses.fsa_loss(REGIONS, PHRASES, SCALE, None, bad.float())
    with pytest.raises(ValueError, match=r"region_lengths: expected lengths in 1\.\.4, got 2\.\.9"):
        losses.region_phrase_loss(REGIONS, PHRASES, SCALE, region_lengths=bad)
    with pytest.raises(ValueError, match="x: expected 0 to 2, got 2 to 9"):
        check_range("x", bad, 0, 2)


def spiral(n):
    i = torch.arange(n)
    border = torch.minimum(i, n - 1 - i)
    mask = torch.minimum(border[:, None], border) % 2 == 0  # rings, each cut and joined to the next
    for k in range(0, n // 2 - 2, 2):
        mask[k + 1, k], mask[k + 2, k + 1] = False, True
    return mask


def shapes(n):
    """Masks in which what is connected is far apart, and random ones about the density at which it becomes so."""
    i = torch.arange(n)
    snake = (i[:, None] % 2 == 0) | (i == torch.where(i[:, None] % 4 == 1, n - 1, 0))
    comb = (i % 2 == 0) | (i[:, None] == n - 1)
    masks = [snake, snake.T, comb, comb.flip(0), comb.T, comb.T.flip(1), (i[:, None] + i) % 2 == 0, spiral(n)]
    generator = torch.Generator().manual_seed(n)
    masks += [torch.rand(n, n, generator=generator) < p for p in (0.5, 0.59, 0.593, 0.62, 0.7)]
    return torch.stack([*masks, *(mask.flip(0, 1) for mask in masks), torch.ones(n, n, dtype=torch.bool)])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (16, 16), (33, 47), (64, 64), (256, 256)])
def test_parts_without_waiting_are_scipys(size):
    h, w = size
    masks = shapes(max(h, w, 2))[:, :h, :w]
    if h == 256:
        masks = masks[[0, 2, 7, 10]]
    labels = torch.from_numpy(label(masks.numpy(), torch.tensor(CROSS).numpy())[0]).long().flatten()
    pixels = torch.arange(h * w).expand(len(masks), -1)
    first = torch.full((int(labels.max()) + 1,), h * w).scatter_reduce(0, labels, pixels.flatten(), "amin")
    want = torch.where(masks.flatten(1), first[labels].view_as(pixels), pixels)
    assert torch.equal(heat._parts(masks), want)


def test_connected_is_the_same_either_way(monkeypatch):
    masks = shapes(20)
    seeds = torch.arange(len(masks)) * 13 % 400
    want = heat.connected(masks, seeds)
    assert 0 < want.any((1, 2)).sum() < len(masks)  # some seeds are off their masks
    monkeypatch.setattr(heat, "ON_HOST", ())
    assert torch.equal(heat.connected(masks, seeds), want)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_no_step_of_training_reads_from_the_device(row, monkeypatch):
    """But for UNSIL, whose point is not to compute what it need not."""
    if any(value == "unsil" for value in row.changes.values()):
        pytest.skip("UNSIL asks the device which games to compute")
    config = SMALL.but({"boxes.images": 4}).but(row.changes)
    step = Step(*build(config, scenes().pairs.vocabulary), "float32")
    batch = scenes().pairs.batch(slice(8))
    monkeypatch.setattr(heat, "ON_HOST", ())
    monkeypatch.setattr(dual, "check_tokens", lambda *_: None)  # which looks on the CPU only
    with no_sync(), unchecked():
        step(batch, 0)["loss"].backward()
        norms = [torch.nn.utils.clip_grad_norm_(part, 1.0) for part in step.parts()]
    assert all(norm > 0 for norm in norms)
