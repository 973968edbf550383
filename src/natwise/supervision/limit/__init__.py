"""LIMIT and its neighbours: training with wrong labels, label noise, and memorised label information."""

from natwise.supervision.limit._classifiers import LIMITClassifier, RobustClassifier
from natwise.supervision.limit._information import fano_error_lower_bound, memorized_label_information
from natwise.supervision.limit._limit import (
    GradientHead,
    LIMITLoss,
    LIMITOutput,
    LIMITPenaltyLoss,
    check_separate_networks,
)
from natwise.supervision.limit._losses import (
    BootstrapLoss,
    ConfusionMatrixLoss,
    CoTeachingLoss,
    DMILoss,
    ELRLoss,
    ForwardCorrectionLoss,
    GCELoss,
    LabelSmoothingLoss,
    MAELoss,
    MSELoss,
    NoisyGradientLoss,
    SymmetricCELoss,
)
from natwise.supervision.limit._noise import (
    InstanceNoise,
    PairNoise,
    UniformNoise,
    confident_joint,
    corrupt_labels,
    estimate_transition_matrix,
    transition_entropy,
)

__all__ = [
    "BootstrapLoss",
    "CoTeachingLoss",
    "ConfusionMatrixLoss",
    "DMILoss",
    "ELRLoss",
    "ForwardCorrectionLoss",
    "GCELoss",
    "GradientHead",
    "InstanceNoise",
    "LIMITClassifier",
    "LIMITLoss",
    "LIMITOutput",
    "LIMITPenaltyLoss",
    "LabelSmoothingLoss",
    "MAELoss",
    "MSELoss",
    "NoisyGradientLoss",
    "PairNoise",
    "RobustClassifier",
    "SymmetricCELoss",
    "UniformNoise",
    "check_separate_networks",
    "confident_joint",
    "corrupt_labels",
    "estimate_transition_matrix",
    "fano_error_lower_bound",
    "memorized_label_information",
    "transition_entropy",
]
