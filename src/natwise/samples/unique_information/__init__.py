"""Unique information of samples: what each sample alone puts into weights and predictions, without retraining."""

from natwise.samples.unique_information._leave_one_out import (
    information_by_group,
    leave_one_out,
    leave_one_out_changes,
)
from natwise.samples.unique_information._smoothing import Smoothing

__all__ = ["Smoothing", "information_by_group", "leave_one_out", "leave_one_out_changes"]
