"""Exact game-theoretic interactions for vision-language models, and LOUPE (NeurIPS 2022) built on them."""

from loupe_ext.explain import Interactions, Plan, aggregate, interactions, plan
from loupe_ext.ops import (
    boxes_to_regions,
    coalition_moments,
    pack_coalitions,
    pairwise_interactions,
    region_interactions,
    sample_coalitions,
    sample_permutations,
    shapley_values,
    unpack_coalitions,
)

__version__ = "0.1.0"

__all__ = [
    "Interactions",
    "Plan",
    "__version__",
    "aggregate",
    "boxes_to_regions",
    "coalition_moments",
    "interactions",
    "pack_coalitions",
    "pairwise_interactions",
    "plan",
    "region_interactions",
    "sample_coalitions",
    "sample_permutations",
    "shapley_values",
    "unpack_coalitions",
]
