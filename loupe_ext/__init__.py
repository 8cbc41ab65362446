"""Exact game-theoretic interactions for vision-language models, and LOUPE (NeurIPS 2022) built on them."""

from loupe_ext.ops import (
    boxes_to_regions,
    pack_coalitions,
    pairwise_interactions,
    region_interactions,
    sample_coalitions,
    sample_permutations,
    unpack_coalitions,
)

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "boxes_to_regions",
    "pack_coalitions",
    "pairwise_interactions",
    "region_interactions",
    "sample_coalitions",
    "sample_permutations",
    "unpack_coalitions",
]
