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
def tokens(texts):
    """Of each text the embeddings [n, d] of length one, [CLS] and [SEP] among them, and where each token starts."""
    model, tokenizer = minilm()
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")
    hidden = normalize(model(**inputs).last_hidden_state, dim=2)
    starts = offsets[..., 0].masked_fill(offsets[..., 0] == offsets[..., 1], -1)
    return [(x[there], at[there]) for x, at, there in zip(hidden, starts, inputs["attention_mask"].bool(), strict=True)]


def judge(question, sentences):
    """Score; of each method its values per sentence; what deletions cost, by the set of sentences deleted."""
    n = len(sentences)
    gone = [(), *((k,) for k in range(n)), *itertools.combinations(range(n), 2)]
    [(query, _)] = tokens([question])
    encoded = tokens([" ".join(s for k, s in enumerate(sentences) if k not in out) for out in gone])
    scores = [(x @ query.T).amax(0).sum().item() for x, _ in encoded]
    embeddings, starts = encoded[0]
    found = explain_late_interaction(TokenEmbeddings(query), TokenEmbeddings(embeddings), top_pairs=0)
    edges = torch.tensor([0, *itertools.accumulate(len(s) + 1 for s in sentences[:-1])])
    place = torch.bucketize(starts, edges, right=True)  # 0: no sentence's
    values = {
        name: torch.zeros(n + 1, dtype=torch.float64).index_add(0, place, getattr(found, name).double().sum(1))[1:]
        for name in METHODS
    }
    return scores[0], values, {out: scores[0] - left for out, left in zip(gone[1:], scores[1:], strict=True)}


def summary(values):
    values = [value for value in values if math.isfinite(value)]
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def run(quick):
    rows = {}
    for kind, question, sentences, told in documents(2 if quick else None):
        score, values, cost = judge(question, sentences)
        alone = torch.tensor([cost[k,] for k in range(len(sentences))])
        worst = max((out for out in cost if len(out) == 2), key=cost.__getitem__)
        for name, value in values.items():
            top = value.topk(2).indices.tolist()
            twins = value[list(told)]
            measures = {
                "correlation": torch.corrcoef(torch.stack([value, alone.double()]))[0, 1].item(),
                "first": float(top[0] == alone.argmax()),
                "idle": float(alone[top[0]] < CHEAP * score),
                "pair": float(set(top) == set(worst)),
                "twins": (twins.min() / twins.max()).item(),
            }
            for measure, got in measures.items():
                rows.setdefault((kind, name), {}).setdefault(measure, []).append(got)
    return {
        "rows": [
            {
                "documents": kind,
                "method": name,
                "count": len(rows[kind, name]["first"]),
                **{measure: summary(got) for measure, got in rows[kind, name].items()},
            }
            for kind in KINDS
            for name in METHODS
        ]
    }
