"""Late interaction: which sentence carries a document's score, by credit and by winner-takes-all, against deletion.

MiniLM's token embeddings are the model. To delete sentences, the document is encoded again without them.
"""

import itertools
import math
import statistics

import torch
from torch.nn.functional import normalize

from bench.explain.documents import KINDS, documents
from bench.explain.models import minilm
from loupe_ext.explain import TokenEmbeddings, explain_late_interaction

CHEAP = 0.05  # of the score: a deletion that costs less leaves the document as good as it was
METHODS = ("credit", "winners")


@torch.no_grad()
def tokens(text):
    """Embeddings [n, d] of length one, [CLS] and [SEP] among them, and the character that each token starts at."""
    model, tokenizer = minilm()
    inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0]
    hidden = normalize(model(**inputs).last_hidden_state[0], dim=1)
    return hidden, [start if start < stop else -1 for start, stop in offsets.tolist()]


def score(query, sentences):
    return (tokens(" ".join(sentences))[0] @ query.T).amax(0).sum().item()


def judge(question, sentences):
    """Per sentence: credit, winner-takes-all and what its deletion costs; of every two, what deleting both costs."""
    query = tokens(question)[0]
    embeddings, starts = tokens(" ".join(sentences))
    found = explain_late_interaction(TokenEmbeddings(query), TokenEmbeddings(embeddings))
    edges = torch.tensor([len(" ".join(sentences[:k])) + (k > 0) for k in range(len(sentences))])
    place = torch.bucketize(torch.tensor(starts), edges, right=True)  # 0: no sentence's
    whole = found.score
    kept = lambda gone: [s for k, s in enumerate(sentences) if k not in gone]  # noqa: E731
    pairs = list(itertools.combinations(range(len(sentences)), 2))
    of = {}
    for name in METHODS:
        per_token = getattr(found, name).sum(1)
        of[name] = torch.zeros(len(edges) + 1, dtype=per_token.dtype).index_add(0, place, per_token)[1:]
    one = torch.tensor([whole - score(query, kept({k})) for k in range(len(sentences))])
    two = torch.tensor([whole - score(query, kept(set(pair))) for pair in pairs])
    return whole, of, one, dict(zip(pairs, two.tolist(), strict=True))


def summary(values):
    values = [value for value in values if math.isfinite(value)]
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def run(quick):
    rows = {}
    for kind, question, sentences in documents(2 if quick else None):
        whole, of, one, two = judge(question, sentences)
        worst = max(two, key=two.get)
        for name in METHODS:
            value = of[name]
            first, second = value.topk(2).indices.tolist()
            row = rows.setdefault((kind, name), {})
            for measure, got in {
                "correlation": torch.corrcoef(torch.stack([value.double(), one.double()]))[0, 1].item(),
                "first": float(first == one.argmax()),
                "idle": float(one[first] < CHEAP * whole),
                "pair": float({first, second} == set(worst)),
                "named cost": two[min(first, second), max(first, second)] / max(two.values()),
            }.items():
                row.setdefault(measure, []).append(got)
    return [
        {
            "documents": kind,
            "method": name,
            "count": len(rows[kind, name]["first"]),
            **{measure: summary(values) for measure, values in rows[kind, name].items()},
        }
        for kind in KINDS
        for name in METHODS
    ]
