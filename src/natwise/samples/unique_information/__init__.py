"""Unique information of samples: what each sample alone puts into weights and predictions, without retraining."""

from natwise.core.linearized import empirical_ntk, read_ntk_tiles, write_ntk_tiles
from natwise.samples.unique_information._estimator import SampleInformation
from natwise.samples.unique_information._leave_one_out import (
    information_by_group,
    leave_one_out,
    leave_one_out_changes,
)
from natwise.samples.unique_information._retraining import linearization_check
from natwise.samples.unique_information._smoothing import Smoothing

__all__ = [
    "SampleInformation",
    "Smoothing",
    "empirical_ntk",
    "information_by_group",
    "leave_one_out",
    "leave_one_out_changes",
    "linearization_check",
    "read_ntk_tiles",
    "write_ntk_tiles",
]
