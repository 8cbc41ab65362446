"""UNSIL, LOUPE's uncertainty-aware neural Shapley interaction learner: interactions predicted where it is sure."""

from loupe_ext.unsil.hybrid import Estimate, Unsil
from loupe_ext.unsil.learner import InteractionLearner, calibration, heteroscedastic_loss

__all__ = ["Estimate", "InteractionLearner", "Unsil", "calibration", "heteroscedastic_loss"]
