from ._benchmark import MimicBenchmark as MimicBenchmark
from ._rules import CleaningRules as CleaningRules, CohortRules as CohortRules, VariableMap as VariableMap
