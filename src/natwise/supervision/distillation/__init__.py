"""Supervision complexity: how hard labels or teachers are for a student; distillation from growing teachers."""

from natwise.supervision.distillation._complexity import (
    distillation_bound,
    fidelity,
    kernel_alignment,
    soft_targets,
    supervision_complexity,
)
from natwise.supervision.distillation._distiller import OnlineDistiller
from natwise.supervision.distillation._kernel import FactoredKernel
from natwise.supervision.distillation._path import complexity_path
from natwise.supervision.distillation._teacher import CheckpointTeacher

__all__ = [
    "CheckpointTeacher",
    "FactoredKernel",
    "OnlineDistiller",
    "complexity_path",
    "distillation_bound",
    "fidelity",
    "kernel_alignment",
    "soft_targets",
    "supervision_complexity",
]
