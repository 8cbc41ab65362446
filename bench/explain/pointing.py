"""The demo's model on scenes of one to four objects: which patches a phrase is tied to, and what they are good for.

The players are the 256 patches (their features, after the convolutions) and the caption's phrases. A map of patches is
judged by whether its peak is in the phrase's box, and by the similarity of the phrase to the image of the best k
patches (insertion), and of all but those (deletion), k from none to all.
"""

import dataclasses
import statistics
from unittest import mock

import numpy as np
import torch

from loupe_ext.data import compose, load, scenes
from loupe_ext.explain import MaskedEncoder, explain_dual_encoder
from loupe_ext.model.heat import heat_maps, peaks
from loupe_ext.train import Config, fit, from_pretrained
from loupe_ext.zeroshot.grounding import pointing_accuracy

METHODS = ("interaction", "similarity", "similarity, weighted", "random")
POINTS = 17  # of a curve


def with_objects(count, size, seed=0):
    """Test scenes with so many objects, up to three of them named: images, captions' tokens and spans, boxes."""
    lay_out = scenes._lay_out

    def fewer(rng):
        layout = lay_out(rng)
        layout = layout.select(layout.counts >= count)
        return dataclasses.replace(layout, counts=np.full(len(layout), count))

    with mock.patch.object(scenes, "_lay_out", fewer):
        drawn = scenes._draw(np.random.default_rng((seed, count)), 2)
    found = []
    for k in range(min(size, len(drawn.images))):
        named = list(range(min(count, 3)))
        phrases = [drawn.name(kind) for kind in drawn.layout.kinds[k, named]]
        text, spans = phrases[0], [(0, len(phrases[0].split()))]
        if count > 1:
            text, spans = compose.caption(phrases, drawn.layout.centres[k, named])
        pixels = torch.from_numpy((drawn.images[k].clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1)
        ids = torch.tensor(scenes.VOCABULARY.encode(text))
        found.append((pixels, ids, torch.tensor(spans), torch.from_numpy(drawn.boxes[k, named])))
    return found


def sides(model, pixels, ids, spans):
    """Both sides as functions of masks, and the features that they are made of."""
    image = model.encode_image(pixels[None])
    text = model.encode_text(ids[None], spans[None], torch.tensor([len(spans)]))
    parts = (image.weights[..., None] * image.patches)[0].flatten(0, 1)
    at = torch.arange(len(ids))
    member = (at >= spans[:, :1]) & (at < spans[:, 1:])  # [phrases, words]

    def caption(masks):
        kept = (masks[..., None] & member).any(1)
        count = torch.full((len(masks),), len(spans))
        return model.encode_text(ids * kept, spans.expand(len(masks), -1, -1), count).pooled

    def picture(masks):
        return torch.nn.functional.normalize(masks.to(parts.dtype) @ parts, dim=1)

    return MaskedEncoder(picture, len(parts)), MaskedEncoder(caption, len(spans)), image, text


@torch.no_grad()
def maps(model, scene, seed):
    """Per method a map [phrases, h, w], and the two sides."""
    pixels, ids, spans, _ = scene
    image, text, features, words = sides(model, pixels, ids, spans)
    shape = (len(spans), *features.patches.shape[1:3])
    explained = explain_dual_encoder(image, text, seed=seed, batch_size=1024)
    found = {"interaction": explained.pairs.T.reshape(shape)}
    found["similarity"] = heat_maps(features.patches, words.phrases)[0]
    found["similarity, weighted"] = found["similarity"] * features.weights
    found["random"] = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return found, image, text


@torch.no_grad()
def curves(image, text, heat):
    """Mean similarity of each phrase with the image of its best patches, and without them, [phrases] each."""
    counts = torch.linspace(0, image.n, POINTS).round()
    phrases = text(torch.eye(text.n, dtype=torch.bool))
    ranks = heat.flatten(1).argsort(1, descending=True).argsort(1)
    best = ranks[:, None] < counts[:, None]  # [phrases, points, patches]
    areas = []
    for masks in (best, ~best):
        embeddings = image(masks.flatten(0, 1)).view(*masks.shape[:2], -1)
        areas.append(torch.trapezoid((embeddings * phrases[:, None]).sum(2), counts / image.n, dim=1))
    return areas


def run(quick, folder=None):
    if folder is None:
        steps, pairs = (2, 128) if quick else (500, 20000)
        config = Config().but({"steps": steps, "train_size": pairs})
        model = fit(load("scenes", "train", pairs).pairs, config).model.eval()
    else:
        model = from_pretrained(folder).model
    rows = []
    for count in (2,) if quick else (1, 2, 3, 4):
        found = {name: {"hits": [], "insertion": [], "deletion": []} for name in METHODS}
        for seed, scene in enumerate(with_objects(count, 1 if quick else 50)):
            heats, image, text = maps(model, scene, seed)
            for name, heat in heats.items():
                points = peaks(heat.float())
                found[name]["hits"] += [
                    pointing_accuracy(p[None], box[None]) for p, box in zip(points, scene[3], strict=True)
                ]
                for curve, area in zip(("insertion", "deletion"), curves(image, text, heat), strict=True):
                    found[name][curve] += area.tolist()
        for name, got in found.items():
            rows.append({"objects": count, "method": name, "phrases": len(got["hits"])})
            rows[-1] |= {measure: statistics.fmean(values) for measure, values in got.items()}
            print(rows[-1], flush=True)
    return {"rows": rows}
