"""Interactions of any game: which coalitions to evaluate, and what their values say."""

from loupe_ext.explain.aggregate import aggregate
from loupe_ext.explain.interactions import interactions
from loupe_ext.explain.plan import Plan, plan
from loupe_ext.explain.results import Interactions

__all__ = ["Interactions", "Plan", "aggregate", "interactions", "plan"]
