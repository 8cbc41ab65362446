"""The objective as terms that compose: settings, weight, gate, and where the interactions come from."""

from loupe_ext.objective.objective import LogitScale, Objective, ObjectiveConfig
from loupe_ext.objective.seen import Seen
from loupe_ext.objective.terms import (
    CMC,
    FSA,
    TSA,
    Boxes,
    LateInteraction,
    ProposalPhrase,
    RegionPhrase,
    SparseGrouping,
    Term,
)

__all__ = [
    "CMC",
    "FSA",
    "TSA",
    "Boxes",
    "LateInteraction",
    "LogitScale",
    "Objective",
    "ObjectiveConfig",
    "ProposalPhrase",
    "RegionPhrase",
    "Seen",
    "SparseGrouping",
    "Term",
]
