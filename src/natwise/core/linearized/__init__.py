"""Networks linearised at their initialisation: tangent kernel, training dynamics, leave-one-out."""

from natwise.core.linearized._dynamics import Dynamics, TrainingRule
from natwise.core.linearized._layers import flat_outputs
from natwise.core.linearized._leave_out import LeaveOut, Spectrum, largest_without
from natwise.core.linearized._memory import check_fits
from natwise.core.linearized._ntk import as_inputs, check_evaluation_mode, empirical_ntk
from natwise.core.linearized._tiles import read_ntk_tiles, write_ntk_tiles

__all__ = [
    "Dynamics",
    "LeaveOut",
    "Spectrum",
    "TrainingRule",
    "as_inputs",
    "check_evaluation_mode",
    "check_fits",
    "empirical_ntk",
    "flat_outputs",
    "largest_without",
    "read_ntk_tiles",
    "write_ntk_tiles",
]
