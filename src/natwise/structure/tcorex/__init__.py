"""T-CorEx: covariance matrices, groups of variables and change points of a series."""

from natwise.structure.tcorex._estimator import TCorEx
from natwise.structure.tcorex._periods import make_periods
from natwise.structure.tcorex._selection import select_smoothness

__all__ = ["TCorEx", "make_periods", "select_smoothness"]
