"""Presets, and the encoders of `transformers` that the preset `paper` has."""

import dataclasses
import functools
import math

import pytest
import torch
from torch.nn.functional import interpolate

from loupe_ext import data
from loupe_ext.cli import main
from loupe_ext.data import Pairs, Vocabulary
from loupe_ext.model import heat
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.image import ImageEncoder
from loupe_ext.model.pretrained import BertEncoder, SwinEncoder
from loupe_ext.model.regions import RegionHead, box_features, centres
from loupe_ext.model.text import TextEncoder
from loupe_ext.train import Config, build, fit, from_pretrained
from loupe_ext.train.config import PRESETS
from loupe_ext.train.step import Step
from loupe_ext.zeroshot.evaluate import evaluate
from tests.backends import assert_close
from tests.samples import random_pairs
from tests.training import assert_identical

# The preset `paper` made small: two stages, 7 x 7 tokens of 8 pixels.
SHRUNKEN = Config.preset("paper").but(
    swin_width=32,
    swin_depths="1-2",
    swin_side=56,
    bert_width=64,
    bert_layers=2,
    dim=16,
    batch_size=4,
    train_size=8,
    steps=3,
)
WORDS = 30_522  # BERT's vocabulary


@pytest.fixture
def library():
    return pytest.importorskip("transformers", reason="the extra `paper` is not installed")


@functools.cache
def pairs() -> Pairs:
    return data.load("scenes", "train", 16).pairs


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestPresets:
    def test_tiny_is_the_default_and_each_has_its_name(self):
        assert Config.preset("tiny") == Config()
        assert [Config.preset(name).name for name in PRESETS] == ["tiny", "small", "paper"]

    def test_another_name_is_told_the_names(self):
        with pytest.raises(ValueError, match="name: expected one of tiny, small, paper, got 'huge'"):
            Config.preset("huge")

    def test_yaml_gives_them_back(self):
        for name in PRESETS:
            assert Config.from_yaml(Config.preset(name).to_yaml()) == Config.preset(name)

    def test_each_sees_its_pairs_some_times(self):
        passes = {
            name: config.optim.steps * config.optim.batch_size / config.data.train_size
            for name, config in ((name, Config.preset(name)) for name in PRESETS)
        }
        assert passes["paper"] == 20  # epochs
        assert passes["tiny"] < passes["small"] < passes["paper"]

    def test_paper_is_literal(self):
        config = Config.preset("paper")
        objective = config.objective
        weights = {name: term.weight for name, term in objective.terms.items() if term.weight}
        assert weights == {"cmc": 1, "tsa": 1, "fsa": 1}
        assert objective.tsa.literal
        assert objective.fsa.source == objective.tsa.source == "unsil"
        assert objective.regions == "proposals"
        assert not objective.fsa.negatives
        assert config.optim.batch_size == 512

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"image_encoder": "vit"}, ValueError, "image_encoder: expected one of .*'swin'.*, got 'vit'"),
            ({"text_encoder": "gpt"}, ValueError, "text_encoder: expected one of .*'bert'.*, got 'gpt'"),
            ({"swin_width": 48}, ValueError, "swin_width: expected a multiple of 32, got 48"),
            ({"bert_width": 0}, ValueError, "bert_width: expected 1 to 65536, got 0"),
            ({"bert_layers": -1}, ValueError, "bert_layers: expected 1 to 1000, got -1"),
            ({"swin_depths": "2-2", "swin_side": 57}, ValueError, "swin_side: expected a multiple of 56, got 57"),
            ({"swin_side": 200}, ValueError, "swin_side: expected a multiple of 224, got 200"),
            ({"swin_depths": "2-2", "swin_side": 0}, ValueError, "swin_side: expected 1 to 65536, got 0"),
            (
                {"swin_depths": "2-0"},
                ValueError,
                "swin_depths: expected the blocks of each stage, as 2-2-18-2, got '2-0'",
            ),
            ({"swin_depths": ""}, ValueError, "swin_depths: expected"),
            ({"swin_depths": [2, 2]}, TypeError, "swin_depths: expected str"),
            ({"image_weights": 3}, TypeError, "image_weights: expected str, got 3"),
        ],
    )
    def test_bad_values_are_named(self, changes, error, message):
        with pytest.raises(error, match=message):
            Config().but(**changes)

    def test_command_line(self, tmp_path, capsys):
        for package in ("rich", "safetensors"):
            pytest.importorskip(package)
        changes = ["steps=1", "batch_size=2", "train_size=4", "width=8", "dim=8"]
        assert main(["train", "--preset", "small", str(tmp_path / "run"), *changes]) == 0
        found = from_pretrained(tmp_path / "run").config
        assert found == Config.preset("small").but(steps=1, batch_size=2, train_size=4, width=8, dim=8)
        assert main(["train", str(tmp_path / "other"), "--preset", "huge"]) == 2
        assert "expected one of tiny, small, paper" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["train", str(tmp_path / "other"), "--preset", "small", "--config", "x.yaml"])


class TestPatch:
    """What is measured in patches is the same for patches of any size."""

    @pytest.mark.parametrize("patch", [4, 32, 64 / 7])
    def test_geometry_scales(self, patch):
        scale = patch / 4
        tokens = random_pairs(2 * 5, 7, 8).view(2, 5, 7, 8).float()
        head = RegionHead(8)
        assert_close(centres(5, 7, patch=patch), centres(5, 7) * scale, 1e-6)
        (boxes, confidence), (same, as_before) = head(tokens, patch), head(tokens)
        assert_close(boxes, same * scale, 1e-5)
        assert torch.equal(confidence, as_before)
        assert_close(box_features(tokens, boxes, patch), box_features(tokens, same), 1e-4)
        assert_close(heat.peaks(tokens[..., 0], patch), heat.peaks(tokens[..., 0]) * scale, 1e-6)

    @pytest.mark.parametrize("patch", [4, 32, 64 / 7])
    def test_a_heat_map_shows_its_box_to_a_pixel_at_any_scale(self, patch):
        maps = torch.zeros(1, 7, 7)
        maps[0, 2:4, 3:6] = 1
        want = torch.tensor([[3.0, 2, 6, 4]]) * patch
        assert (heat.heat_boxes(maps, 0.5, patch) - want).abs().max() <= 1 + patch / 4
        assert heat.heat_boxes(torch.ones(1, 7, 7), 0.5, patch).tolist() == [[0, 0, round(7 * patch), round(7 * patch)]]

    def test_a_dual_encoder_measures_in_the_pixels_of_the_images_it_is_given(self):
        class Coarse(torch.nn.Module):
            width = 8

            def forward(self, images):
                return images.new_zeros(len(images), 2, 2, 8).float()

        model = DualEncoder(Coarse(), TextEncoder(9, 8), 8, box_blocks=0)
        seen = model.encode_image(torch.zeros(1, 3, 50, 50, dtype=torch.uint8))
        assert seen.patch == 25
        middle = (seen.boxes[..., :2] + seen.boxes[..., 2:]) / 2
        assert_close(middle[0], torch.tensor([[12.5, 12.5], [37.5, 12.5], [12.5, 37.5], [37.5, 37.5]]), 1e-6)


def swin_parameters(width: int, depths: tuple[int, ...], window: int = 7, patch: int = 4) -> int:
    """By hand: patch embedding, blocks (attention with a bias a head and offset, MLP of 4 widths), merging, norms."""
    total = 3 * patch**2 * width + width + 2 * width
    for stage, blocks in enumerate(depths):
        d = width * 2**stage
        block = 4 * (d * d + d) + (2 * window - 1) ** 2 * (d // 32) + 2 * 4 * d * d + 4 * d + d + 2 * 2 * d
        total += blocks * block
        if stage < len(depths) - 1:
            total += 4 * d * 2 * d + 2 * 4 * d
    return total + 2 * d


def bert_parameters(vocabulary: int, width: int, layers: int) -> int:
    """By hand: embeddings of words, 512 positions and 2 segments with their norm; layers."""
    layer = 4 * (width * width + width) + 2 * 4 * width * width + 4 * width + width + 2 * 2 * width
    return (vocabulary + 512 + 2) * width + 2 * width + layers * layer


@pytest.mark.usefixtures("library")
class TestPaper:
    def test_its_shapes_and_parameters(self):
        with torch.device("meta"):
            model, objective = build(Config.preset("paper"), WORDS)
            images = torch.empty(2, 3, 224, 224, dtype=torch.uint8)
            assert model.image(images).shape == (2, 7, 7, 1536)
        words = torch.ones(2, 60, dtype=torch.int64)
        assert BertEncoder(WORDS)(words, torch.zeros(2, 3, 2, dtype=torch.int64)).shape == (2, 60, 512)
        swin, bert = count(model.image), count(model.text)
        assert swin == swin_parameters(192, (2, 2, 18, 2))
        assert bert == bert_parameters(WORDS, 512, 4)
        # As published, less the parts we leave out: Swin-L's classes, BERT-small's pooler.
        assert math.isclose(swin + 1536 * 1000 + 1000, 197e6, rel_tol=0.005)
        assert math.isclose(bert + 512 * 512 + 512, 28.8e6, rel_tol=0.005)
        assert count(model) + count(objective) < 1.01 * (swin + bert)

    def test_steps_of_it_made_small(self, tmp_path):
        seen = fit(pairs(), SHRUNKEN, path=tmp_path / "run")
        names = {"loss", "cmc", "tsa", "fsa", "fsa_unsil", "tsa_unsil"}
        assert names <= set(seen.history)
        assert all(seen.history[name].isfinite().all() for name in names)
        again = fit(pairs(), SHRUNKEN)  # no step draws a random number
        assert_identical(seen, again)
        restored = from_pretrained(tmp_path / "run")
        for one, other in ((restored.model, seen.model), (restored.objective, seen.objective)):
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name]), name

    def test_every_parameter_that_a_step_uses_gets_a_finite_gradient(self):
        step = Step(*build(SHRUNKEN.but(boxes=1.0, region_phrase=1.0), pairs().vocabulary), "float32")
        step(pairs().batch(slice(4)), 0)["loss"].backward()
        without = {name for name, x in step.named_parameters() if x.grad is None}
        assert without == set()
        assert all(x.grad.isfinite().all() for x in step.parameters())
        for part in ("model.image.swin.embeddings", "model.text.bert.embeddings.word"):
            assert any(x.grad.abs().max() > 0 for name, x in step.named_parameters() if name.startswith(part))

    def test_it_is_judged_in_the_pixels_of_the_scenes(self):
        scenes = data.load("scenes", "test", 6)
        model, objective = build(SHRUNKEN.but(boxes=1.0), scenes.pairs.vocabulary)
        assert model.eval().encode_image(scenes.pairs.images).patch == 64 / 7
        assert all(0 <= value <= 1 for value in evaluate(model, scenes, objective, 0.3).values())


@pytest.mark.usefixtures("library")
class TestEncoders:
    def test_swin_reads_images_of_any_side_brought_to_its_own(self):
        encoder = SwinEncoder(32, (1, 1), 56).eval().requires_grad_(False)
        coarse = 255 * random_pairs(2 * 3, 7, 7).view(2, 3, 7, 7).sigmoid()
        small, large = (interpolate(coarse, (side, side), mode="bilinear").byte() for side in (56, 112))
        assert encoder(large).shape == (2, 7, 7, 64)
        assert_close(encoder(large), encoder(small), 0.1)
        assert (encoder(small)[0] - encoder(small)[1]).abs().max() > 0.2

    def test_bert_reads_the_whole_caption_and_no_padding(self):
        encoder = BertEncoder(20, 64, 1).eval().requires_grad_(False)
        words = torch.tensor([[3, 4, 5, 6]])
        padded = torch.tensor([[3, 4, 5, 6, 0, 0]])
        spans = torch.tensor([[[0, 2], [2, 4]]])
        assert_close(encoder(padded, spans)[:, :4], encoder(words, spans), 1e-5)
        other = encoder(torch.tensor([[3, 4, 5, 7]]), spans)
        assert (other - encoder(words, spans))[0, 0].abs().max() > 1e-4

    def test_phrases_are_means_of_their_words(self):
        model = DualEncoder(ImageEncoder(8), BertEncoder(20, 64, 1), 8).eval().requires_grad_(False)
        tokens, spans = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[[1, 3]]])
        projected = model.text_projection(model.text(tokens, spans))[0, 1:3].mean(0)
        assert_close(
            model.encode_text(tokens, spans, torch.tensor([1])).phrases[0, 0], projected / projected.norm(), 1e-5
        )

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (torch.zeros(1, 3, 32, 16, dtype=torch.uint8), ValueError, r"images: expected shape \[B, 3, H, H\]"),
            (torch.zeros(3, 32, 32, dtype=torch.uint8), ValueError, r"images: expected shape \[B, 3, H, H\]"),
            (torch.zeros(1, 3, 0, 0, dtype=torch.uint8), ValueError, r"images: expected shape \[B, 3, H, H\]"),
            (torch.zeros(1, 3, 32, 32), TypeError, "images: expected uint8, got torch.float32"),
        ],
    )
    def test_bad_images(self, value, error, message):
        with pytest.raises(error, match=message):
            SwinEncoder(32, (1,), 28)(value)

    def test_bad_words(self):
        with pytest.raises(ValueError, match=r"tokens: expected shape \[B, L\], L at most 512, got \(1, 513\)"):
            BertEncoder(9, 64, 1)(torch.ones(1, 513, dtype=torch.int64), torch.zeros(1, 1, 2, dtype=torch.int64))


class TestWeights:
    """Pretrained weights, from folders as their own library writes them."""

    @pytest.fixture
    def folders(self, library, tmp_path):
        """Of a whole classifier and a whole masked language model, as they are published: with heads."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            swin = library.SwinForImageClassification(
                library.SwinConfig(image_size=56, embed_dim=32, depths=[1, 2], num_heads=[1, 2], num_labels=5)
            )
            bert = library.BertForMaskedLM(
                library.BertConfig(
                    vocab_size=20, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=256
                )
            )
        swin.save_pretrained(tmp_path / "swin")
        bert.save_pretrained(tmp_path / "bert")
        return tmp_path, swin.swin, bert.bert

    def config(self, path):
        return SHRUNKEN.but(image_weights=str(path / "swin"), text_weights=str(path / "bert"), steps=1)

    def test_a_model_begins_with_them(self, folders):
        path, swin, bert = folders
        model, _ = build(self.config(path), 20)
        for ours, theirs in ((model.image.swin, swin), (model.text.bert, bert)):
            want = theirs.state_dict()
            assert all(torch.equal(value, want[name]) for name, value in ours.state_dict().items())
            assert all(x.requires_grad for x in ours.parameters())

    def test_a_trained_model_does_not_need_the_folders_any_more(self, folders, monkeypatch):
        path, _, _ = folders
        few = dataclasses.replace(
            pairs(), tokens=pairs().tokens.clamp(max=19), vocabulary=Vocabulary(list("abcdefghijklmnopqrs"))
        )
        done = fit(few, self.config(path), path=path / "run")
        (path / "swin").rename(path / "away")
        restored = from_pretrained(path / "run")
        assert restored.config == self.config(path)
        assert all(torch.equal(x, done.model.state_dict()[name]) for name, x in restored.model.state_dict().items())

    def test_of_something_else(self, folders, tmp_path):
        path, _, _ = folders
        with pytest.raises(ValueError, match="weights: expected those of this model"):
            SwinEncoder(64, (1, 2), 56, path / "swin")
        with pytest.raises(ValueError, match=r"weights: expected all \d+ tensors, .* lacks encoder"):
            SwinEncoder(32, (1, 3), 56, path / "swin")
        with pytest.raises(ValueError, match="weights: expected"):
            BertEncoder(21, 64, 2, path / "bert")
        with pytest.raises(ValueError, match="weights: expected"):
            BertEncoder(20, 64, 2, path / "swin")
        with pytest.raises(FileNotFoundError, match="weights: expected a folder, got /nowhere"):
            SwinEncoder(32, (1, 2), 56, "/nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(OSError, match="empty"):
            SwinEncoder(32, (1, 2), 56, tmp_path / "empty")
