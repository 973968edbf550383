"""Is the linearised network a faithful picture? Retrain without a few samples and compare."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from natwise.core.linearized import as_inputs, check_evaluation_mode, empirical_ntk
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_option, check_real
from natwise.result import Result, provenance
from natwise.samples.unique_information._estimator import outputs_of
from natwise.samples.unique_information._leave_one_out import KIND, leave_one_out
from natwise.samples.unique_information._problem import check_targets

POOR = 0.5


def linearization_check(
    module: nn.Module,
    X: Any,
    y: Any,
    X_val: Any,
    *,
    t: int,
    lr: float,
    weight_decay: float = 0.0,
    loss_reduction: str = "mean",
    n_removals: int = 32,
    random_state: RandomState = None,
) -> Result:
    """Retrain the real network without each of a few random samples and correlate with the linearised scores.

    Parameters
    ----------
    module : torch.nn.Module
        Network at its initialisation, in evaluation mode; it is not changed.
    X, y, X_val : array or tensor
        Training inputs (n, ...), float targets (n, k) or (n,), inputs at which predictions are compared.
    t, lr, weight_decay, loss_reduction
        Full-batch gradient descent as in `leave_one_out`; ``loss_reduction`` is ``"mean"`` or ``"sum"``.
    n_removals : int
        How many samples are left out, one after the other; each costs a training of t steps.
    random_state : int, Generator or None
        Chooses the samples.

    Returns
    -------
    Result
        One row per left-out sample: ``functional_information`` and ``weight_information`` of the linearised network,
        ``retrained_functional_information`` and ``retrained_weight_information`` by retraining. Scalars
        ``pearson_functional``, ``pearson_weight``, ``spearman_functional``, ``spearman_weight``.

    Warns
    -----
    UserWarning
        When the correlation of the functional information is below 0.5: narrow networks trained from scratch leave the
        linear regime (the paper reports .03 for its small convolutional network), and their scores mean little.
    """
    check_evaluation_mode(module)
    t = check_integer("t", t, minimum=1)
    lr = check_real("lr", lr, minimum=0.0, exclusive=True)
    weight_decay = check_real("weight_decay", weight_decay, minimum=0.0)
    check_option("loss_reduction", loss_reduction, ("mean", "sum"))
    initial, initial_val = outputs_of(module, X), outputs_of(module, X_val)
    targets, initial = check_targets(y, initial, "y")
    n_removals = check_integer("n_removals", n_removals, minimum=3, maximum=len(targets))
    chosen = Streams.of(random_state).numpy("removals").choice(len(targets), n_removals, replace=False)
    training: dict[str, Any] = {"t": t, "lr": lr, "weight_decay": weight_decay, "loss_reduction": loss_reduction}
    with provenance() as record:
        kernel, kernel_val = empirical_ntk(module, X), empirical_ntk(module, X_val, X)
        scores = leave_one_out(kernel, kernel_val, initial, initial_val, targets, **training)
        names = ("functional_information", "weight_information")
        arrays = {name: scores.arrays[name][chosen] for name in names}
        arrays |= _retrained(_Retraining(module, X, targets, X_val, **training), chosen)
    scalars = _correlations(arrays)
    if scalars["pearson_functional"] < POOR:
        warnings.warn(
            f"the linearised network predicts real retraining poorly: Pearson correlation "
            f"{scalars['pearson_functional']:.2f} over {n_removals} removals; use a wider or a pretrained network",
            UserWarning,
            stacklevel=2,
        )
    params = {**training, "n_removals": n_removals}
    return Result(f"{KIND}/linearization", arrays, scalars, chosen.tolist(), params, record)


class _Retraining:
    """Full-batch gradient descent on a copy of the module, from its present weights."""

    def __init__(
        self,
        module: nn.Module,
        X: Any,
        targets: np.ndarray,
        X_val: Any,
        *,
        t: int,
        lr: float,
        weight_decay: float,
        loss_reduction: str,
    ):
        parameters = dict(module.named_parameters())
        self.module = module
        self.inputs = as_inputs("X", X, parameters)
        self.inputs_val = as_inputs("X_val", X_val, parameters)
        self.targets = as_inputs("y", targets, parameters)
        self.t, self.lr, self.weight_decay = t, lr, weight_decay
        self.mean = loss_reduction == "mean"

    def train(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trained weights as one vector and the predictions for the validation inputs."""
        model = copy.deepcopy(self.module)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start = [weight.detach().clone() for weight in weights]
        inputs, targets = self.inputs[kept], self.targets[kept]
        for _ in range(self.t):
            error = model(inputs).reshape(len(inputs), -1) - targets
            loss = error.square().sum() / 2 / (len(inputs) if self.mean else 1)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, origin, gradient in zip(weights, start, gradients, strict=True):
                    weight.sub_(self.lr * (gradient + self.weight_decay * (weight - origin)))
        with torch.no_grad():
            predictions = model(self.inputs_val).reshape(len(self.inputs_val), -1)
        return torch.cat([weight.detach().flatten() for weight in weights]).double(), predictions.double()


def _retrained(retraining: _Retraining, chosen: np.ndarray) -> dict[str, np.ndarray]:
    everything = torch.arange(len(retraining.inputs), device=retraining.inputs.device)
    weights, predictions = retraining.train(everything)
    functional, weight = [], []
    for index in chosen:
        weights_without, predictions_without = retraining.train(everything[everything != int(index)])
        change = (predictions_without - predictions).square().sum(dim=1).mean()
        functional.append(float(change) / 2)
        weight.append(float((weights_without - weights).square().sum()) / 2)
    return {
        "retrained_functional_information": np.array(functional),
        "retrained_weight_information": np.array(weight),
    }


def _correlations(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    scalars = {}
    for kind in ("functional", "weight"):
        ours, real = arrays[f"{kind}_information"], arrays[f"retrained_{kind}_information"]
        constant = np.ptp(ours) == 0 or np.ptp(real) == 0
        scalars[f"pearson_{kind}"] = np.nan if constant else float(np.corrcoef(ours, real)[0, 1])
        scalars[f"spearman_{kind}"] = np.nan if constant else float(spearmanr(ours, real)[0])
    return scalars
