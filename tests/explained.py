"""Explanations made by hand, for the tests of what shows them."""

import torch

from loupe_ext.explain import DualEncoderExplanation, LateInteractionExplanation, Players

NASTY = '</script><script>alert("1")</script> & "the" bridge \U0001f309 <!-- was'


def picture_players(rows=4, columns=5, special=0):
    count = rows * columns
    names = [f"patch {i}" for i in range(count)] + [f"<{i}>" for i in range(special)]
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (rows, columns, 3), generator=generator, dtype=torch.uint8)
    picture = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
    cells = torch.arange(count).reshape(rows, columns)
    return Players(tuple(names), picture=picture, cells=cells, special=(False,) * count + (True,) * special)


def text_players(text="a dog on grass", special=True):
    spans, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        spans.append(((at, at + len(word)),))
        at += len(word)
    names = text.split()
    if special:
        names, spans = ["[CLS]", *names], [(), *spans]
    return Players(tuple(names), text, tuple(spans), special=(special, *[False] * (len(names) - 1)))


def late(document=None, query=None, name="", seed=0):
    document, query = document or text_players(), query or text_players("the dog")
    scores = torch.rand(document.n, query.n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    most = scores.amax(0)
    pairs = -torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 10
    pairs = (pairs + pairs.T).fill_diagonal_(0)
    credit = scores / scores.sum(0) * most
    winners = torch.where(scores == most, scores, 0.0)
    return LateInteractionExplanation(
        document, query, scores, credit, winners, torch.tensor([0, 2, 3]), pairs, most.sum().item(), name=name
    )


def dual(image=None, text=None, within=False, seed=0, **changes):
    image, text = image or picture_players(), text or text_players(special=False)
    generator = torch.Generator().manual_seed(seed)

    def number(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator) / 100

    pairs, sides = number(image.n, text.n), {}
    for side, n in (("image", image.n), ("text", text.n)):
        sides |= {f"{side}_values": number(n), f"{side}_value_errors": number(n).abs()}
        if within:
            inside = number(n, n)
            sides |= {f"{side}_pairs": (inside + inside.T).fill_diagonal_(0), f"{side}_pair_errors": number(n, n).abs()}
    made = {"pairs": pairs, "pair_errors": number(image.n, text.n).abs(), **sides, "score": 0.31, "baseline": 0.12}
    return DualEncoderExplanation(image, text, **{**made, "method": "estimated", **changes})
