"""Exact game-theoretic interactions for vision-language models, and LOUPE (NeurIPS 2022) built on them."""

from loupe_ext.ops import pairwise_interactions

__version__ = "0.1.0"

__all__ = ["__version__", "pairwise_interactions"]
