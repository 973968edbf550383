"""How much more data a target error needs, how sure that is, and where to collect it."""

from ._classical import ClassicalCurve
from ._curve import ExtrapolationWarning
from ._measure import measure_learning_curve
from ._meta import CurveBank, MetaPiecewisePowerLaw
from ._planner import DataRequirementPlanner, allocate_budget
from ._power import PiecewisePowerLaw, PowerLaw

__all__ = [
    "ClassicalCurve",
    "CurveBank",
    "DataRequirementPlanner",
    "ExtrapolationWarning",
    "MetaPiecewisePowerLaw",
    "PiecewisePowerLaw",
    "PowerLaw",
    "allocate_budget",
    "measure_learning_curve",
]
