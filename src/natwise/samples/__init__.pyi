from .data_requirements import (
    ClassicalCurve as ClassicalCurve,
    CurveBank as CurveBank,
    DataRequirementPlanner as DataRequirementPlanner,
    MetaPiecewisePowerLaw as MetaPiecewisePowerLaw,
    PiecewisePowerLaw as PiecewisePowerLaw,
    PowerLaw as PowerLaw,
    allocate_budget as allocate_budget,
    measure_learning_curve as measure_learning_curve,
)
from .unique_information import (
    SampleInformation as SampleInformation,
    Smoothing as Smoothing,
    empirical_ntk as empirical_ntk,
    information_by_group as information_by_group,
    leave_one_out as leave_one_out,
    leave_one_out_changes as leave_one_out_changes,
    linearization_check as linearization_check,
    read_ntk_tiles as read_ntk_tiles,
    write_ntk_tiles as write_ntk_tiles,
)
