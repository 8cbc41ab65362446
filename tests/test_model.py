import math

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from loupe_ext.model import heat
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.image import Context, ConvNeXt, ImageEncoder, Residual
from loupe_ext.model.regions import RegionHead, box_features, box_iou, centres, coverage, propose, window_features
from loupe_ext.model.text import TextEncoder
from loupe_ext.objective import LogitScale
from loupe_ext.train import Config, build
from tests.backends import assert_close
from tests.samples import random_pairs


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DualEncoder(ImageEncoder(16, context=0), TextEncoder(30, 16), 8).eval().requires_grad_(False)
        for name in ("text.attention.bias", "query.weight"):  # zero at first, so that nothing would show
            model.get_parameter(name).normal_()
        return model


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def boxes_of(n: int, count: int, seed: int = 0) -> torch.Tensor:
    """Boxes that often overlap, [n, count, 4]."""
    at, side = 40 * random_pairs(n, count, 2, seed).sigmoid(), 4 + 20 * random_pairs(n, count, 2, seed + 1).sigmoid()
    return torch.cat([at, at + side], -1)


def text(*captions: tuple[list[int], list[tuple[int, int]]], length: int = 12) -> tuple[torch.Tensor, ...]:
    tokens = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in captions])
    spans = torch.tensor([[*where, *[(0, 0)] * (3 - len(where))] for _, where in captions])
    return tokens, spans, torch.tensor([len(where) for _, where in captions])


class TestImageEncoder:
    def test_a_shift_by_a_patch_shifts_the_tokens_by_one(self, model):
        picture = images(1, 3, 48, 48)
        moved = torch.roll(picture, (4, 8), (2, 3))
        tokens, again = model.encode_image(picture).patches[0], model.encode_image(moved).patches[0]
        assert_close(again[4:-2, 5:-2], tokens[3:-3, 3:-4], 1e-5)

    @pytest.mark.parametrize("along", [2, 3])
    def test_a_token_sees_as_far_on_either_side_of_its_patch(self, model, along):
        picture = images(1, 3, 40, 40)
        changed = picture.repeat(40, 1, 1, 1)
        for i in range(40):
            line = changed.select(along, i)[i]
            line.copy_(line.flip(-1))  # whose mean and deviation stay: the encoder takes those of the whole image out
        differs = (model.image(changed)[:, 5, 5] - model.image(picture)[:, 5, 5]).abs().amax(-1) > 1e-4
        seen = differs.nonzero()[:, 0].tolist()
        assert seen == list(range(20 - 7, 24 + 7))

    @pytest.mark.parametrize("context", [1, 2])
    def test_context_sees_a_cell_of_two_patches_further_per_block(self, context):
        blocks = ImageEncoder(8, 0, context).blocks.double()
        x = random_pairs(8, 32, 32)
        changed = x.repeat(32, 1, 1, 1)
        for i in range(32):
            changed[i, :, :, i] += random_pairs(1, 8, 32, 1)[0]
        with torch.no_grad():
            tokens = blocks(torch.cat([x[None], changed]))[:, :, 15, 15]
        seen = ((tokens[1:] - tokens[0]).abs().amax(-1) > 1e-9).nonzero()[:, 0].tolist()
        # Patch 15 lies between cells 7 and 8, of patches 14 to 17.
        assert seen == list(range(14 - 2 * context, 18 + 2 * context))

    def test_a_patch_says_how_much_of_its_context_it_takes(self):
        gated = Context(8, 1, gated=True)
        plain = Context(8, 1)
        plain.blocks.load_state_dict(gated.blocks.state_dict())
        x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(gated.gate[1].weight)
        for bias, share in ((-100.0, 0.0), (0.0, 0.5), (100.0, 1.0)):
            nn.init.constant_(gated.gate[1].bias, bias)
            assert_close(gated(x), x + share * (plain(x) - x), 1e-5)
        nn.init.normal_(gated.gate[1].weight)
        nn.init.zeros_(gated.gate[1].bias)
        shares = (gated(x) - x) / (plain(x) - x)
        assert shares.min() < 0.4
        assert shares.max() > 0.6

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (images(1, 3, 10, 12), ValueError, r"images: expected .* multiples of 4, got \(1, 3, 10, 12\)"),
            (images(1, 3, 12, 10), ValueError, r"images: expected .* multiples of 4, got \(1, 3, 12, 10\)"),
            (images(1, 1, 8, 8), ValueError, r"images: expected shape \[B, 3, H, W\]"),
            (images(3, 8, 8), ValueError, r"images: expected shape \[B, 3, H, W\]"),
            (torch.zeros(1, 3, 8, 8), TypeError, "images: expected uint8, got torch.float32"),
        ],
    )
    def test_bad_images(self, value, error, message):
        with pytest.raises(error, match=message):
            ImageEncoder(8)(value)

    def test_light_and_contrast_of_an_image_do_not_matter(self):
        images = torch.randint(60, 120, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        encoder = ImageEncoder(8).requires_grad_(False)
        assert_close(encoder(2 * images + 10), encoder(images), 1e-4)
        assert encoder(torch.full_like(images, 5)).isfinite().all()


class TestTextEncoder:
    phrase = (3, 7, 9)

    def test_a_phrase_alone_is_the_phrase_in_any_caption(self, model):
        other = [3, 8, 12, 5]
        batch = text(
            (list(self.phrase), [(0, 3)]),
            ([*self.phrase, 20, *other], [(0, 3), (4, 8)]),
            ([*other, 21, 22, *self.phrase], [(0, 4), (6, 9)]),
            ([*other, 1, *other[::-1], 2, *self.phrase], [(0, 4), (5, 9), (10, 13)]),
            length=13,
        )
        seen = model.encode_text(*batch)
        words = [seen.tokens[0, :3], seen.tokens[1, :3], seen.tokens[2, 6:9], seen.tokens[3, 10:13]]
        phrases = [seen.phrases[0, 0], seen.phrases[1, 0], seen.phrases[2, 1], seen.phrases[3, 2]]
        for all_alike in (words, phrases):
            for x in all_alike[1:]:
                assert_close(x, all_alike[0], 1e-5)

    def test_a_phrase_depends_on_its_words_and_their_order(self, model):
        a, b, c = model.encode_text(*text(*(([*x], [(0, 3)]) for x in ((3, 7, 9), (3, 9, 7), (3, 7, 10))))).phrases[
            :, 0
        ]
        assert min((a - b).norm(), (a - c).norm()) > 1e-3

    def test_words_between_phrases_see_the_whole_caption(self, model):
        seen = model.encode_text(*text(*(([3, 7, 20, 3, x], [(0, 2), (3, 5)]) for x in (8, 9)))).tokens
        assert (seen[0, 2] - seen[1, 2]).norm() > 1e-3

    def test_padding_does_not_matter(self, model):
        caption = ([3, 7, 20, 3, 8], [(0, 2), (3, 5)])
        short, long = (model.encode_text(*text(caption, length=n)) for n in (5, 12))
        for name in ("pooled", "phrases"):
            assert_close(getattr(long, name), getattr(short, name), 1e-5)
        assert_close(long.tokens[:, :5], short.tokens, 1e-5)
        assert torch.equal(short.lengths, long.lengths)
        assert long.tokens[:, 5:].abs().sum() == 0

    def test_bad_captions(self):
        encoder, (tokens, spans, _) = TextEncoder(9, 8), text(([1, 2], [(0, 2)]))
        with pytest.raises(ValueError, match=r"tokens: expected shape \[B, L\], got \(12,\)"):
            encoder(tokens[0], spans)
        with pytest.raises(ValueError, match=r"spans: expected shape \[1, P, 2\], got \(2, 3, 2\)"):
            encoder(tokens, spans.repeat(2, 1, 1))


def test_features_have_length_one_and_stay_in_float32_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.encode_image(images(2, 3, 16, 24))
    for x in (seen.pooled, seen.patches, seen.proposals(3)[0]):
        assert x.dtype == torch.float32
        assert_close(x.norm(dim=-1), torch.ones(x.shape[:-1]), 1e-5)
    assert seen.patches.shape == (2, 4, 6, 8)


def test_text_stays_in_float32_under_autocast_as_well(model):
    batch = text(([3, 7, 20, 3, 8], [(0, 2), (3, 5)]))
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.encode_text(*batch)
    for x in (seen.pooled[0], seen.tokens[0, :5], seen.phrases[0, :2]):
        assert x.dtype == torch.float32
        assert_close(x.norm(dim=-1), torch.ones(x.shape[:-1]), 1e-5)


def test_scale_is_capped():
    assert LogitScale(7.0, 60.0)().item() == pytest.approx(7)
    assert LogitScale(80.0, 60.0)().item() == 60


@pytest.mark.parametrize("cap", [1e-3, 1.0, 60.0, 1e30])
def test_a_scale_leaves_its_cap_as_soon_as_a_step_leads_down(cap):
    scale = LogitScale(cap, cap)
    optimizer = torch.optim.SGD(scale.parameters(), 1.0)
    for sign in (-1, -1, -1, 1):
        scale.bound()
        assert scale().item() == pytest.approx(cap, rel=1e-3)
        optimizer.zero_grad()
        (sign * scale() / cap).backward()
        optimizer.step()
    assert scale().item() == pytest.approx(cap / math.e, rel=1e-3)


class TestBoxes:
    @pytest.mark.parametrize(
        ("a", "b", "want"),
        [
            ((0, 0, 4, 4), (0, 0, 4, 4), 1),
            ((0, 0, 4, 4), (2, 0, 6, 4), 1 / 3),
            ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),
            ((0, 0, 4, 4), (4, 0, 8, 4), 0),
            ((0, 0, 4, 4), (5, 5, 8, 8), 0),  # both gaps negative: their product must not count
            ((2, 2, 2, 2), (2, 2, 2, 2), 0),
            ((3, 3, 1, 1), (0, 0, 4, 4), 0),
        ],
    )
    def test_iou(self, a, b, want):
        a, b = torch.tensor([a, b]).double()
        assert box_iou(a, b).item() == box_iou(b, a).item() == pytest.approx(want)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("side", [300.0, 2.0**-14, 2.0**-22])
    def test_iou_of_large_and_small_boxes(self, dtype, side):
        a, b = torch.tensor([[0, 0, side, side], [0, 0, side, side / 4]], dtype=dtype)
        assert (box_iou(a, a).item(), box_iou(a, b).item()) == (1, 0.25)
        assert box_iou(a, b).dtype == torch.float32

    def test_a_patch_proposes_a_box_around_its_centre(self):
        boxes, confidence = RegionHead(8)(torch.zeros(1, 2, 3, 8))
        assert confidence.shape == (1, 6)
        assert boxes[0, 4].tolist() == [6 - 9, 6 - 9, 6 + 9, 6 + 9]  # row 1, column 1: 4 to 8 pixels
        assert centres(2, 3)[5].tolist() == [10, 6]

    def test_the_configuration_says_how_many_blocks(self):
        for near, far, boxes in ((0, 0, 0), (2, 0, 3), (1, 4, 2)):
            config = Config().but(width=8, blocks=near, context_blocks=far, box_blocks=boxes)
            model = build(config, 9)[0]
            counts = [
                sum(isinstance(x, kind) for x in part.modules())
                for part, kind in ((model.image, Residual), (model.image, ConvNeXt), (model.region_head, ConvNeXt))
            ]
            assert counts == [near, far, boxes]

    @pytest.mark.parametrize("blocks", [0, 1, 2])
    def test_a_box_is_told_by_patches_as_far_as_the_blocks_see(self, blocks):
        tokens = torch.randn(1, 33, 33, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        boxes, confidence = RegionHead(8, blocks=blocks)(tokens)
        at = 17 * 33 + 17
        (boxes[0, at].sum() + confidence[0, at]).backward()
        told = tokens.grad[0].abs().sum(-1) > 0
        # Blocks see three cells of two patches further; patch 17 lies between cells 8 and 9, which begin at 16.
        seen = slice(16 - 6 * blocks, 20 + 6 * blocks) if blocks else slice(17, 18)
        assert told[seen, seen].all()
        assert told.sum() == (seen.stop - seen.start) ** 2

    @pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2), (7, 7)])
    def test_the_blocks_take_any_grid(self, grid):
        """Cells at the edges may be half: a grid that goes on beyond them with what stands there sees the same."""
        head = RegionHead(8, blocks=1)
        boxes, confidence = head(torch.randn(2, *grid, 8))
        assert boxes.shape == (2, grid[0] * grid[1], 4)
        assert confidence.isfinite().all()
        tokens = torch.randn(1, 7, 7, 8)
        wider = torch.cat([tokens, tokens[:, :, -1:]], 2)
        wider = torch.cat([wider, wider[:, -1:]], 1)
        got, want = head(tokens)[1].view(7, 7), head(wider)[1].view(8, 8)[:7, :7]
        assert_close(got, want, 1e-5)

    @pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
    def test_propose_is_greedy_non_maximum_suppression(self, overlap):
        boxes, confidence = boxes_of(20, 30), random_pairs(1, 20, 30)[0].round(decimals=1)  # with ties
        got = propose(boxes, confidence, 30, overlap)
        for b in range(20):
            kept = []
            for i in confidence[b].argsort(descending=True, stable=True).tolist():
                if all(box_iou(boxes[b, i], boxes[b, j]) <= overlap for j in kept):
                    kept.append(i)
            assert got[b, : len(kept)].tolist() == kept
            assert sorted(got[b].tolist()) == list(range(30))  # the others only then

    def test_propose_keeps_the_order_of_many_boxes(self, monkeypatch):
        """Ranks beyond 2^24 are told apart as well: each box taken adds n to all those that overlap it."""
        n, count = 2**18, 68
        monkeypatch.setattr("loupe_ext.model.regions.box_iou", lambda a, b: torch.ones(1, n))
        boxes, confidence = torch.tensor([0.0, 0, 9, 9]).expand(1, n, 4), torch.arange(float(n))[None]
        assert propose(boxes, confidence, count)[0].tolist() == [n - 1 - i for i in range(count)]

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_proposals_that_are_not_finite_come_last(self, value):
        boxes, confidence = boxes_of(1, 6), random_pairs(1, 1, 6)[0]
        want = propose(boxes, confidence, 6)[0].tolist()
        for i in (0, 3):
            no_box, no_confidence = boxes.clone(), confidence.clone()
            no_box[0, i, 1], no_confidence[0, i] = value, value
            assert propose(no_box, confidence, 6)[0, -1] == propose(boxes, no_confidence, 6)[0, -1] == i
            fewer = [j for j in range(6) if j != i]
            alone = propose(boxes[:, fewer], confidence[:, fewer], 5)[0].tolist()
            assert propose(no_box, confidence, 6)[0, :5].tolist() == [fewer[j] for j in alone]
        assert propose(boxes, confidence, 6)[0].tolist() == want

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_features_of_half_types_are_those_of_float32(self, dtype):
        patches = (40 * random_pairs(2 * 12, 12, 4)).view(2, 12, 12, 4).to(dtype)
        patches[0] = 0  # of which the mean has no direction
        patches[1, :2, :2] *= 60
        boxes = boxes_of(2, 3).to(dtype)
        boxes[1, 0] = torch.tensor([0.0, 0, 0.5, 0.5])
        for got, want in (
            (window_features(patches, 9, 1), window_features(patches.float(), 9, 1)),
            (box_features(patches, boxes), box_features(patches.float(), boxes.float())),
            (box_features(patches, boxes.float()), box_features(patches.float(), boxes.float())),
        ):
            assert torch.equal(got, want.to(dtype))
            assert not got[0].any()
        assert torch.equal(coverage(boxes, 12, 12), coverage(boxes.float(), 12, 12))

    def test_propose_more_than_there_are(self):
        with pytest.raises(ValueError, match="count: expected at most the 5 boxes there are, got 6"):
            propose(boxes_of(1, 5), torch.zeros(1, 5), 6)

    def test_coverage(self):
        (box,) = boxes = torch.tensor([[3.0, 2, 9, 13]]).double()
        want = [
            torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]).div(0.5).sigmoid().prod()
            for y in (2, 6, 10)
            for x in (2, 6)
        ]
        assert_close(coverage(boxes, 3, 2, edge=0.5)[0], torch.stack(want), 1e-6)

    def test_box_features_are_those_of_the_patches_inside(self):
        patches = random_pairs(2 * 6, 6, 4).view(2, 6, 6, 4)
        boxes = torch.tensor([[[4.0, 8, 12, 20]], [[0, 0, 24, 4]]]).double()  # edges halfway between centres
        got = box_features(patches, boxes)[:, 0]
        want = torch.stack([patches[0, 2:5, 1:3].mean((0, 1)), patches[1, 0].mean(0)])
        assert torch.cosine_similarity(got, want).min() > 0.95  # soft edges
        assert_close(got.norm(dim=-1), torch.ones(2), 1e-6)

    @pytest.mark.parametrize(("side", "stride"), [(3, 2), (1, 1), (2, 3), (5, 1)])
    def test_window_features(self, side, stride):
        patches = random_pairs(2 * 5, 7, 4).view(2, 5, 7, 4)
        want = [
            patches[:, y : y + side, x : x + side].mean((1, 2))
            for y in range(0, 5 - side + 1, stride)
            for x in range(0, 7 - side + 1, stride)
        ]
        want = torch.stack([x / x.norm(dim=-1, keepdim=True) for x in want], 1)
        assert_close(window_features(patches, side, stride), want, 1e-12)

    @pytest.mark.parametrize(("side", "stride"), [(6, 1), (0, 1), (2, 0)])
    def test_windows_that_do_not_fit(self, side, stride):
        with pytest.raises(ValueError, match=f"side, stride: expected windows inside 5 x 7 patches, got {side}"):
            window_features(torch.zeros(1, 5, 7, 4), side, stride)


class TestHeat:
    def test_maps_are_cosines_of_patches_and_phrases_of_one_pair(self):
        patches, phrases = random_pairs(2 * 3, 4, 5).view(2, 3, 4, 5), random_pairs(2, 2, 5)
        maps = heat.heat_maps(patches, phrases)
        assert maps.shape == (2, 2, 3, 4)
        assert maps[1, 0, 2, 3].item() == pytest.approx((patches[1, 2, 3] @ phrases[1, 0]).item())

    def test_what_is_connected_to_the_seed(self):
        rows = ["##..#", ".#..#", ".###.", "....#"]  # the corners at the right touch only diagonally
        mask = torch.tensor([[x == "#" for x in row] for row in rows])
        part = heat.connected(mask.expand(3, -1, -1), torch.tensor([0, 19, 2]))  # the snake, a corner, off the mask
        snake, corner = mask.clone(), torch.zeros_like(mask)
        snake[:, 4], corner[3, 4] = False, True
        assert torch.equal(part, torch.stack([snake, corner, torch.zeros_like(mask)]))
        assert heat.connected(mask.expand(0, -1, -1), torch.empty(0, dtype=torch.int64)).shape == (0, 4, 5)

    def test_the_box_lies_around_the_peaks_blob_alone(self):
        maps = torch.zeros(2, 16, 16)
        maps[0, 2:5, 1:4], maps[0, 10:13, 9:12] = 1.0, 0.9
        maps[1] = maps[0].flip(0, 1)  # another peak, on the other side
        want = torch.tensor([[4.0, 8, 16, 20], [48, 44, 60, 56]])
        assert (heat.heat_boxes(maps, 0.5) - want).abs().max() <= 1

    def test_a_lone_hot_patch_is_its_own_box_and_its_centre_the_peak(self):
        maps = torch.zeros(1, 16, 16)
        maps[0, 5, 11] = 1
        assert heat.heat_boxes(maps, 0.5).tolist() == [[44, 20, 48, 24]]
        assert heat.peaks(maps).tolist() == [[46, 22]]

    @pytest.mark.parametrize("by", heat.LEVELS)
    @pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
    def test_a_constant_map_shows_the_whole_image(self, value, by):
        assert heat.heat_boxes(torch.full((1, 4, 6), value), 0.9, by=by).tolist() == [[0, 0, 24, 16]]

    @pytest.mark.parametrize("by", heat.LEVELS)
    @pytest.mark.parametrize("value", [0.1, 1e-30, 1e30])
    def test_a_box_is_never_empty(self, value, by):
        box = heat.heat_boxes(torch.full((1, 4, 6), value), 0.9, by=by)[0]
        assert (box[2:] > box[:2]).all()

    def test_a_level_of_many_deviations_is_the_peak(self):
        maps = torch.zeros(1, 16, 16)
        maps[0, 5, 11] = 1
        assert heat.heat_boxes(maps, 100.0, by="deviation").tolist() == heat.heat_boxes(maps, 0.999).tolist()

    def test_colour_draws_the_outline_that_heat_misses(self):
        images = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
        images[0, 0, 18:46, 22:40] = 230  # a red object, and heat that is round and ends within it
        at = torch.arange(16.0)
        maps = torch.exp(-((at[:, None] - 7.5).square() + (at - 7.25).square()) / 6)[None]
        sharp = heat.sharpened(maps, images)
        assert sharp.shape == (1, 32, 32)
        want = torch.tensor([[22.0, 18, 40, 46]])
        assert (heat.heat_boxes(sharp, 0.3, 2) - want).abs().max() <= 2
        plain = heat.heat_boxes(heat.sharpened(maps, images, weight=0), 0.3, 2)
        assert (plain - want).abs().max() >= 4

    def test_an_object_of_two_colours_whose_mean_is_the_ground_is_outlined(self):
        images = torch.full((1, 3, 64, 64), 125, dtype=torch.uint8)
        for start, colour in ((22, (230, 20, 20)), (24, (20, 230, 230))):
            for x in range(start, 40, 4):
                images[0, :, 18:46, x : x + 2] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        at = torch.arange(16.0)
        maps = torch.exp(-((at[:, None] - 7.5).square() + (at - 7.25).square()) / 6)[None]
        found = heat.heat_boxes(heat.sharpened(maps, images), 1.5, 2, by="deviation")
        assert (found - torch.tensor([[22.0, 18, 40, 46]])).abs().max() <= 2

    def test_colours_are_those_of_the_image_in_any_unit(self):
        pixels = images(3, 3, 16, 16).double()
        maps = random_pairs(3, 4, 4)
        for unit, zero in ((1 / 255, 0.0), (2 / 255, -1.0), (1e6, 0.0)):
            torch.testing.assert_close(heat.sharpened(maps, pixels * unit + zero), heat.sharpened(maps, pixels))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_an_image_that_is_not_finite_spoils_its_own_map(self, value):
        maps, pixels = random_pairs(3, 4, 4), torch.rand(3, 3, 16, 16)
        want = heat.sharpened(maps, pixels)
        pixels[1, 2, 5, 5] = value
        found = heat.sharpened(maps, pixels)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], want[[0, 2]])

    def test_sharpened_maps_of_flat_images_and_flat_heat_are_finite_and_each_its_own(self):
        images = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
        images[1, :, :8] = 200
        maps = torch.stack([random_pairs(1, 4, 4)[0].float(), torch.zeros(4, 4)])
        both = heat.sharpened(maps, images)
        assert both.isfinite().all()
        assert torch.equal(both[:1], heat.sharpened(maps[:1], images[:1]))
        spoiled = maps.clone()
        spoiled[0] = torch.nan
        assert torch.equal(heat.sharpened(spoiled, images)[1], both[1])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_as_float32(self, dtype):
        patches, phrases = random_pairs(2 * 4, 4, 5).view(2, 4, 4, 5).to(dtype), random_pairs(2, 2, 5).to(dtype)
        maps = heat.heat_maps(patches, phrases)
        assert torch.equal(maps, heat.heat_maps(patches.float(), phrases.float()))
        some, colours = (maps[0] * 3e-4).to(dtype), images(2, 3, 16, 16)  # whose squares are below float16's least
        for of in (
            lambda x: heat.sharpened(x, colours),
            lambda x: heat.heat_boxes(x, 0.3, patch=150.5),
            lambda x: heat.peaks(x, patch=150.5),
        ):
            assert torch.equal(of(some), of(some.float()))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_a_map_that_is_not_finite_has_no_box_and_no_peak(self, value):
        maps = random_pairs(3, 4, 4).float()
        spoiled = maps.clone()
        spoiled[1, 2, 2] = value
        for of in (heat.peaks, lambda x: heat.heat_boxes(x, 0.3), lambda x: heat.heat_boxes(x, 0.0)):
            got, want = of(spoiled), of(maps)
            assert torch.equal(got[[0, 2]], want[[0, 2]])
            assert got[1].isnan().all()

    def test_many_maps_are_as_each_alone_and_none_are_none(self):
        maps = random_pairs(300, 4, 4).float()
        assert torch.equal(heat.heat_boxes(maps, 0.3)[[0, 299]], heat.heat_boxes(maps[[0, 299]], 0.3))
        assert heat.heat_boxes(maps[:0], 0.3).shape == (0, 4)

    @pytest.mark.parametrize(("threshold", "by"), [(0.3, "peak"), (1.2, "deviation"), (0.7, "deviation")])
    def test_boxes_hold_the_hot_pixels_of_a_random_map(self, threshold, by):
        maps = interpolate(random_pairs(1, 3, 3)[None].float(), (8, 8), mode="bicubic")[0]
        box = heat.heat_boxes(maps, threshold, by=by)[0].int().tolist()
        fine = interpolate(maps[None], scale_factor=4, mode="bilinear")[0, 0]
        unit = fine.max() - fine.mean() if by == "peak" else fine.std(correction=0)
        hot = fine >= fine.mean() + threshold * unit
        inside = hot[box[1] : box[3], box[0] : box[2]]
        assert all(x.any() for x in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert fine[box[1] : box[3], box[0] : box[2]].max() == fine.max()

    @pytest.mark.parametrize(
        ("maps", "threshold", "message"),
        [
            (torch.zeros(4, 4), 0.5, r"heat: expected shape \[n, h, w\], got \(4, 4\)"),
            (torch.zeros(1, 4, 4), 1.0, "threshold: expected a number from 0 to below 1, got 1.0"),
            (torch.zeros(1, 4, 4), -0.1, "threshold: expected"),
            (torch.zeros(1, 4, 4), float("nan"), "threshold: expected"),
        ],
    )
    def test_bad_input(self, maps, threshold, message):
        with pytest.raises(ValueError, match=message):
            heat.heat_boxes(maps, threshold)
