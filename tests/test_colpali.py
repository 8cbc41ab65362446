"""The models of colpali-engine, which needs torchvision, so that here it mostly is not: its documented outputs then."""

import numpy as np
import pytest
import torch

from loupe_ext.explain import explain_late_interaction
from loupe_ext.explain.adapters.colpali import ColpaliTokens

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
QUERY, TEXT = "why was the river bridge closed?", "the bridge."
MARKS = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]  # and Qwen's:
MARKS += [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{x}|>" for x in ("vision_start", "vision_end", "image_pad", "video_pad")),
]


def make_tokenizer(**options):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=MARKS, initial_alphabet=letters, show_progress=False)
    found.train_from_iterator([QUERY] * 9, trainer)
    marks = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, **marks, **options)


def picture():
    return Image.fromarray(torch.arange(60 * 90 * 3).remainder(251).byte().view(60, 90, 3).numpy())


def check(model, processor, grid, score):
    """Scores are the library's, patches lie on the grid, and what is no patch and no word of the query is special."""
    tokens = ColpaliTokens(model, processor)
    query, page, text = tokens.query(QUERY), tokens.document(picture(), "page"), tokens.document(TEXT)
    with torch.no_grad():
        batches = processor.process_images([picture()]), processor.process_texts(texts=[TEXT])
        q, *documents = (model(**x) for x in (processor.process_queries(texts=[QUERY]), *batches))
    found = explain_late_interaction(query, [page, text])
    expected = [score(list(q), list(x)).item() for x in documents]
    assert [x.score for x in found] == pytest.approx(expected, abs=1e-5)

    def content(players):
        return [name for name, special in zip(players.names, players.special, strict=True) if not special]

    assert content(query.players) == QUERY[:-1].split()
    assert [QUERY[slice(*of[0])] for of in query.players.spans if of] == [*QUERY[:-1].split(), "?"]
    assert content(text.players) == ["the", "bridge"]
    rows, columns = grid
    assert content(page.players) == [f"patch {i},{j}" for i in range(rows) for j in range(columns)]
    assert page.players.cells.shape == grid
    assert [page.players.names[i] for i in page.players.cells[-1]] == content(page.players)[-columns:]
    assert page.players.picture.shape == (60, 90, 3)
    assert page.name == "page"
    fields = found[0].by_regions(1, 2)
    assert set(fields.document.names) == {"row 1, column 1", "row 1, column 2", "(marks)"}
    return tokens


class Processor:
    """A processor as far as colpali-engine 0.3.18 documents it: a page is 2 x 3 patches in a prompt."""

    query_prefix = "<bos>"

    def __init__(self):
        self.tokenizer = make_tokenizer()
        self.image_token_id = self.tokenizer.convert_tokens_to_ids("<image>")

    def batch(self, texts):
        found = self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        return transformers.BatchFeature({**found})

    def process_texts(self, texts):
        return self.batch(texts)

    def process_queries(self, texts):
        return self.batch([self.query_prefix + text + "<pad>" * 10 for text in texts])

    def process_images(self, images):
        batch = self.batch(["<image>" * 6 + "<bos>Describe the image." for _ in images])
        batch["pixel_values"] = (
            torch.stack([torch.tensor(np.array(x.resize((3, 2)))).flatten(0, 1) for x in images]) / 255
        )
        return batch

    def get_image_mask(self, batch_images):
        return batch_images.input_ids == self.image_token_id

    def get_n_patches(self, image_size, patch_size):
        assert (image_size, patch_size) == ((90, 60), 30)
        return 3, 2


class Model(torch.nn.Module):
    """Of each token its own vector, and of a patch its colour's."""

    patch_size, config = 30, None

    def __init__(self, processor):
        super().__init__()
        torch.manual_seed(0)
        self.vectors = torch.nn.Embedding(len(processor.tokenizer), 8)
        self.colours = torch.nn.Linear(3, 8)
        self.image = processor.image_token_id

    def forward(self, input_ids, attention_mask, pixel_values=None):
        found = self.vectors(input_ids)
        if pixel_values is not None:
            found = found.masked_scatter((input_ids == self.image)[..., None], self.colours(pixel_values))
        return torch.nn.functional.normalize(found, dim=-1) * attention_mask[..., None]


def maxsim(queries, documents):
    return torch.einsum("qnd,cmd->qcnm", torch.stack(queries), torch.stack(documents)).amax(3).sum(2)


def test_tokens_are_those_of_the_documented_outputs():
    processor = Processor()
    tokens = check(Model(processor), processor, (2, 3), maxsim)
    processor.get_n_patches = lambda image_size, patch_size: (2, 2)  # which are not the patches that there are
    page = tokens.document(picture()).players
    assert page.cells is None
    assert page.names[:6] == tuple(f"patch {i}" for i in range(6))


def test_wrong_contents_and_models_are_named():
    processor = Processor()
    with pytest.raises(TypeError, match="model: expected a model of colpali-engine, got str"):
        ColpaliTokens("x", processor)
    with pytest.raises(TypeError, match="processor: expected a processor of colpali-engine, got int"):
        ColpaliTokens(Model(processor), 3)
    with pytest.raises(TypeError, match="document: expected a str or a picture"):
        ColpaliTokens(Model(processor), processor).document(torch.ones(3))


def test_tokens_are_those_of_colpali():
    models = pytest.importorskip("colpali_engine.models")
    images = transformers.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = models.ColPaliProcessor(image_processor=images, tokenizer=make_tokenizer())
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
        **small,
    }
    size = len(processor.tokenizer)
    text = {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, "vocab_size": size, **small}
    config = transformers.PaliGemmaConfig(
        vision_config=vision | {"projection_dim": 32},
        text_config=text | {"num_image_tokens": 16},
        image_token_index=processor.image_token_id,
        projection_dim=32,
    )
    check(models.ColPali(config).eval(), processor, (4, 4), processor.score_multi_vector)


def test_tokens_are_those_of_colqwen():
    models = pytest.importorskip("colpali_engine.models")
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, size={"shortest_edge": 3136, "longest_edge": 50176})
    tokenizer = make_tokenizer()
    processor = models.ColQwen2Processor(images, tokenizer, transformers.Qwen2VLVideoProcessor())
    small = {"hidden_size": 32, "num_heads": 2}
    text = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 32}
    ropes = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = transformers.Qwen2VLConfig(
        text_config={"hidden_size": 32, "vocab_size": len(tokenizer), "rope_parameters": ropes, **text},
        vision_config={"depth": 1, "embed_dim": 32, "mlp_ratio": 1, "patch_size": 14, "spatial_merge_size": 2, **small},
        image_token_id=processor.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
    )
    check(models.ColQwen2(config).eval(), processor, (2, 3), processor.score_multi_vector)
