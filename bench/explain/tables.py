"""The results as a page of tables in markdown, each sorted by what it judges."""

COMMAND = "python -m bench.explain"


def table(heads, rows):
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _error(row):
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    return f"{row['error']:.3f}{spread}"


def _seconds(row):
    return f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.2g}"


def dual(title, about):
    def section(found):
        games = dict.fromkeys((row["index"], row["game"], row["passes"]) for row in found["errors"])
        rows = [
            (game, index, passes, row["method"], _error(row), _seconds(row), row["seeds"])
            for index, game, passes in games
            for row in sorted(found["errors"], key=lambda row: row["error"])
            if (row["index"], row["game"], row["passes"]) == (index, game, passes)
        ]
        covers = [
            (x["game"], x["index"], x["passes"], f"{100 * x['coverage']:.1f} %", x["seeds"]) for x in found["coverage"]
        ]
        text = f"""## {title}

{about}

{table(("game", "index", "passes of each", "by", "error", "seconds", "seeds"), rows)}

How many of the intervals of 1.96 standard errors hold the truth, over all pairs and seeds:

{table(("game", "index", "passes of each", "coverage", "seeds"), covers)}
"""
        if over := found.get("overhead"):
            share = f"{100 * over['share']:.2f} %"
            text += f"""
At {over["game"]} and {over["passes"]} passes of each encoder, all that is not the encoders takes {share} of the
{over["encoders"]:.1f} s that they take.
"""
        return text

    return section


MINILM = """Error of the matrix of all cross pairs, relative in the Frobenius norm, with as many passes of each encoder;
for shapiq, which plays the joint game of both sides' players, as many evaluations. Seconds are the processor's, outside
the encoders; ± is the standard deviation over seeds. The truth is enumerated."""
CLIP = """As above, with random weights ("hard": three times as large; of us alone), and without SVARM-IQ, which takes
many minutes for 61 players. The truth is our own estimate from 16,384 passes, whose error is about a quarter of that
from 1,024."""


def estimators(found):
    rows = [
        (row["game"], f"{row['evaluations']:,}", row["method"], f"{100 * row['error']:.1f} %", _seconds(row))
        for row in sorted(found["rows"], key=lambda row: (row["game"], row["error"]))
    ]
    return f"""## Any game: interactions of all pairs

The Shapley interaction index; error relative in the Frobenius norm; the processor's seconds, the game's own among
them; one seed.

{table(("game", "evaluations", "by", "error", "seconds"), rows)}
"""


LATE = {
    "correlation": "correlation with deletion",
    "first": "first is the costliest to delete",
    "pair": "first two are the costliest two to delete",
    "idle": "deleting the first costs < 5 %",
    "twins": "lesser of the two over the greater",
}


def late(found):
    def cell(row, measure):
        mean, sd = row[measure]["mean"], row[measure]["sd"]
        return f"{100 * mean:.0f} %" if measure in ("first", "pair", "idle") else f"{mean:.2f} ± {sd:.2f}"

    names = {"credit": "credit", "winners": "winner-takes-all"}
    rows = [
        (row["documents"], row["count"], names[row["method"]], *(cell(row, measure) for measure in LATE))
        for row in found["rows"]
    ]
    return f"""## Late interaction: sentences against their deletion

Documents of five sentences of our own writing (`bench/explain/documents.py`), MiniLM's token embeddings as the model.
A sentence's credit is the sum over its tokens; a deleted sentence's document is encoded again. One of the five
answers the query; in a duplicated document another is the same, in a paraphrased one it says the same in other words
("the two"). ± is the standard deviation over documents.

{table(("documents", "number", "by", *LATE.values()), rows)}
"""


def pointing(found):
    rows = [
        (
            row["objects"],
            row["phrases"],
            row["method"],
            f"{100 * row['hits']:.1f} %",
            f"{row['insertion']:.3f}",
            f"{row['deletion']:.3f}",
        )
        for row in sorted(found["rows"], key=lambda row: (row["objects"], -row["insertion"]))
    ]
    return f"""## The pointing game, insertion and deletion

The demo's model and test scenes of one to four objects, up to three of them named; the players are the 256 patches
(their features after the convolutions) and the caption's phrases; interactions are Banzhaf's, from 1,024 coalitions.
Pointing: the peak is in the phrase's box. Insertion: the mean similarity of phrase and image as patches come in, the
best first (more is better); deletion: as they go (less is better). "Weighted": the similarity times the patch's
weight in the pooled embedding, which is what gradient-weighted attention (Grad-ECLIP) sees of this model.

{table(("objects", "phrases", "by", "pointing", "insertion", "deletion"), rows)}
"""


def page(results):
    parts = {
        "minilm": dual("Dual encoders: cross interactions from equal passes, MiniLM", MINILM),
        "clip": dual("Dual encoders: the architecture of CLIP", CLIP),
        "late": late,
        "estimators": estimators,
        "pointing": pointing,
    }
    made = []
    for name, make in parts.items():
        if name in results:
            about = results[name]["about"]
            made.append(f"{make(results[name])}\n`{COMMAND} {name}`, {about['date']}, torch {about['torch']}.\n")
    return "\n".join(["# Explanations beside the peers\n", *made])
