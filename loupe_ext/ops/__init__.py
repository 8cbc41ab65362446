"""One file per op: its public function, its checks, its registration with PyTorch."""

from loupe_ext.ops.coalitions import pack_coalitions, sample_coalitions, sample_permutations, unpack_coalitions
from loupe_ext.ops.late_interaction import late_interaction_similarity
from loupe_ext.ops.maxsim_credit import maxsim_credit
from loupe_ext.ops.moments import coalition_moments
from loupe_ext.ops.pairwise import pairwise_interactions
from loupe_ext.ops.region import boxes_to_regions, region_interactions
from loupe_ext.ops.sides import shapley_values

__all__ = [
    "boxes_to_regions",
    "coalition_moments",
    "late_interaction_similarity",
    "maxsim_credit",
    "pack_coalitions",
    "pairwise_interactions",
    "region_interactions",
    "sample_coalitions",
    "sample_permutations",
    "shapley_values",
    "unpack_coalitions",
]
