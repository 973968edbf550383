"""Bounds on the generalisation gap of any training recipe from what its predictions say about the training set."""

from ._batched import BatchedTrainer
from ._bounds import (
    binary_kl_bound,
    ensemble_bound,
    fast_rate_bound,
    fcmi_bound,
    fcmi_squared_bound,
    interpolation_bound,
    kl_inverse,
    linear_bound,
    pair_squared_bound,
    single_loss_bound,
    variance_bound,
)
from ._divergences import f_information, f_information_bounds
from ._experiment import run_supersample_experiment
from ._langevin import SGLD
from ._runs import SupersampleRuns, sample_supersample
from ._theory import (
    mcallester_bound,
    pac_bayes_kl_bound,
    sgld_bound,
    stability_bound,
    stability_squared_bound,
    vc_bound,
    vc_information,
)

__all__ = [
    "SGLD",
    "BatchedTrainer",
    "SupersampleRuns",
    "binary_kl_bound",
    "ensemble_bound",
    "f_information",
    "f_information_bounds",
    "fast_rate_bound",
    "fcmi_bound",
    "fcmi_squared_bound",
    "interpolation_bound",
    "kl_inverse",
    "linear_bound",
    "mcallester_bound",
    "pac_bayes_kl_bound",
    "pair_squared_bound",
    "run_supersample_experiment",
    "sample_supersample",
    "sgld_bound",
    "single_loss_bound",
    "stability_bound",
    "stability_squared_bound",
    "variance_bound",
    "vc_bound",
    "vc_information",
]
