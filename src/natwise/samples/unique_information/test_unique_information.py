"""Leave-one-out information against reference numbers, brute force and properties.

golden.npz: brute-force leave-one-out in float64 of a linearised tanh network 4-6-k (k = 1, 3; n = 16, m = 7): gradient
descent by an explicit loop over steps, gradient flow by an ODE solver, the limit by dense solves, under three
conventions of what stays fixed when a sample is removed. `weight_sq` and `fsi_sq` are squared norms: twice the nats.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from natwise.core.io import load_npz
from natwise.core.linearized import empirical_ntk
from natwise.samples.unique_information import (
    leave_one_out,
    leave_one_out_changes,
)

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))


def problem(k):
    """Kernels, initial predictions and targets of the reference problem, through our own kernel."""
    part = {key.split("/", 1)[1]: value for key, value in GOLDEN.items() if key.startswith(f"k{k}/")}
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, k)).double()
    for layer, parameter in zip((0, 0, 2, 2), ("weight", "bias", "weight", "bias"), strict=True):
        name = {0: "1", 2: "2"}[layer]
        value = torch.from_numpy(part[("W" if parameter == "weight" else "b") + name])
        getattr(net[layer], parameter).data.copy_(value)
    ntk, ntk_val = empirical_ntk(net, part["X"]), empirical_ntk(net, part["Xv"], part["X"])
    return part, json.loads(str(part["meta"])), (ntk, ntk_val, part["f0"], part["f0v"], part["Y"])


def settings(convention, meta, weight_decay):
    """The reference gives step size and decay of the sum loss; `mean` and `official` take those of the mean loss."""
    n = 1 if convention == "sum" else meta["n"]
    return {"lr": meta["eta"] * n, "weight_decay": weight_decay / n, "loss_reduction": convention}


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("convention", ["sum", "mean", "official"])
@pytest.mark.parametrize("solver", ["gd", "flow"])
def test_reference_numbers(k, convention, solver):
    part, meta, inputs = problem(k)
    for decay, t in itertools.product((0.0, 0.3), (10, 200, None)):
        if (t, solver) == (None, "flow"):
            continue
        key = f"{convention}/inf/lam{decay}" if t is None else f"{convention}/{solver}/lam{decay}/t{t}"
        how = settings(convention, meta, decay)
        result = leave_one_out(*inputs, t=t, dynamics=solver, **how)
        tolerance = 1e-8 if solver == "gd" else 1e-7
        assert relative(result.arrays["weight_information"], part[f"{key}/weight_sq"] / 2) < tolerance
        assert relative(result.arrays["functional_information"], part[f"{key}/fsi_sq"] / 2) < tolerance
        if f"{key}/dF" in part:
            ntk, ntk_val, init, _, targets = inputs
            changes = leave_one_out_changes(ntk, ntk_val, init, targets, t=t, dynamics=solver, **how)
            assert relative(changes.arrays["prediction_changes"], part[f"{key}/dF"]) < tolerance
