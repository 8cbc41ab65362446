"""Losses, each a function of features that any model can call; `LoupeLoss`, several of them as a module."""

from typing import TYPE_CHECKING, Any

from loupe_ext.losses.boxes import box_loss
from loupe_ext.losses.cmc import cmc_loss, info_nce
from loupe_ext.losses.fsa import alignment_interactions, fsa_labels, fsa_loss
from loupe_ext.losses.gate import contrast_gate
from loupe_ext.losses.late_interaction import late_interaction_loss
from loupe_ext.losses.region_phrase import region_phrase_loss, region_phrase_similarity
from loupe_ext.losses.sampled import sampled_interactions
from loupe_ext.losses.sparse_grouping import sparse_grouping_loss
from loupe_ext.losses.tsa import tsa_labels, tsa_loss
from loupe_ext.ops import late_interaction_similarity

if TYPE_CHECKING:
    from loupe_ext.objective.loupe_loss import LoupeLoss

__all__ = [
    "LoupeLoss",
    "alignment_interactions",
    "box_loss",
    "cmc_loss",
    "contrast_gate",
    "fsa_labels",
    "fsa_loss",
    "info_nce",
    "late_interaction_loss",
    "late_interaction_similarity",
    "region_phrase_loss",
    "region_phrase_similarity",
    "sampled_interactions",
    "sparse_grouping_loss",
    "tsa_labels",
    "tsa_loss",
]


def __getattr__(name: str) -> Any:
    if name == "LoupeLoss":  # it is made of objectives, which are made of these losses
        from loupe_ext.objective.loupe_loss import LoupeLoss

        return LoupeLoss
    raise AttributeError(f"module 'loupe_ext.losses' has no attribute {name!r}")
