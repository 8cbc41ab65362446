"""Exact game-theoretic interactions for vision-language models, and LOUPE (NeurIPS 2022) built on them."""

import importlib
from typing import TYPE_CHECKING, Any

from loupe_ext.explain import Interactions, Plan, aggregate, interactions, plan
from loupe_ext.ops import (
    boxes_to_regions,
    coalition_moments,
    late_interaction_similarity,
    maxsim_credit,
    pack_coalitions,
    pairwise_interactions,
    region_interactions,
    sample_coalitions,
    sample_permutations,
    shapley_values,
    unpack_coalitions,
)

if TYPE_CHECKING:
    from loupe_ext import data, games, losses, model, objective, phrases, train, unsil, zeroshot

__version__ = "0.1.0"

_SUBPACKAGES = ("data", "games", "losses", "model", "objective", "phrases", "train", "unsil", "zeroshot")

__all__ = [
    "Interactions",
    "Plan",
    "__version__",
    "aggregate",
    "boxes_to_regions",
    "coalition_moments",
    "data",
    "games",
    "interactions",
    "late_interaction_similarity",
    "losses",
    "maxsim_credit",
    "model",
    "objective",
    "pack_coalitions",
    "pairwise_interactions",
    "phrases",
    "plan",
    "region_interactions",
    "sample_coalitions",
    "sample_permutations",
    "shapley_values",
    "train",
    "unpack_coalitions",
    "unsil",
    "zeroshot",
]


def __getattr__(name: str) -> Any:
    """Subpackages load when they are first used."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"loupe_ext.{name}")
    raise AttributeError(f"module 'loupe_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
