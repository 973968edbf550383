from .linear_corex import (
    LinearCorEx as LinearCorEx,
    corex_moments as corex_moments,
    select_n_components as select_n_components,
)
from .minsyn import MinSyn as MinSyn, synergy as synergy
from .tcorex import TCorEx as TCorEx, make_periods as make_periods, select_smoothness as select_smoothness
