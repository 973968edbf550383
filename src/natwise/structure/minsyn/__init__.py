"""Minimal synergy: factors that each tell about the variables on their own, and measures of synergy."""

from natwise.structure.minsyn import synergy
from natwise.structure.minsyn._estimator import MinSyn

__all__ = ["MinSyn", "synergy"]
