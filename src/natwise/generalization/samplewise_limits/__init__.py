"""Learning problems small enough to enumerate, on which no sample-wise information bound can see the gap."""

from natwise.generalization.samplewise_limits._constructions import affine_parity_problem, balanced_labelling_problem
from natwise.generalization.samplewise_limits._problem import FiniteLearningProblem

__all__ = ["FiniteLearningProblem", "affine_parity_problem", "balanced_labelling_problem"]
