"""What every public function says of wrong arguments, one at a time; and integers of other kinds than int."""

import atexit
import re
import shutil
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch

import loupe_ext
from loupe_ext import data, explain, games, losses, objective, unsil
from loupe_ext._settings import Settings
from loupe_ext.data import Grounded, PairBatches, Pairs, Vocabulary, load
from loupe_ext.explain import MaskedEncoder, explain_dual_encoder
from loupe_ext.model import heat, regions, text
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.image import ImageEncoder
from loupe_ext.train import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    build,
    check_run,
    fit,
    from_pretrained,
    processes,
    save_pretrained,
    train,
)
from loupe_ext.train.report import reporter
from loupe_ext.zeroshot import detection, evaluate, grounding, retrieval

SIZES = {
    "B": 2,
    "C": 3,
    "M": 3,
    "N": 4,
    "P": 3,
    "n": 6,
    "d": 5,
    "G": 2,
    "S": 5,
    "h": 4,
    "w": 3,
    "1": 1,
    "2": 2,
    "3": 3,
    "4": 4,
    "H": 8,
    "W": 8,
}
ANYTHING = {
    "None": None,
    "str": "x",
    "float": 3.5,
    "bool": True,
    "nan": float("nan"),
    "-1": -1,
    "huge": 10**30,
    "empty list": [],
    "list of tensors": [torch.ones(2), torch.ones(3)],
    "object": object(),
    "array": np.ones((2, 3)),
    "tensor": torch.ones(2),
    "meta tensor": torch.ones((), device="meta"),
}


@dataclass
class Argument:
    """A valid value, the sizes that it shares with others (a letter each), and the kinds that are valid too."""

    value: object
    dims: str = ""
    fits: set = field(default_factory=set)


def x(dims, fits="", make=torch.rand):
    return Argument(make([SIZES[d] for d in dims]), dims, set(filter(None, fits.split(", "))))


def whole(dims, fits="", high=1, dtype=torch.int64):
    return x(dims, fits, lambda shape: torch.full(shape, high, dtype=dtype))


def lengths(dims="B"):
    return whole(dims, "None, int32")


def flags(dims, fits=""):
    return x(dims, fits, lambda shape: torch.ones(shape, dtype=torch.bool))


def a(value, fits=""):
    return Argument(value, "", set(filter(None, fits.split(", "))))


def flag(value=False):
    return a(value, "bool")


def scale():
    return a(2.0, "float, huge")


def hostile(argument, free, alone):
    """Kinds of wrong values for an argument, `free` the sizes that no other argument shares."""
    yield from ((kind, value) for kind, value in ANYTHING.items() if type(value) is not type(argument.value))
    value = argument.value
    if not isinstance(value, torch.Tensor):
        yield from ((kind, v) for kind, v in ANYTHING.items() if type(v) is type(value) and kind != "None")
        return
    yield "a dimension more", value[None]
    if value.dim():
        yield "a dimension less", value[0]
    for dtype in ("int32", "int64", "bool", "complex64", "float32"):
        if getattr(torch, dtype) != value.dtype:
            yield dtype, value.to(getattr(torch, dtype))
    yield "array of it", value.numpy()
    yield "sparse", value.to_sparse()
    if not alone:
        yield "meta", value.to("meta")
    if not value.is_floating_point() and value.dtype != torch.bool:
        yield "values of -1", torch.full_like(value, -1)
        yield "values of 200", torch.full_like(value, 200)
    for at, d in enumerate(argument.dims):
        yield f"empty {d}", value.narrow(at, 0, 0)
        if d not in free:
            yield f"longer {d}", torch.cat([value, value.narrow(at, 0, 1)], at)
            if value.shape[at] > 1:
                yield f"one {d}", value.narrow(at, 0, 1)


def complaints(call, arguments):
    """How many wrong calls were made; and those that were not refused with the argument's name, by argument."""
    made, wrong = 0, {}
    letters = [d for argument in arguments.values() for d in set(argument.dims)]
    free = {d for d in letters if d not in "0123456789" and letters.count(d) == 1}
    tensors = [name for name, argument in arguments.items() if isinstance(argument.value, torch.Tensor)]
    valid = {name: argument.value for name, argument in arguments.items()}
    call(**valid)
    for name, argument in arguments.items():
        for kind, value in hostile(argument, free, len(tensors) == 1):
            if kind in argument.fits:
                continue
            made += 1
            try:
                call(**{**valid, name: value})
            except (TypeError, ValueError, ImportError, OSError) as error:
                said = [name]
                if kind == "meta":
                    said += tensors
                if kind.startswith(("empty", "longer", "one")):  # either of two that differ may be named
                    said += [other for other, argument in arguments.items() if kind[-1] in argument.dims]
                if not re.search(rf"\b({'|'.join(said)})\b", str(error)):
                    wrong.setdefault(name, []).append(f"{kind}: {type(error).__name__} {str(error)[:100]}")
            except Exception as error:
                wrong.setdefault(name, []).append(f"{kind}: {type(error).__name__} {str(error)[:100]}")
            else:
                wrong.setdefault(name, []).append(f"{kind}: taken")
    return made, wrong


INDEX = {"index": a("shapley"), "p": a(0.5)}
BACKEND = {"backend": a("auto")}
ANY = "empty B, empty M, empty N, empty n, empty d, empty S, empty G, empty C"  # the ops take batches of nothing
LENGTHS = {"region_lengths": lengths(), "phrase_lengths": lengths()}
SAMPLED = {
    "num_players": a(5),
    "num_samples": a(4, "bool"),
    "num_problems": a(2, "None"),
    "seed": a(0),
    "antithetic": flag(),
    "first_problem": a(0),
    "first_sample": a(0),
    "device": a("cpu"),
    **BACKEND,
}
GAME = games.MaxMean(torch.rand(2, 3))
PLAN = loupe_ext.plan(5, 32)
QUERY = explain.TokenEmbeddings(torch.ones(2, 3))
ENCODER = MaskedEncoder(lambda masks: masks.double(), 3)
EXPLAINED = explain.explain_late_interaction(QUERY, QUERY)
CAPTIONS = ["a dog", "a red cat"]
VOCABULARY = Vocabulary.of(CAPTIONS)


def pixels(shape):
    return torch.ones(shape, dtype=torch.uint8)


CONFIG = Config().but(
    train_size=2,
    batch_size=2,
    steps=1,
    width=8,
    dim=4,
    proposal_phrase=0.0,
    boxes=0.0,
    window=2,
    window_stride=1,
    precision="float32",
)
PAIRS = Pairs.from_captions(torch.ones(2, 3, 8, 8, dtype=torch.uint8), CAPTIONS, VOCABULARY)
BOX = torch.tensor([0.0, 0.0, 4.0, 4.0])
SCENES = Grounded(
    PAIRS, BOX.expand(2, 1, 4), BOX.expand(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64), ("a dog", "a cat")
)
MODEL, OBJECTIVE = build(CONFIG, VOCABULARY)
BATCH = PAIRS.batch(slice(2))
with torch.no_grad():
    IMAGE = MODEL.encode_image(BATCH.images)
    TEXT = MODEL.encode_text(BATCH.tokens, BATCH.spans, BATCH.phrase_lengths)


def settings(kind, **fits):
    """Of a dataclass of settings, whose fields' defaults are valid, and whatever else `fits` says."""
    kinds = {str: "str", float: "float, huge", bool: "bool"}
    found = {}
    for each in fields(kind):
        limits = each.metadata
        free = {str: not limits["choices"], float: limits["most"] == np.inf, bool: True}.get(type(each.default), False)
        also = fits.get(each.name, kinds[type(each.default)] if free else "")
        if isinstance(each.default, Settings) and "weight" in vars(each.default):
            also = "float, huge"  # which stand for the weight
        found[each.name] = a(each.default, also)
    return kind, found


FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "x.ppm").write_bytes(b"P5\n1 1\n255\n\t")
(FOLDER / "x.txt").write_text("a dog")
(FOLDER / "x.csv").write_text("path,caption\nx.ppm,a dog\n")
LISTING = data.read_folder(FOLDER)
atexit.register(shutil.rmtree, FOLDER)


def points(shape):
    low = torch.rand(*shape[:-1], 2)
    return torch.cat([low, low + 1], -1)


CALLS = {
    "boxes_to_regions": (
        loupe_ext.boxes_to_regions,
        {
            "boxes": x("n4", ANY + ", a dimension more, a dimension less, int32, int64"),
            "height": a(2),
            "width": a(3),
            "patch": a(1.0, "float, huge"),
        },
    ),
    "coalition_moments": (
        loupe_ext.coalition_moments,
        {
            "coalitions": whole("S1", "values of -1, values of 200"),
            "values": x("CS", "empty C, a dimension less"),
            "n": a(6),
            "offsets": Argument(torch.tensor([0, 2, 5]), "", {"None"}),
            **BACKEND,
        },
    ),
    "pack_coalitions": (
        loupe_ext.pack_coalitions,
        {"masks": flags("Sn", ANY + ", a dimension more, a dimension less")},
    ),
    "unpack_coalitions": (
        loupe_ext.unpack_coalitions,
        {
            "coalitions": whole("S1", ANY + ", a dimension more, a dimension less, values of -1, values of 200"),
            "num_players": a(6),
        },
    ),
    "pairwise_interactions": (
        loupe_ext.pairwise_interactions,
        {
            "scores": x("BMN", "a dimension less"),
            "col_scores": x("BMN", "None"),
            **LENGTHS,
            **INDEX,
            "pairs": a("all"),
            "game": a("max-mean"),
            **BACKEND,
        },
    ),
    "shapley_values": (
        loupe_ext.shapley_values,
        {
            "scores": x("BMN", "a dimension less"),
            "col_scores": x("BMN", "None"),
            **LENGTHS,
            **INDEX,
            "game": a("max-mean"),
            **BACKEND,
        },
    ),
    "maxsim_credit": (
        loupe_ext.maxsim_credit,
        {
            "scores": x("BMN", "a dimension less, empty M, empty N"),
            "document_lengths": lengths(),
            "query_lengths": lengths(),
            **INDEX,
            **BACKEND,
        },
    ),
    "region_interactions": (
        loupe_ext.region_interactions,
        {
            "patches": x("Bnd"),
            "text": x("Bd"),
            "regions": flags("BGn", "empty G"),
            "game": a("pooled-cosine"),
            **INDEX,
            "num_samples": a(4),
            "standard_error": a(None, "float, huge"),
            "max_samples": a(64),
            "seed": a(0),
            "antithetic": flag(),
            "first_problem": a(0),
            **BACKEND,
        },
    ),
    "region_interactions of words": (
        loupe_ext.region_interactions,
        {
            "patches": x("Bnd"),
            "text": x("BNd", "empty N"),
            "regions": flags("BGn", "empty G"),
            "game": a("late-interaction"),
            "text_lengths": whole("B", "None, int32, values of -1, values of 200"),
        },
    ),
    "sample_coalitions": (loupe_ext.sample_coalitions, {**SAMPLED, **INDEX, "stratified": flag()}),
    "sample_permutations": (loupe_ext.sample_permutations, SAMPLED),
    "plan": (
        loupe_ext.plan,
        {
            "n": a(5),
            "budget": a(30),
            **INDEX,
            "design": a("stratified"),
            "pairs": a(None),
            "seed": a(0),
            "antithetic": flag(),
        },
    ),
    "plan of pairs": (
        lambda pairs: loupe_ext.plan(5, 400, design="permutation", pairs=pairs),
        {"pairs": a([(0, 1)], "None")},
    ),
    "Plan.split": (PLAN.split, {"parts": a(3)}),
    "aggregate": (
        loupe_ext.aggregate,
        {
            "plan": a(PLAN),
            "values": Argument(torch.rand(32), "", {"a dimension more"}),
            "control": a(GAME, "None"),
            "fit": flag(),
            "players": a(list("abcde"), "None"),
        },
    ),
    "interactions": (
        loupe_ext.interactions,
        {
            "game": a(GAME),
            "order": a(2),
            **INDEX,
            "method": a("stratified"),
            "budget": a(32),
            "seed": a(0),
            "control": a(GAME, "None"),
        },
    ),
    "explain_late_interaction": (
        explain.explain_late_interaction,
        {"query": a(QUERY), "documents": a(QUERY, "empty list"), **INDEX, "top_pairs": a(2)},
    ),
    "write_page": (
        lambda explanations, title: explain.write_page(FOLDER / "page.html", explanations, title),
        {"explanations": a([EXPLAINED]), "title": a("why", "None, str")},
    ),
    "TokenEmbeddings": (
        explain.TokenEmbeddings,
        {"embeddings": x("nd"), "players": a(tuple("abcdef"), "None"), "name": a("a", "str")},
    ),
    "Interactions": (
        loupe_ext.Interactions,
        {
            "values": x("M", "a dimension more"),
            "pairs": x("MM"),
            "value_errors": x("M"),
            "pair_errors": x("MM"),
            "players": a(("a", "b", "c")),
            **INDEX,
            "method": a("exact", "str"),
            "evaluations": a(3),
            "baseline": a(torch.tensor(0.0)),
        },
    ),
    "Interactions.top": (loupe_ext.interactions(GAME).top, {"k": a(2)}),
    "Interactions.of_order": (loupe_ext.interactions(GAME).of_order, {"order": a(2)}),
    "explain_dual_encoder": (
        explain_dual_encoder,
        {
            "image": a(ENCODER),
            "text": a(ENCODER, "empty list"),
            **INDEX,
            "num_coalitions": a(32),
            "within": a((), "empty list"),
            "seed": a(0),
            "batch_size": a(64),
            "tolerance": a(None, "float, huge"),
            "progress": flag(),
        },
    ),
    "MaxMean": (
        games.MaxMean,
        {
            "scores": x("MN", "longer M, longer N, one M, one N"),
            "col_scores": x("MN", "None"),
            "players": a(list("abcdefg"), "None"),
        },
    ),
    "MaxSim": (games.MaxSim, {"scores": x("MN"), "players": a(list("abcdefg"), "None")}),
    "LateInteraction": (games.LateInteraction, {"scores": x("MN"), "players": a(list("abc"), "None")}),
    "PooledCosine": (games.PooledCosine, {"patches": x("Md"), "text": x("d"), "players": a(list("abc"), "None")}),
    "Function": (
        games.Function,
        {"function": a(len), "n": a(3), "players": a(list("abc"), "None"), "batch_size": a(2)},
    ),
    "Game of coalitions": (games.LateInteraction(torch.rand(3, 4)), {"coalitions": flags("SM", "empty S, one M")}),
    "Game.exact": (GAME.exact, INDEX),
    "box_loss": (
        losses.box_loss,
        {
            "boxes": x("Bn4"),
            "confidence": x("Bn"),
            "targets": x("BP4"),
            "centres": x("n2"),
            "target_lengths": lengths(),
            "weight": a(2.0, "float, huge"),
            "group": a(None),
        },
    ),
    "info_nce": (losses.info_nce, {"similarity": x("BB")}),
    "cmc_loss": (losses.cmc_loss, {"images": x("Bd"), "texts": x("Bd"), "scale": scale(), "group": a(None)}),
    "cmc_loss with a scale to learn": (
        losses.cmc_loss,
        {"images": x("Bd"), "texts": x("Bd"), "scale": x("1", "float, huge, a dimension less")},
    ),
    "alignment_interactions": (
        losses.alignment_interactions,
        {"alignment": x("BMN"), **LENGTHS, "num_samples": a(4, "None"), "seed": a(0), "first_problem": a(0)},
    ),
    "fsa_labels": (
        losses.fsa_labels,
        {"alignment": x("BMN"), **LENGTHS, "temperature": a(0.2, "float, huge"), "interactions": x("BMN", "None")},
    ),
    "fsa_loss": (
        losses.fsa_loss,
        {
            "regions": x("BMd"),
            "phrases": x("BNd"),
            "scale": scale(),
            **LENGTHS,
            "temperature": a(0.2, "float, huge"),
            "negatives": flag(),
            "interactions": x("BMN", "None"),
            "group": a(None),
        },
    ),
    "late_interaction_loss": (
        losses.late_interaction_loss,
        {
            "regions": x("BMd"),
            "tokens": x("BNd"),
            "scale": scale(),
            "region_lengths": lengths(),
            "token_lengths": lengths(),
            "group": a(None),
        },
    ),
    "late_interaction_similarity": (
        loupe_ext.late_interaction_similarity,
        {
            "regions": x("BMd"),
            "tokens": x("CNd"),
            "region_lengths": lengths(),
            "token_lengths": lengths("C"),
            "dtype": a(torch.float32, "None"),
        },
    ),
    "region_phrase_loss": (
        losses.region_phrase_loss,
        {"regions": x("BMd"), "phrases": x("BNd"), "scale": scale(), **LENGTHS, "group": a(None)},
    ),
    "region_phrase_similarity": (
        losses.region_phrase_similarity,
        {
            "regions": x("BMd"),
            "phrases": x("CPd"),
            "phrase_lengths": lengths("C"),
            "region_lengths": lengths(),
            "dtype": a(torch.float32, "None"),
        },
    ),
    "sampled_interactions": (
        losses.sampled_interactions,
        {"rows": x("BMN"), "columns": x("BMN"), "num_samples": a(4), "seed": a(0), **LENGTHS, "first_problem": a(0)},
    ),
    "sparse_grouping_loss": (
        losses.sparse_grouping_loss,
        {"patches": x("Bnd"), "tokens": x("BNd"), "scale": scale(), "token_lengths": lengths()},
    ),
    "tsa_labels": (
        losses.tsa_labels,
        {
            "interactions": x("BM"),
            "sizes": whole("BM", "values of -1, values of 200"),
            "region_lengths": lengths(),
            "literal": flag(),
        },
    ),
    "tsa_loss": (
        losses.tsa_loss,
        {
            "confidence": x("BM"),
            "interactions": x("BM"),
            "sizes": whole("BM", "values of -1, values of 200"),
            "region_lengths": lengths(),
            "literal": flag(),
        },
    ),
    "LoupeLoss": (
        losses.LoupeLoss,
        {
            **{name: a(1.0, "float, huge") for name in ("cmc", "region_phrase", "fsa", "late_interaction")},
            "fsa_temperature": a(0.2, "float, huge"),
            "negatives": flag(),
            "logit_scale": a(10.0, "float"),
            "max_logit_scale": a(60.0, "float, huge"),
        },
    ),
    "LoupeLoss of a batch": (
        losses.LoupeLoss(late_interaction=1.0),
        {
            "images": x("Bd"),
            "texts": x("Bd"),
            "regions": x("BMd"),
            "phrases": x("BNd"),
            "logit_scale": a(2.0, "None, float, huge"),
            **LENGTHS,
        },
    ),
    "Unsil": (unsil.Unsil, {"dim": a(3), "threshold": a(0.3, "float, huge"), "check": a(2), "width": a(4)}),
    "Unsil of a batch": (
        unsil.Unsil(5, width=4),
        {
            "regions": x("BMd"),
            "phrases": x("BNd"),
            "alignment": x("BMN"),
            "compute": a(lambda chosen: torch.rand(len(chosen), 3, 4)),
            **LENGTHS,
        },
    ),
    "InteractionLearner": (unsil.InteractionLearner, {"dim": a(3), "width": a(4)}),
    "InteractionLearner of a batch": (
        unsil.InteractionLearner(5, width=4),
        {"regions": x("BMd"), "phrases": x("BNd"), "alignment": x("BMN"), **LENGTHS},
    ),
    "heteroscedastic_loss": (
        unsil.heteroscedastic_loss,
        {"mean": x("BM"), "log_sigma": x("BM"), "target": x("BM"), "beta": a(0.5)},
    ),
    "calibration": (unsil.calibration, {"mean": x("BM"), "log_sigma": x("BM"), "target": x("BM")}),
    "recalls": (
        retrieval.recalls,
        {"image_to_text": x("MM"), "text_to_image": x("MM", "None"), "at": a((1, 2))},
    ),
    "pointing_accuracy": (
        grounding.pointing_accuracy,
        {"points": x("n2"), "boxes": x("n4", make=points), "several": a("any")},
    ),
    "grounding_accuracy": (
        grounding.grounding_accuracy,
        {"predicted": x("n4"), "true": x("n4", make=points), "several": a("any")},
    ),
    "grounding_accuracy of several": (
        grounding.grounding_accuracy,
        {"predicted": x("n4"), "true": x("nG4", make=points), "several": a("merged")},
    ),
    "proposal_recall": (
        grounding.proposal_recall,
        {"proposals": x("nM4"), "true": x("n4", make=points), "overlap": a(0.5), "several": a("any")},
    ),
    "choose_proposals": (
        grounding.choose_proposals,
        {"features": x("BMd"), "confidence": x("BM"), "phrases": x("BPd"), "sharpness": a(5.0, "float, -1, huge")},
    ),
    "chosen_boxes": (grounding.chosen_boxes, {"boxes": x("BM4"), "chosen": whole("BP", "values of -1, empty P")}),
    "score_detections": (
        detection.score_detections,
        {"features": x("nMd"), "confidence": x("nM"), "prompts": x("Cd"), "scale": scale()},
    ),
    "average_precision": (
        detection.average_precision,
        {
            "boxes": x("nM4", make=points),
            "scores": x("nCM"),
            "objects": x("nP4", make=points),
            "classes": whole("nP", "values of 0"),
            "limit": a(2),
        },
    ),
    "heat_maps": (heat.heat_maps, {"patches": x("Bhwd"), "phrases": x("BPd")}),
    "peaks": (heat.peaks, {"heat": x("nhw", "empty n"), "patch": a(4, "float, huge")}),
    "heat_boxes": (
        heat.heat_boxes,
        {"heat": x("nhw", "empty n"), "threshold": a(0.5), "patch": a(2.0, "float"), "by": a("peak")},
    ),
    "sharpened": (
        heat.sharpened,
        {
            "heat": x("nhw"),
            "images": Argument(torch.rand(6, 3, 8, 8), "n3HW", set()),
            "weight": a(1.0, "float, -1, huge"),
            "sharpness": a(1.0, "float, -1, huge"),
        },
    ),
    "connected": (heat.connected, {"mask": flags("nhw"), "seeds": whole("n")}),
    "extents": (heat.extents, {"masks": flags("nhw", "empty n")}),
    "centres": (
        regions.centres,
        {"height": a(2), "width": a(3), "device": a("cpu", "None"), "patch": a(4, "float, huge")},
    ),
    "box_iou": (
        regions.box_iou,
        {
            "a": x("n4", "one n, a dimension more, a dimension less"),
            "b": x("n4", "one n, a dimension more, a dimension less"),
        },
    ),
    "propose": (regions.propose, {"boxes": x("Bn4"), "confidence": x("Bn"), "count": a(2), "overlap": a(0.5)}),
    "coverage": (
        regions.coverage,
        {
            "boxes": x("n4", ANY + ", a dimension more, a dimension less"),
            "height": a(2),
            "width": a(3),
            "edge": a(1.0, "float, huge"),
            "patch": a(4, "float, huge"),
        },
    ),
    "box_features": (regions.box_features, {"patches": x("Bhwd"), "boxes": x("BM4"), "patch": a(4, "float, huge")}),
    "window_features": (regions.window_features, {"patches": x("Bhwd"), "side": a(2), "stride": a(1)}),
    "phrase_of_words": (
        text.phrase_of_words,
        {"spans": whole("BP2", "empty B, empty P, values of -1, values of 200"), "length": a(3)},
    ),
    "TextEncoder of words": (
        text.TextEncoder(6, 8),
        {
            "tokens": whole("BN", "values of -1, values of 200"),
            "spans": whole("BP2", "empty P, values of -1, values of 200"),
        },
    ),
    "Vocabulary": (Vocabulary, {"words": a(["a", "b"], "empty list")}),
    "Vocabulary.of": (Vocabulary.of, {"captions": a(CAPTIONS, "empty list"), "least": a(1)}),
    "Vocabulary.encode": (VOCABULARY.encode, {"text": a("a dog", "str")}),
    "Pairs": (
        Pairs,
        {
            "images": x("B3HW", "values of -1, values of 200", make=pixels),
            "tokens": whole("BN", "empty N"),
            "spans": Argument(torch.tensor([[[0, 1]], [[1, 2]]]), "BP2", {"empty P"}),
            "phrase_lengths": whole("B"),
            "vocabulary": a(VOCABULARY),
            "characters": Argument(
                torch.tensor([[[0, 1]], [[1, 2]]]), "BP2", {"None", "values of -1", "values of 200"}
            ),
        },
    ),
    "Pairs.from_captions": (
        Pairs.from_captions,
        {
            "images": x("B3HW", "empty B, values of -1, values of 200", make=pixels),
            "captions": a(CAPTIONS),
            "vocabulary": a(VOCABULARY, "None"),
            "chunker": a(loupe_ext.phrases.chunk),
            "longest": a(9),
        },
    ),
    "Grounded.from_captions": (
        Grounded.from_captions,
        {
            "images": x("B3HW", "empty B, values of -1, values of 200", make=pixels),
            "captions": a(CAPTIONS),
            "phrases": a([[(0, 1, None)], [(0, 1, (0, 0, 4, 4))]]),
            "vocabulary": a(VOCABULARY, "None"),
            "longest": a(9),
        },
    ),
    "Grounded": (
        Grounded,
        {
            "pairs": a(PAIRS),
            "boxes": Argument(torch.rand(2, 1, 4), "BP4"),
            "objects": x("BM4", make=points),
            "classes": whole("BM", "values of -1"),
            "prompts": a(("a dog", "a cat"), "empty list"),
        },
    ),
    "ImageEncoder of images": (
        ImageEncoder(8),
        {"images": x("B3HW", "empty B, values of -1, values of 200", make=pixels)},
    ),
    "RegionHead": (regions.RegionHead, {"width": a(4), "side": a(2.25, "float, huge"), "blocks": a(1)}),
    "RegionHead of tokens": (regions.RegionHead(5), {"tokens": x("Bhwd"), "patch": a(4, "float, huge")}),
    "DualEncoder": (
        DualEncoder,
        {
            "image_encoder": a(ImageEncoder(8)),
            "text_encoder": a(text.TextEncoder(4, 8)),
            "dim": a(4),
            "box_blocks": a(1),
        },
    ),
    "DualEncoder of images": (
        MODEL.encode_image,
        {"images": x("B3HW", "empty B, values of -1, values of 200", make=pixels)},
    ),
    "DualEncoder of texts": (
        lambda tokens, spans, phrase_lengths: MODEL.encode_text(tokens, spans, phrase_lengths),
        {
            "tokens": whole("BN"),
            "spans": whole("BP2", "empty P, values of -1, values of 200"),
            "phrase_lengths": whole("B", "int32, values of -1, values of 200"),
        },
    ),
    "encode_prompts": (
        detection.encode_prompts,
        {"model": a(MODEL), "prompts": a(("a dog", "a cat")), "vocabulary": a(VOCABULARY)},
    ),
    "evaluate": (
        evaluate.evaluate,
        {
            "model": a(MODEL),
            "scenes": a(SCENES),
            "objective": a(OBJECTIVE, "None"),
            "threshold": a(0.5),
            "centred": flag(),
        },
    ),
    "choose_heat": (evaluate.choose_heat, {"model": a(MODEL), "validation": a(SCENES)}),
    "chunk": (loupe_ext.phrases.chunk, {"text": a("a dog", "str")}),
    **{
        kind.__name__: settings(kind)
        for kind in (
            objective.CMC,
            objective.LateInteraction,
            objective.RegionPhrase,
            objective.SparseGrouping,
            objective.FSA,
            objective.TSA,
            objective.Boxes,
            DataConfig,
            OptimConfig,
        )
    },
    "ObjectiveConfig": settings(objective.ObjectiveConfig, logit_scale="float"),
    "ModelConfig": settings(ModelConfig, swin_depths=""),
    "Config": settings(Config),
    "Config.but": (lambda changes: CONFIG.but(changes), {"changes": a({"lr": 0.1}, "None")}),
    "LogitScale": (objective.LogitScale, {"start": a(10.0, "float, huge"), "cap": a(60.0, "float, huge")}),
    "Objective": (
        objective.Objective,
        {"config": a(CONFIG.objective, "None"), "dim": a(4, "None"), "seed": a(0), "extra": a({}, "None")},
    ),
    "Objective of a batch": (
        objective.Objective(CONFIG.objective, boxes=1.0),
        {
            "image": a(IMAGE),
            "text": a(TEXT),
            "images": Argument(BATCH.images, "B3HW", {"values of -1", "values of 200", "float32"}),
            "step": a(0),
            "logit_scale": a(2.0, "None, float, huge"),
            "first": a(0),
        },
    ),
    "Objective of features of images": (
        lambda **features: objective.Objective(fsa=1.0, regions="patches")(ImageFeatures(**features), TEXT),
        {
            "pooled": x("B4"),
            "patches": x("Bhw4"),
            "lengths": lengths(),
            "weights": x("Bhw", "None"),
            "boxes": Argument(torch.rand(2, 12, 4), "B", {"None"}),
            "confidence": Argument(torch.rand(2, 12), "B", {"None"}),
            "patch": a(1.0, "float, huge"),
        },
    ),
    "ImageFeatures.proposals": (
        ImageFeatures(
            torch.rand(2, 5), torch.rand(2, 2, 3, 5), boxes=torch.rand(2, 6, 4), confidence=torch.rand(2, 6)
        ).proposals,
        {"count": a(2), "overlap": a(0.5)},
    ),
    "Objective of features of texts": (
        lambda **features: OBJECTIVE(IMAGE, TextFeatures(**features)),
        {
            "pooled": x("B4"),
            "tokens": x("BN4"),
            "lengths": whole("B", "int32, values of -1, values of 200"),  # which this objective does not use
            "phrases": x("BP4"),
            "phrase_lengths": whole("B", "int32"),
        },
    ),
    "PairBatches": (
        PairBatches,
        {"pairs": a(PAIRS), "batch_size": a(2), "seed": a(0), "rank": a(1), "world_size": a(2)},
    ),
    "PairBatches.load_state_dict": (PAIRS.batches(2).load_state_dict, {"state": a({"step": 1})}),
    "build": (build, {"config": a(CONFIG), "vocabulary": a(VOCABULARY), "pretrained": flag()}),
    "build of a size": (build, {"config": a(CONFIG), "vocabulary": a(4)}),
    "fit": (
        fit,
        {
            "pairs": a(PAIRS),
            "config": a(CONFIG),
            "device": a("cpu"),
            "path": a(None, "str"),
            "save_every": a(1),
            "log_every": a(1),
            "report": a(None),
            "validate": a(None),
            "validate_every": a(0),
            "extend": flag(),
            "parallel_by": a("ddp"),
        },
    ),
    "read_picture": (
        data.read_picture,
        {"picture": a((FOLDER / "x.ppm").read_bytes()), "size": a(4, "None"), "fit": a("crop")},
    ),
    "read_table": (
        data.read_table,
        {"path": a(FOLDER / "x.csv"), "picture": a("path", "None"), "caption": a("caption", "None")},
    ),
    "read_folder": (data.read_folder, {"path": a(FOLDER)}),
    "Shards": (data.Shards, {"urls": a((str(FOLDER / "x.csv"),))}),
    "WordTokenizer": (
        data.WordTokenizer,
        {"vocabulary": a(VOCABULARY), "chunker": a(loupe_ext.phrases.chunk), "longest": a(9)},
    ),
    "WordTokenizer of captions": (data.WordTokenizer(VOCABULARY), {"captions": a(CAPTIONS, "empty list")}),
    "Stream": (
        lambda source, tokenize, **options: next(iter(data.Stream(source, tokenize, **options)), None),
        {
            "source": a(LISTING),
            "tokenize": a(data.WordTokenizer(VOCABULARY)),
            "size": a(4),
            "fit": a("crop"),
            "processor": a(None),
            "batch_size": a(1),
            "captions": a("all"),
            "shuffle": flag(),
            "buffer": a(3),
            "drop_last": flag(),
            "epochs": a(1, "None"),
            "seed": a(0),
            "num_workers": a(0),
            "prefetch": a(2),
            "rank": a(0),
            "world_size": a(1),
        },
    ),
    "train": (
        train,
        {
            "model": a(MODEL),
            "objective": a(OBJECTIVE),
            "batches": a([BATCH]),
            "optim": a(CONFIG.optim, "None"),
            "config": a(CONFIG, "None"),
        },
    ),
    "processes": (
        lambda device, timeout: processes(device, timeout).__enter__(),
        {"device": a("cpu"), "timeout": a(600.0, "float, huge")},
    ),
    "load": (load, {"name": a("scenes"), "split": a("train"), "size": a(2), "seed": a(0)}),
    "check_run": (
        lambda config, device, path: check_run(config, device, path),
        {"config": a(Config()), "device": a("cpu"), "path": a(None, "str")},
    ),
}


@pytest.fixture(autouse=True)
def _no_scenes(monkeypatch):
    """Those of `load` take long to draw."""
    monkeypatch.setattr("loupe_ext.data.scenes.rendered_scenes", lambda *numbers: numbers)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named(name):
    _, wrong = complaints(*CALLS[name])
    assert not wrong


def test_folders_of_models(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    saved = {"folder": a("run", "str"), "model": a(MODEL), "objective": a(OBJECTIVE), "config": a(CONFIG)}
    for call, arguments in ((save_pretrained, saved), (from_pretrained, {"folder": a("run")})):
        _, wrong = complaints(call, arguments)
        assert not wrong
    with pytest.raises(ValueError, match="config: expected that of the objective, got another one"):
        save_pretrained("run", MODEL, OBJECTIVE, CONFIG.but(fsa=0))


def test_a_tracker_that_is_none(tmp_path):
    pytest.importorskip("rich")
    with pytest.raises(ValueError, match=r"to: expected 'tensorboard' or .* got 'x'"), reporter(tmp_path, CONFIG, "x"):
        pass


def test_images_are_uint8_or_floating():
    maps, images = torch.rand(2, 2, 2), torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(heat.sharpened(maps, images), heat.sharpened(maps, images.float()), rtol=0, atol=0)


def test_integers_of_numpy_are_ints(tmp_path):
    i = np.int64
    planned = loupe_ext.plan(i(8), i(256), seed=i(3))
    assert planned == loupe_ext.plan(8, 256, seed=3)
    planned.save(tmp_path / "plan.json")
    assert loupe_ext.Plan.load(tmp_path / "plan.json") == planned
    assert planned.split(np.uint8(200)) == planned.split(200)  # whose products with lengths overflow 8 bits
    game = games.Function(lambda masks: masks.double().sum(1), i(3), batch_size=i(2))
    assert type(game.n) is int
    found = loupe_ext.interactions(game, budget=i(8), seed=i(0), order=i(1))
    assert found.pairs is None
    found.save(tmp_path / "found.json")
    assert len(loupe_ext.interactions(GAME).top(i(2))) == 2
    assert load("scenes", "train", i(2), i(1)) == (0, 2, 1)


@pytest.mark.parametrize("integer", [np.int64, np.uint64, torch.tensor], ids=["int64", "uint64", "a tensor"])
def test_other_integers_draw_the_same(integer):
    for sample in (loupe_ext.sample_coalitions, loupe_ext.sample_permutations):
        numbers = {
            "num_players": 5,
            "num_samples": 4,
            "num_problems": 2,
            "seed": 7,
            "first_problem": 1,
            "first_sample": 2,
        }
        drawn = sample(**{name: integer(n) for name, n in numbers.items()})
        torch.testing.assert_close(drawn, sample(**numbers), rtol=0, atol=0)
    packed = loupe_ext.pack_coalitions(torch.ones(3, 6, dtype=torch.bool))
    assert loupe_ext.unpack_coalitions(packed, integer(6)).shape == (3, 6)
    assert loupe_ext.coalition_moments(packed, torch.ones(3), integer(6)).shape == (6, 6)
    boxes = torch.rand(2, 4)
    assert loupe_ext.boxes_to_regions(boxes, integer(2), integer(3)).shape == (2, 6)
    masks = loupe_ext.boxes_to_regions(boxes, 2, 3)
    given = torch.rand(6, 5), torch.rand(5), masks
    numbers = {"num_samples": 4, "max_samples": 8, "seed": 1, "first_problem": 2}
    found = loupe_ext.region_interactions(*given, standard_error=1e-9, **{k: integer(n) for k, n in numbers.items()})
    expected = loupe_ext.region_interactions(*given, standard_error=1e-9, **numbers)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    scores = torch.rand(2, 3, 4)
    found = losses.sampled_interactions(scores, scores, integer(4), integer(1))
    torch.testing.assert_close(found, losses.sampled_interactions(scores, scores, 4, 1), rtol=0, atol=0)
