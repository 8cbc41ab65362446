"""The parts of CLIP-like models: of random weights and the real architectures."""

from itertools import product

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

import tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from loupe_ext.losses import LoupeLoss
from loupe_ext.model import regions
from loupe_ext.model.clip import ClipFeatures, PhraseTokenizer

LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**LAYERS, "vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1}
CAPTIONS = ["A small dog chases two cats.", "the red door of a house", "and so on!"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of the captions, cut into pieces, between marks of beginning and end."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<u>"))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<p>", "<b>", "<e>", "<u>"])
    model.train_from_iterator(CAPTIONS, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        "<b> $A <e>", special_tokens=[("<b>", 1), ("<e>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<b>", eos_token="<e>", pad_token="<p>", unk_token="<u>", model_max_length=16
    )


class Slow(PreTrainedTokenizer):
    """A tokenizer without offsets, as SigLIP's is: letters in pairs, lower case, no punctuation, a mark at the end."""

    def __init__(self):
        letters = "abcdefghijklmnopqrstuvwxyz "
        self.ids = {
            "<p>": 0,
            "<e>": 1,
            "<u>": 2,
            **{a + b: 3 + i for i, (a, b) in enumerate(product(letters, letters))},
        }
        super().__init__(pad_token="<p>", eos_token="<e>", unk_token="<u>", model_max_length=16)

    vocab_size = property(lambda self: len(self.ids))

    def get_vocab(self):
        return self.ids

    def _tokenize(self, text):
        words = "".join(c for c in text.lower() if c.isalpha() or c.isspace()).split()
        return [word[i : i + 2].ljust(2) for word in words for i in range(0, len(word), 2)]

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 2)

    def _convert_id_to_token(self, i):
        return list(self.ids)[i]

    def build_inputs_with_special_tokens(self, first, second=None):
        return [*first, 1]

    def get_special_tokens_mask(self, first, second=None, already_has_special_tokens=False):
        return [0] * len(first) + [1]


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    pixels = {**LAYERS, "image_size": 32, "patch_size": 8}
    clip = CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=pixels, projection_dim=24)
    siglip = SiglipConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=pixels)
    flexible = Siglip2Config(
        text_config={**TEXT, "eos_token_id": 2}, vision_config={**LAYERS, "patch_size": 8, "num_patches": 16}
    )
    made = {"clip": CLIPModel(clip), "siglip": SiglipModel(siglip), "siglip2": Siglip2Model(flexible)}
    for model in made.values():
        for parameter in model.parameters():  # biases and norms away from 0 and 1, and sharp attention
            torch.nn.init.normal_(parameter, std=0.2)
    return {name: model.eval() for name, model in made.items()}


MODELS = models()


def pictures(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name != "siglip2":
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}
    mask = torch.tensor([[1] * 12, [1] * 10 + [0] * 2, [1] * 12])
    return {
        "pixel_values": torch.randn(3, 12, 192, generator=generator),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[3, 4], [2, 5], [4, 3]]),
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_is_the_models_own(name):
    model, image_inputs = MODELS[name], pictures(name)
    features = ClipFeatures(model)
    text = PhraseTokenizer(tokenizer(), **features.padding)(CAPTIONS)
    with torch.no_grad():
        image, caption = features(image_inputs, text)
        mask = {"attention_mask": text["attention_mask"]} if name == "clip" else {}  # SigLIP was trained without one
        theirs = model(input_ids=text["tokens"], **mask, **image_inputs)
    torch.testing.assert_close(image.pooled, theirs.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(caption.pooled, theirs.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.logit_scale, model.logit_scale.exp())
    d, L = image.pooled.shape[1], text["tokens"].shape[1]
    assert image.patches.shape == ((3, 1, 12, d) if name == "siglip2" else (3, 4, 4, d))
    assert (image.lengths is not None and image.lengths.tolist()) == ([12, 10, 12] if name == "siglip2" else False)
    assert image.patch == 8
    assert caption.phrases.shape == (3, 2, d)
    assert caption.phrase_lengths.tolist() == [2, 2, 1]
    assert caption.tokens.shape == (3, L, d)
    assert (16 if name != "clip" else caption.lengths.max()) == L  # SigLIP's last token is its whole
    assert caption.lengths.tolist() == text["attention_mask"].sum(1).tolist()
    assert len(set(caption.lengths.tolist())) > 1
    assert caption.lengths.max() <= L


def test_a_patch_takes_the_way_of_the_whole():
    """CLIP's whole is its [CLS] token; SigLIP's, of an image of one patch, is that patch."""
    clip, image = MODELS["clip"], pictures("clip")
    with torch.no_grad():
        hidden = clip.vision_model(**image).last_hidden_state
        expected = normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden[:, 5])), dim=-1)
        torch.testing.assert_close(ClipFeatures(clip).encode_image(**image).patches[:, 1, 0], expected)
        one = {
            "pixel_values": torch.randn(2, 1, 192),
            "pixel_attention_mask": torch.ones(2, 1, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[1, 1], [1, 1]]),
        }
        for inputs in (one, {"pixel_values": torch.randn(2, 3, 8, 8), "interpolate_pos_encoding": True}):
            found = ClipFeatures(MODELS["siglip2" if inputs is one else "siglip"]).encode_image(**inputs)
            torch.testing.assert_close(found.patches[:, 0, 0], found.pooled)


def test_a_phrase_is_the_mean_of_its_own_tokens():
    tokenize, clip = PhraseTokenizer(tokenizer()), MODELS["clip"]
    text = tokenize(CAPTIONS)
    pieces = [tokenize.tokenizer.convert_ids_to_tokens(ids) for ids in text["tokens"]]
    words = ["".join(pieces[0][start:end]) for start, end in text["spans"][0].tolist()]
    assert words == ["asmalldog", "twocats"]
    assert "".join(pieces[2][slice(*text["spans"][2, 0].tolist())]) == "andsoon!"  # no noun phrase: the whole caption
    assert text["spans"][2, 1].tolist() == [0, 0]
    with torch.no_grad():
        hidden = clip.text_model(text["tokens"], text["attention_mask"]).last_hidden_state
        start, end = text["spans"][0, 1].tolist()
        expected = normalize(clip.text_projection(hidden[0, start:end]).mean(0), dim=-1)
        found = ClipFeatures(clip).encode_text(**text)
    torch.testing.assert_close(found.phrases[0, 1], expected)
    alone = normalize(clip.text_projection(hidden[0, start]), dim=-1)
    torch.testing.assert_close(found.tokens[0, start], alone)


def test_a_tokenizer_without_offsets_finds_the_same_phrases():
    tokenize = PhraseTokenizer(Slow(), padding="max_length")
    captions = ["A small dog, (two  cats)!", "the red door\nof a house", "and so on!", "a dog " * 9]
    text = tokenize(captions)
    found = []
    for ids, spans, count in zip(text["tokens"], text["spans"].tolist(), text["phrase_lengths"], strict=True):
        pieces = ["".join(tokenize.tokenizer.convert_ids_to_tokens(ids[slice(*span)])) for span in spans[:count]]
        found.append([piece.replace(" ", "") for piece in pieces])
    assert found[:3] == [["asmalldog", "twocats"], ["thereddoor", "ahouse"], ["andsoon"]]
    assert found[3] == ["adog"] * 5  # of 3 tokens each, in the 15 that are left
    assert text["attention_mask"].sum(1).tolist() == [11, 12, 5, 16]


def test_padding_changes_nothing_of_clip():
    """Its text model is not shown the mask, so that nothing waits for the device."""
    features, tokenize = ClipFeatures(MODELS["clip"]), PhraseTokenizer(tokenizer())
    with torch.no_grad():
        together = features.encode_text(**tokenize(CAPTIONS))
        for i, caption in enumerate(CAPTIONS):
            alone = features.encode_text(**tokenize([caption]))
            torch.testing.assert_close(alone.pooled[0], together.pooled[i])
            torch.testing.assert_close(alone.tokens[0], together.tokens[i, : alone.lengths[0]])
            torch.testing.assert_close(alone.phrases[0], together.phrases[i, : alone.phrase_lengths[0]])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_patches_lie_on_their_grid_and_may_propose_boxes(name):
    torch.manual_seed(0)
    features = ClipFeatures(MODELS[name], region_head=True)
    wide = {"pixel_values": torch.randn(2, 3, 24, 40), "interpolate_pos_encoding": True}
    image = features.encode_image(**wide)
    assert image.patches.shape[:3] == (2, 3, 5)
    assert image.boxes.shape == (2, 15, 4)
    centre = (image.boxes[..., :2] + image.boxes[..., 2:])[0] / 2
    torch.testing.assert_close(centre, regions.centres(3, 5, patch=8.0), rtol=0, atol=4)  # near its own patch
    proposed, boxes, confidence = image.proposals(4)
    assert (proposed.shape[:2], boxes.shape, confidence.shape) == ((2, 4), (2, 4, 4), (2, 4))
    (boxes.sum() + confidence.sum()).backward()
    assert features.region_head.project.weight.grad.abs().sum() > 0


class NoReads(TorchDispatchMode):
    """Refuses whatever would wait for a device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "_to_cpu"):
            raise AssertionError(f"a host read: {op}")
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_nothing_is_read_on_the_host(name, monkeypatch):
    """But what the checks read on the CPU alone; SigLIP 2's images are of sizes that the library itself reads."""
    monkeypatch.setattr("loupe_ext.model.clip.check_range", lambda *_: None)
    features = ClipFeatures(MODELS[name])
    text = PhraseTokenizer(tokenizer(), **features.padding)(CAPTIONS)
    with pytest.raises(AssertionError, match="a host read"), NoReads():
        bool(text["attention_mask"].all())
    with NoReads():
        features(pictures(name), text)


def test_phrases_that_are_cut_off_are_left_out():
    text = PhraseTokenizer(tokenizer(), max_length=5)(CAPTIONS[:1])
    assert text["tokens"].shape == (1, 5)
    assert text["phrase_lengths"].tolist() == [1]
    assert text["spans"][0, 0, 1] <= 4


@pytest.mark.parametrize("name", MODELS)
def test_all_that_the_losses_need_learns(name):
    features, criterion = ClipFeatures(MODELS[name]), LoupeLoss()
    features.zero_grad()
    image, text = features(pictures(name), PhraseTokenizer(tokenizer())(CAPTIONS))
    losses = criterion(
        image.pooled,
        text.pooled,
        image.patches.flatten(1, 2),
        text.phrases,
        logit_scale=features.logit_scale,
        region_lengths=image.lengths,
        phrase_lengths=text.phrase_lengths,
    )
    assert set(losses) == {"loss", "cmc", "region_phrase", "fsa", "gate"}
    losses["loss"].backward()
    for part in ("vision_model", "text_model", "logit_scale"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in features.named_parameters() if part in n)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"model: expected a CLIPModel.*got Linear"):
        ClipFeatures(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="region_head: expected a model whose images have one grid"):
        ClipFeatures(MODELS["siglip2"], region_head=True)
    with pytest.raises(TypeError, match="tokenizer: expected one of transformers, got int"):
        PhraseTokenizer(3)
    with pytest.raises(TypeError, match="chunker: expected a callable, got str"):
        PhraseTokenizer(tokenizer(), "rules")
    with pytest.raises(ValueError, match="tokenizer: expected padding on the right"):
        PhraseTokenizer(tokenizer(), padding_side="left")
    tokenize = PhraseTokenizer(tokenizer())
    with pytest.raises(TypeError, match="captions: expected a sequence of str"):
        tokenize("a dog")
    with pytest.raises(ValueError, match="captions: expected one or more"):
        tokenize([])
    with pytest.raises(ValueError, match=r"captions\[1\]: expected a word or more, got ' '"):
        tokenize(["a dog", " "])


def test_wrong_arguments_are_named():
    from tests.test_arguments import complaints, whole, x

    features = ClipFeatures(MODELS["clip"])
    made, wrong = complaints(
        lambda pixel_values: features.encode_image(pixel_values, interpolate_pos_encoding=True),
        {"pixel_values": x("B3HW", "float16, bfloat16, float64")},
    )
    assert made > 10
    assert wrong == {}
    made, wrong = complaints(
        features.encode_text,
        {
            "tokens": whole("BN"),
            "spans": whole("BP2", "empty P, values of -1, values of 200"),
            "phrase_lengths": whole("B", "int32, values of -1, values of 200"),
            "attention_mask": whole("BN", "None, values of -1, values of 200"),
        },
    )
    assert made > 50
    assert wrong == {}
