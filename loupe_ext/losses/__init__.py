"""Losses, each a function of features that any model can call."""

from loupe_ext.losses.boxes import box_loss
from loupe_ext.losses.cmc import cmc_loss, info_nce
from loupe_ext.losses.fsa import alignment_interactions, fsa_labels, fsa_loss
from loupe_ext.losses.late_interaction import late_interaction_loss
from loupe_ext.losses.loupe import LoupeLoss
from loupe_ext.losses.region_phrase import region_phrase_loss, region_phrase_similarity
from loupe_ext.losses.sampled import sampled_interactions
from loupe_ext.losses.sparse_grouping import sparse_grouping_loss
from loupe_ext.losses.tsa import tsa_labels, tsa_loss
from loupe_ext.ops import late_interaction_similarity

__all__ = [
    "LoupeLoss",
    "alignment_interactions",
    "box_loss",
    "cmc_loss",
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
