"""The parts of open_clip's models: of random weights and the real architectures. `make test-open-clip` runs this."""

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("open_clip")

import open_clip
from open_clip.tokenizer import HFTokenizer, basic_clean, whitespace_clean
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from loupe_ext.explain.adapters.open_clip import OpenClipEncoders
from loupe_ext.losses import LoupeLoss
from loupe_ext.model.features import VisionLanguageModel
from loupe_ext.model.open_clip import OpenClipFeatures, OpenClipTokenizer
from loupe_ext.phrases import chunk

CAPTIONS = ["A small dog chases two cats.", "the red door of a house", "and so on!"]
VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
TOWERS = {  # as the published configurations of these kinds name them, and timm's small models of their architectures
    "vit": (open_clip.CLIP, VISION, TEXT),
    "vit-avg": (open_clip.CLIP, {**VISION, "pool_type": "avg", "final_ln_after_pool": True}, TEXT),
    "custom": (open_clip.CustomTextCLIP, VISION, {**TEXT, "embed_cls": True}),
    "siglip": (
        open_clip.CustomTextCLIP,
        {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        SIGLIP_TEXT,
    ),
    "timm-token": (
        open_clip.CustomTextCLIP,
        {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
        TEXT,
    ),
    "timm-avg": (open_clip.CLIP, {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg"}, TEXT),
    "convnext": (open_clip.CLIP, {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": ""}, TEXT),
}


def made(name):
    torch.manual_seed(0)
    kind, vision, text = TOWERS[name]
    model = kind(96 if name == "siglip" else 24, dict(vision), dict(text))
    for parameter in model.parameters():  # biases and norms away from 0 and 1, and sharp attention
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pictures(name):
    side = TOWERS[name][1]["image_size"]
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def tokenizer(**options):
    return OpenClipTokenizer(open_clip.SimpleTokenizer(context_length=16, **options))


@pytest.mark.parametrize("name", TOWERS)
def test_the_whole_is_the_models_own(name):
    model, images, text = made(name), pictures(name), tokenizer()(CAPTIONS)
    features = OpenClipFeatures(model)
    assert isinstance(features, VisionLanguageModel)
    with torch.no_grad():
        image, caption = features({"images": images}, text)
        theirs = model.encode_image(images, normalize=True), model.encode_text(text["tokens"], normalize=True)
    torch.testing.assert_close(image.pooled, theirs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(caption.pooled, theirs[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.logit_scale, model.logit_scale.exp())
    side, d = {"vit-avg": 4, "vit": 4, "custom": 4, "convnext": 2}.get(name, 10), image.pooled.shape[1]
    assert image.patches.shape == (3, side, side, d)
    assert image.patch == images.shape[3] / side
    assert caption.tokens.shape == (3, 16, d)
    assert caption.phrases.shape == (3, 2, d)
    assert caption.phrase_lengths.tolist() == [2, 2, 1]
    assert caption.lengths.tolist() == [9, 8, 6]


def test_parts_take_the_way_of_the_whole():
    """ViT: of [CLS]. The end of a text is its whole. SigLIP: its pooling of one patch. ConvNeXt: a mean of one."""
    model, images = made("vit"), pictures("vit")
    text = tokenizer()(CAPTIONS)
    with torch.no_grad():
        model.visual.output_tokens = True
        hidden = model.visual(images)[1]
        model.visual.output_tokens = False
        image, caption = OpenClipFeatures(model)({"images": images}, text)
        torch.testing.assert_close(image.patches.flatten(1, 2), normalize(hidden @ model.visual.proj, dim=-1))
        torch.testing.assert_close(caption.tokens[0, 8], caption.pooled[0])
        torch.testing.assert_close(caption.tokens[1, 7], caption.pooled[1])
        for name in ("siglip", "timm-token", "timm-avg", "convnext"):
            model = made(name)
            images = pictures(name)
            trunk = model.visual.trunk
            tokens = trunk.forward_features(images)
            if name == "convnext":
                alone = model.visual.head(trunk.forward_head(tokens[:, :, 1:, 1:]))
            else:
                ahead = trunk.num_prefix_tokens
                tokens = torch.cat([tokens[:, ahead + 99 : ahead + 100]] * (1 + ahead), 1)
                alone = model.visual.head(trunk.forward_head(tokens))
            found = OpenClipFeatures(model).encode_image(images).patches[:, -1, -1]
            torch.testing.assert_close(found, normalize(alone, dim=-1), rtol=0, atol=1e-5)
            assert found.std(0).max() > 0.01


def test_a_phrase_is_the_mean_of_its_own_tokens():
    model, text = made("vit"), tokenizer()(CAPTIONS)
    with torch.no_grad():
        found = OpenClipFeatures(model).encode_text(**text)
        out = model.forward_intermediates(text=text["tokens"], text_indices=1, normalize_intermediates=True)
        words = out["text_intermediates"][-1] @ model.text_projection
    torch.testing.assert_close(found.phrases[0, 1], normalize(words[0, 5:7].mean(0), dim=-1))
    assert text["spans"][0].tolist() == [[1, 4], [5, 7]]


ODD = [
    "A small   dog,\n(two  cats)!",
    "the woman's red T-shirt isn't near John's old car",
    "Tom &amp; Jerry&#39;s house by the sea",
    "a cafÃ© with “fancy” chairs — and a 35mm camera, 1,000 birds",
    "un chat na\u00efve e\u0301te\u0301 a dog",
    "a dog\u200b and a \u00adcat 🐕‍🦺 on a <b>red</b> sofa",
    "two_dogs a_b !!!a cat!!! @ the #beach",
    "İstanbul'da a KÖPEK ΣΊΣΥΦΟΣ a dog",
    "a dog's 'old red' bone and the 'small cat'",
    "<start_of_text> a dog <end_of_text>",
    "a dog " * 9,
    "!!!",
]


def words_of(text):
    return "".join(c for c in text.lower() if c.isalnum())


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_phrases_of_odd_captions_are_their_own_tokens(clean):
    inner = open_clip.SimpleTokenizer(context_length=24, clean=clean)
    odd = [text for text in ODD if text != "!!!" or clean != "canonicalize"]
    text = OpenClipTokenizer(inner)(odd)
    assert torch.equal(text["tokens"], inner(odd))
    for i, caption in enumerate(odd):
        caption = whitespace_clean(basic_clean(caption))
        ids, length = text["tokens"][i].tolist(), text["attention_mask"][i].sum()
        assert ids[length - 1] == inner.eot_token_id
        spans = text["spans"][i, : text["phrase_lengths"][i]].tolist()
        found = [words_of(inner.decode(ids[start:end])) for start, end in spans]
        expected = [words_of(phrase.text) for phrase in chunk(caption)] or [words_of(caption)]
        assert len(found) == len(expected) or length == 24
        for piece, phrase in zip(found[:-1], expected, strict=False):
            assert piece == phrase or (clean == "canonicalize" and phrase in piece == "bredb"), caption  # words in one
        last = expected[len(found) - 1]
        assert last == found[-1] or (length == 24 and last.startswith(found[-1])), caption  # it may be cut off
    assert sum(text["phrase_lengths"]) > 2 * len(odd)


def test_phrases_by_a_tokenizer_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    from tests.test_clip import tokenizer as trained

    trained().save_pretrained(tmp_path)
    inner = HFTokenizer(str(tmp_path), context_length=16, clean="canonicalize")
    text = OpenClipTokenizer(inner)([*CAPTIONS, "two cats " * 20])
    assert torch.equal(text["tokens"], inner([*CAPTIONS, "two cats " * 20]))
    pieces = [inner.tokenizer.convert_ids_to_tokens(ids) for ids in text["tokens"]]
    spans = text["spans"].tolist()
    assert ["".join(pieces[0][start:end]) for start, end in spans[0][:2]] == ["asmalldog", "twocats"]
    assert ["".join(pieces[1][start:end]) for start, end in spans[1][:2]] == ["thereddoor", "ahouse"]
    assert "".join(pieces[2][slice(*spans[2][0])]) == "andsoon"
    assert text["attention_mask"].sum(1).tolist() == [(ids != 0).sum() for ids in text["tokens"]]
    assert text["attention_mask"][3].all()
    assert pieces[3][-1] == "<e>"
    with pytest.raises(ValueError, match="tokenizer: expected a fast one without mode"):
        OpenClipTokenizer(HFTokenizer(str(tmp_path), tokenizer_mode="clips"))


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_all_that_the_losses_need_learns(name):
    features, criterion = OpenClipFeatures(made(name), region_head=True), LoupeLoss()
    image, text = features({"images": pictures(name)}, tokenizer()(CAPTIONS))
    losses = criterion(
        image.pooled,
        text.pooled,
        image.patches.flatten(1, 2),
        text.phrases,
        logit_scale=features.logit_scale,
        phrase_lengths=text.phrase_lengths,
    )
    (losses["loss"] + image.boxes.mean()).backward()
    for part in ("visual", "token_embedding", "projection", "logit_scale", "region_head"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in features.named_parameters() if part in n)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"model: expected a CLIP or CustomTextCLIP of open_clip, got Linear"):
        OpenClipFeatures(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model: expected a VisionTransformer without attn_pool, got ModifiedResNet"):
        OpenClipFeatures(open_clip.CLIP(8, {"layers": [1, 1, 1, 1], "width": 32, "image_size": 32}, dict(TEXT)))
    with pytest.raises(ValueError, match="model: expected one that keeps all patches"):
        OpenClipFeatures(open_clip.CLIP(8, {**VISION, "patch_dropout": 0.5}, dict(TEXT)))
    with pytest.raises(TypeError, match="tokenizer: expected a SimpleTokenizer or HFTokenizer, got int"):
        OpenClipTokenizer(3)
    with pytest.raises(ValueError, match="tokenizer: expected one that keeps all tokens"):
        tokenizer(reduction_mask="random")
    with pytest.raises(TypeError, match="captions: expected a sequence of str"):
        tokenizer()("a dog")
    with pytest.raises(ValueError, match="captions: expected one or more"):
        tokenizer()([])
    with pytest.raises(ValueError, match=r"captions\[1\]: expected a word or more, got ' '"):
        tokenizer()(["a dog", " "])
    features = OpenClipFeatures(made("vit"))
    with pytest.raises(TypeError, match="images: expected dtype float16"):
        features.encode_image(torch.ones(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tokens: expected 0 to 49407"):
        features.encode_text(torch.full((1, 16), 50000), torch.zeros(1, 1, 2, dtype=torch.int64), torch.ones(1).long())


WORDS = "A small dog, two cats on the sofa"


def encoders_of(name):
    side = TOWERS[name][1]["image_size"]
    preprocess = Compose([ToTensor(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))])
    model = made(name)
    return model, side, OpenClipEncoders(model, preprocess, open_clip.SimpleTokenizer(context_length=16))


def picture(side):
    return torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def coalitions(n):
    sizes = torch.linspace(0.1, 0.9, 4)[:, None]
    masks = torch.rand(4, n, generator=torch.Generator().manual_seed(2)) < sizes
    return torch.cat([torch.zeros(1, n, dtype=torch.bool), torch.ones(1, n, dtype=torch.bool), masks])


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "convnext"])
def test_explained_with_all_present_and_without_a_player(name):
    """All present: the library's own. A player absent: its content is not seen, and a reference agrees."""
    model, side, encoders = encoders_of(name)
    seen = picture(side)
    image, text = encoders.image(seen), encoders.text(WORDS)
    assert torch.equal(image.players.picture, seen)
    assert list(text.players.names) == ["A", "small", "dog", ",", "two", "cats", "on", "the", "sofa"]
    ids = encoders.tokenizer.tokenizer([WORDS])
    with torch.no_grad():
        own = model.encode_image(encoders.preprocess(Image.fromarray(seen.numpy()))[None], normalize=True)
        caption = model.encode_text(ids, normalize=True)
    for encoder, expected in ((image, own), (text, caption)):
        found = encoder(torch.ones(2, encoder.n, dtype=torch.bool))
        torch.testing.assert_close(found, expected.expand(2, -1), rtol=0, atol=1e-5)
        assert encoder(coalitions(encoder.n)).isfinite().all()
    patch, changed = side // image.players.cells.shape[0], seen.clone()
    changed[patch : 2 * patch, :patch] = 255 - changed[patch : 2 * patch, :patch]
    other = encoders.image(changed), encoders.text(WORDS.replace("cats", "rats"))
    for encoder, moved, player in ((image, other[0], image.players.cells[1, 0]), (text, other[1], 5)):
        masks = coalitions(encoder.n)
        masks[:, player] = False
        without = encoder(masks)
        torch.testing.assert_close(without, moved(masks), rtol=0, atol=1e-6)
        masks[:, player] = True
        assert ((encoder(masks) - moved(masks)).norm(dim=1) > 1e-4).all()
        assert ((encoder(masks) - without).norm(dim=1) > 1e-4).all()
    # One coalition alone has no padding, and so no mask; in company it has both.
    masks = coalitions(image.n)
    torch.testing.assert_close(image(masks), torch.cat([image(mask[None]) for mask in masks]), rtol=0, atol=1e-5)


def test_a_hidden_word_of_clip_is_as_under_its_own_mask():
    """The text tower with -inf at the absent tokens, by hand."""
    model, _, encoders = encoders_of("vit")
    text = encoders.text(WORDS)
    masks = coalitions(text.n)
    ids = encoders.tokenizer.tokenizer([WORDS])
    there = torch.ones(len(masks), 16, dtype=torch.bool)
    there[:, 1 : 1 + text.n] = masks  # each word is a token
    hide = model.attn_mask + torch.zeros(there.shape).masked_fill(~there, -torch.inf)[:, None]
    with torch.no_grad():
        x = (model.token_embedding(ids) + model.positional_embedding).expand(len(masks), -1, -1)
        x = model.ln_final(model.transformer(x, attn_mask=hide.repeat_interleave(2, 0)))
        expected = normalize(x[:, 1 + text.n] @ model.text_projection, dim=1)
    torch.testing.assert_close(text(masks), expected, rtol=0, atol=1e-5)
    assert not model.transformer._forward_pre_hooks


def test_players_of_odd_captions():
    inner = open_clip.SimpleTokenizer(context_length=24, clean="canonicalize")
    encoders = OpenClipEncoders(made("vit"), ToTensor(), inner)
    players = encoders.text("A dog's  &quot;old&quot;, red bone", "words").players
    assert players.text == 'A dog\'s "old", red bone'
    assert list(players.names) == ["A", "dog's", "old", "red", "bone"]  # the tokenizer drops the marks
    assert list(encoders.text("the red bone of a dog", "phrases").players.names) == ["the red bone", "of", "a dog"]
    assert encoders_of("vit")[2].text("dog " * 40).n == 14


def test_bad_input_of_explained_models_is_named():
    _, _, encoders = encoders_of("vit")
    tokenize = open_clip.SimpleTokenizer(context_length=16)
    seen = picture(32)
    for call, message in (
        (lambda: OpenClipEncoders(made("convnext"), ToTensor(), tokenize), "model: expected an image tower of timm's"),
        (lambda: OpenClipEncoders(made("vit"), 3, tokenize), "preprocess: expected a callable, got int"),
        (lambda: OpenClipEncoders(made("vit"), ToTensor(), 3), "tokenizer: expected a SimpleTokenizer"),
        (lambda: encoders.image(3), "picture: expected a PIL image"),
        (lambda: encoders.image(seen, "words"), "players: expected 'patches' or 'superpixels'"),
        (lambda: encoders.text(3), "captions: expected a sequence of str"),
        (lambda: encoders.text(" "), "caption: expected a word or more"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    encoders.model.train()
    with pytest.raises(ValueError, match="model: expected one in evaluation mode"):
        encoders.text(WORDS)
