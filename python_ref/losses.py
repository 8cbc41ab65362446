"""The losses as loops over their definitions."""

import torch

from python_ref import pairwise as reference


def softmaxed(x: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(x).softmax(0)


def contrast(by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the diagonal over the rows of one matrix and the columns of another, halved."""
    n = len(by_row)
    rows = sum(-softmaxed(list(by_row[i]))[i].log() for i in range(n)) / n
    columns = sum(-softmaxed(list(by_column[:, i]))[i].log() for i in range(n)) / n
    return (rows + columns) / 2


def region_phrase_similarity(regions, phrases, lengths):
    def score(image, caption):
        own = phrases[caption][: lengths[caption]]
        return sum(max(phrase @ region for region in regions[image]) for phrase in own) / len(own)

    return torch.stack([torch.stack([score(b, c) for c in range(len(phrases))]) for b in range(len(regions))])


def late_interaction(regions, tokens, region_lengths, token_lengths):
    def score(queries, keys):
        return sum(max(query @ key for key in keys) for query in queries) / len(queries)

    images = [x[:m] for x, m in zip(regions, region_lengths, strict=True)]
    captions = [x[:n] for x, n in zip(tokens, token_lengths, strict=True)]
    by_region = torch.stack([torch.stack([score(image, caption) for caption in captions]) for image in images])
    by_token = torch.stack([torch.stack([score(caption, image) for caption in captions]) for image in images])
    return by_region, by_token


def fsa_labels(alignment, temperature):
    """Labels and weights of one problem without padding."""
    interactions = reference.pairwise_interactions(alignment.softmax(1)[None], alignment.softmax(0)[None])[0]
    best = interactions.max()
    labels = torch.stack([softmaxed(list(row / best / temperature)) for row in interactions])
    return labels, torch.stack([(row.max() / best).clamp(min=0) for row in interactions])


def fsa_loss(regions, phrases, scale, region_lengths, phrase_lengths, temperature, negatives):
    """The weighted mean over regions of -sum_j label_j log softmax_j, meaned over images; labels are constants."""
    losses = []
    for b in range(len(regions)):
        mine, own = regions[b, : region_lengths[b]], phrases[b, : phrase_lengths[b]]
        rivals = [phrases[c, j] for c in range(len(phrases)) for j in range(phrase_lengths[c])] if negatives else own
        own_labels, weights = fsa_labels((scale * mine @ own.T).detach(), temperature)
        total = 0
        for region, label, weight in zip(mine, own_labels, weights, strict=True):
            everything = sum((scale * region @ rival).exp() for rival in rivals)
            total += weight * sum(
                -q * ((scale * region @ x).exp() / everything).log() for q, x in zip(label, own, strict=True)
            )
        losses.append(total / weights.sum())
    return sum(losses) / len(losses)
