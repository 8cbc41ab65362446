"""Interactions of any game, and why a vision-language or a late-interaction model scores as it does."""

from loupe_ext.explain.aggregate import aggregate
from loupe_ext.explain.dual_encoder import explain_dual_encoder
from loupe_ext.explain.encoders import MaskedEncoder, TokenEmbeddings
from loupe_ext.explain.explanations import DualEncoderExplanation, LateInteractionExplanation
from loupe_ext.explain.interactions import interactions
from loupe_ext.explain.late_interaction import explain_late_interaction
from loupe_ext.explain.plan import Plan, plan
from loupe_ext.explain.players import Players
from loupe_ext.explain.results import Interactions

__all__ = [
    "DualEncoderExplanation",
    "Interactions",
    "LateInteractionExplanation",
    "MaskedEncoder",
    "Plan",
    "Players",
    "TokenEmbeddings",
    "aggregate",
    "explain_dual_encoder",
    "explain_late_interaction",
    "interactions",
    "plan",
]
