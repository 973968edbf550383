from .samplewise_limits import (
    FiniteLearningProblem as FiniteLearningProblem,
    affine_parity_problem as affine_parity_problem,
    balanced_labelling_problem as balanced_labelling_problem,
)
