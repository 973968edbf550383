from .data_requirements import (
    ClassicalCurve as ClassicalCurve,
    CurveBank as CurveBank,
    DataRequirementPlanner as DataRequirementPlanner,
    ExtrapolationWarning as ExtrapolationWarning,
    MetaPiecewisePowerLaw as MetaPiecewisePowerLaw,
    PiecewisePowerLaw as PiecewisePowerLaw,
    PowerLaw as PowerLaw,
    allocate_budget as allocate_budget,
    measure_learning_curve as measure_learning_curve,
)
