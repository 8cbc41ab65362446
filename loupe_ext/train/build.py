"""The model and the objective that a configuration names."""

import torch
from torch import nn

from loupe_ext._checks import check_flag, check_int, check_kind
from loupe_ext.data.pairs import Vocabulary
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.image import ImageEncoder
from loupe_ext.model.pretrained import BertEncoder, SwinEncoder
from loupe_ext.model.text import TextEncoder
from loupe_ext.objective import Objective
from loupe_ext.train.config import Config


def build(config: Config, vocabulary: Vocabulary | int, pretrained: bool = True) -> tuple[DualEncoder, Objective]:
    """A model and an objective, the same ones for the same configuration; torch's random numbers are left alone.

    Args:
        vocabulary: whose ids the model will learn; or how many ids there are.
        pretrained: whether to read the weights that the configuration names, if any.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
        ImportError, OSError: `transformers`, or a folder of weights, is missing.
    """
    check_kind("config", config, Config, "a Config")
    m = config.model
    known = vocabulary if isinstance(vocabulary, Vocabulary) else None
    size = check_int("vocabulary", vocabulary, 1, 2**31 - 1) if known is None else len(known)
    pretrained = check_flag("pretrained", pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        image: nn.Module
        text: nn.Module
        if m.image_encoder == "swin":
            image = SwinEncoder(m.swin_width, m.swin_stages, m.swin_side, m.image_weights if pretrained else None)
        else:
            image = ImageEncoder(m.width, m.blocks, m.context_blocks)
        if m.text_encoder == "bert":
            text = BertEncoder(size, m.bert_width, m.bert_layers, m.text_weights if pretrained else None)
        else:
            text = TextEncoder(size, m.width)
        model = DualEncoder(image, text, m.dim, m.box_blocks)
        objective = Objective(config.objective, dim=m.dim, seed=config.seed)
    model.vocabulary = known
    return model, objective
