"""Functional and weight information of every sample, without retraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from natwise.core.labels import check_labels
from natwise.core.validation import check_array
from natwise.result import Result
from natwise.samples.unique_information._problem import (
    Problem,
    build_problem,
    check_validation_kernel,
    training_rule,
)
from natwise.samples.unique_information._smoothing import Smoothing, WeightInformation

KIND = "samples.unique_information"


def leave_one_out(
    ntk: Any,
    ntk_val: Any,
    init_preds: Any,
    val_init_preds: Any,
    targets: Any,
    *,
    t: float | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    dynamics: str = "gd",
    loss_reduction: str = "mean",
    smoothing: str | Smoothing = "isotropic",
    groups: Any = None,
) -> Result:
    """Score every sample by the information that it alone puts into the predictions and into the weights.

    The network is linearised and trained on ``1/2 ||f(x) - y||^2`` with full batches and decay toward its start.
    All leave-one-out solutions follow from one eigendecomposition of the kernel, to a relative error of about 1e-11.

    Parameters
    ----------
    ntk, ntk_val : array (n * k, n * k), (m * k, n * k)
        Tangent kernel of the training samples, sample-major, and between validation inputs and them (`empirical_ntk`).
        An (n, n) and (m, n) kernel with k > 1 outputs means that the outputs share it and do not interact.
    init_preds, val_init_preds : array (n, k) or (n,), (m, k) or (m,)
        Outputs of the network at initialisation.
    targets : array (n, k) or (n,)
        Float targets: 0/1 for two classes with one output, one-hot rows for more.
    t : int, float or None
        Number of gradient steps (flow: time, in units of `lr`). None: converged.
    lr, weight_decay : float
        Of the loss that `loss_reduction` names. `lr` is needed unless `t` is None.
    dynamics : {"gd", "flow"}
        Gradient descent (exact for every stable learning rate) or gradient flow.
    loss_reduction : {"mean", "sum", "official"}
        ``mean``: training minimises ``(1/n) sum_i loss_i + weight_decay/2 ||w - w_0||^2``, on n - 1 samples after a
        removal. ``sum``: the sum of the losses, `lr` and `weight_decay` unchanged by the removal. Both equal
        retraining. ``official``: settings as for ``mean``, but the removal rescales only the learning rate, as the
        original code does (no retraining does that when ``weight_decay > 0``).
    smoothing : str or Smoothing
        Noise that turns weight changes into nats: see `Smoothing`. Concerns ``weight_information``.
    groups : array (n,), optional
        Labels of groups that are left out together; scores are then per group, in the order of `numpy.unique`.

    Returns
    -------
    Result
        Arrays ``functional_information`` and ``weight_information`` (n,) in nats at sigma = 1 (Eqs. 1 and 2 of the
        paper, with their 1/2, which the original code drops); ``predictions`` (n, k), ``val_predictions`` (m, k) of the
        network trained on all samples; ``left_out_predictions`` (n, k) for each sample by the network trained without
        it. Scalars ``largest_eigenvalue``, ``rank``, ``largest_stable_lr``, ``gradient_covariance_trace`` (sgd).

    Raises
    ------
    ValueError
        If the learning rate diverges (the largest stable one is said), class labels come where one-hot targets are
        needed, or kernels are not positive semi-definite, do not match, or exceed the memory. A singular kernel with
        ``t=None`` and no weight decay gives a `UserWarning`: the pseudo-inverse is used.
    """
    how = Smoothing.of(smoothing, lr)
    rule = training_rule(t, lr, weight_decay, dynamics, loss_reduction)
    problem = build_problem(ntk, init_preds, targets, rule, groups)
    result = _measure(problem, how, ntk_val, val_init_preds)
    params = {"t": t, "lr": lr, "weight_decay": weight_decay, "dynamics": dynamics, "loss_reduction": loss_reduction}
    return dataclasses.replace(result, params={**params, **result.params, "grouped": groups is not None})


def leave_one_out_changes(
    ntk: Any,
    ntk_val: Any,
    init_preds: Any,
    targets: Any,
    *,
    t: float | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    dynamics: str = "gd",
    loss_reduction: str = "mean",
    groups: Any = None,
) -> Result:
    """Return how each left-out sample (or group) would have changed predictions and weights, as vectors.

    Parameters
    ----------
    ntk, ntk_val, init_preds, targets, t, lr, weight_decay, dynamics, loss_reduction, groups
        As for `leave_one_out`.

    Returns
    -------
    Result
        Arrays ``prediction_changes`` (g, m, k), the predictions without the group minus those with it, and
        ``dual_changes`` (g, n, k): the weights change by ``J^T`` times a flattened row, with J (n * k, d) the Jacobian
        in sample-major order.
    """
    rule = training_rule(t, lr, weight_decay, dynamics, loss_reduction)
    problem = build_problem(ntk, init_preds, targets, rule, groups)
    k = problem.n_outputs
    kernel_val = check_array("ntk_val", ntk_val, shape=("n_val_rows", len(problem.kernel)), dtype=np.float64)
    n_val = len(kernel_val) * problem.n_samples // len(problem.kernel)
    check_validation_kernel(kernel_val, np.zeros((n_val, k)), problem)
    dual = np.empty((len(problem.members), problem.n_samples, k))
    predictions = np.empty((len(problem.members), n_val, k))
    for positions, coefficients in problem.changes():
        change = problem.spectrum.vectors @ coefficients
        dual[positions] = _by_group(change, problem.n_samples, k)
        predictions[positions] = _by_group(kernel_val @ change, n_val, k)
    arrays = {"prediction_changes": predictions, "dual_changes": dual}
    return Result(f"{KIND}/changes", arrays=arrays, rows=problem.names)


def information_by_group(scores: Any, groups: Any) -> Result:
    """Compare sources, classes or sub-classes by the mean information of their samples.

    Parameters
    ----------
    scores : array (n,)
        Information of every sample, in nats.
    groups : array (n,)
        The source or class of every sample: text, integers or booleans.

    Returns
    -------
    Result
        One row per group: ``mean``, its ``standard_error`` (NaN for a group of one), ``count``, and ``ratio`` of the
        mean to the overall mean. Means, not sums: the information of a group is not the sum over its samples (they may
        be redundant or synergistic); for that, pass `groups` to `leave_one_out`.
    """
    scores = check_array("scores", scores, shape=("n_samples",), dtype=np.float64)
    if not len(scores):
        raise ValueError("scores must hold at least one sample, got shape (0,)")
    names, index = np.unique(check_labels("groups", groups, len(scores), "sample", "biufU"), return_inverse=True)
    parts: Sequence[np.ndarray] = [scores[index == i] for i in range(len(names))]
    mean = np.array([part.mean() for part in parts])
    count = np.array([len(part) for part in parts])
    spread = np.array([part.std(ddof=1) if len(part) > 1 else np.nan for part in parts])
    total = scores.mean()
    arrays = {
        "mean": mean,
        "standard_error": spread / np.sqrt(count),
        "count": count,
        "ratio": np.divide(mean, total, out=np.ones_like(mean), where=total > 0),
    }
    return Result(f"{KIND}/groups", arrays=arrays, scalars={"mean": total}, rows=names.tolist())


def _measure(problem: Problem, how: Smoothing, ntk_val: Any, val_init_preds: Any) -> Result:
    kernel_val, initial_val = check_validation_kernel(ntk_val, val_init_preds, problem)
    if how.kind == "sgd" and problem.residual.shape[1] > 1:
        raise ValueError(
            "smoothing='sgd' needs the joint kernel of all outputs, shape "
            f"({problem.residual.size}, {problem.residual.size}), got the shared kernel {problem.kernel.shape}"
        )
    arrays, scalars = _scores(problem, how, kernel_val)
    arrays |= _predictions(problem, kernel_val, initial_val)
    arrays["left_out_predictions"] = arrays["predictions"] + arrays.pop("own_change")
    return Result(KIND, arrays=arrays, scalars=scalars, rows=problem.names, params={"smoothing": vars(how)})


def _scores(problem: Problem, how: Smoothing, kernel_val: np.ndarray) -> tuple[dict, dict]:
    """Return the information of every group, the change (n, k) of its own predictions, and the scalars."""
    spectrum = problem.spectrum
    n_val = len(kernel_val) * problem.n_samples // len(problem.kernel)
    move = _mover(problem, kernel_val)
    gradients = _gradients(problem) if how.kind == "sgd" else np.empty((0, 0))
    measure = WeightInformation(how, spectrum, problem.dynamics, gradients)
    functional, weight = np.zeros(len(problem.members)), np.zeros(len(problem.members))
    own_change = np.empty_like(problem.residual)
    for positions, coefficients in problem.changes():
        for output, channel in enumerate(coefficients):
            functional[positions] += (move(channel) ** 2).sum(axis=0) / (2 * n_val)
            if how.kind != "fisher":
                weight[positions] += measure(channel)
            for position, change in zip(positions, (spectrum.values[:, None] * channel).T, strict=True):
                rows = problem.rows(position)
                own_change[rows, output] = spectrum.vectors[rows] @ change
    scalars = {
        "largest_eigenvalue": spectrum.largest,
        "rank": spectrum.rank,
        "largest_stable_lr": problem.rule.largest_stable_lr(spectrum.largest, problem.n_samples),
    }
    if how.kind == "fisher":
        weight = functional / how.sigma**2
    if measure.gradient_covariance is not None:
        scalars["gradient_covariance_trace"] = float(np.trace(measure.gradient_covariance))
    arrays = {
        "functional_information": functional,
        "weight_information": weight,
        "own_change": own_change.reshape(problem.n_samples, -1),
    }
    return arrays, scalars


def _mover(problem: Problem, kernel_val: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return how changes in the eigenbasis become changes of the validation predictions, up to a rotation of these."""
    if np.array_equal(kernel_val, problem.kernel):  # the training inputs themselves
        return lambda coefficients: problem.spectrum.values[:, None] * coefficients
    rotated = kernel_val @ problem.spectrum.vectors
    return lambda coefficients: rotated @ coefficients


def _gradients(problem: Problem) -> np.ndarray:
    """Return the per-sample gradients of the squared loss at the linearised solution, in the basis V: (n, n_rows)."""
    spectrum = problem.spectrum
    alpha = spectrum.solution(problem.dynamics, problem.residual)
    error = problem.residual - spectrum.vectors @ (spectrum.values[:, None] * alpha)
    rows = spectrum.vectors * error * np.sqrt(spectrum.values)
    return rows.reshape(problem.n_samples, problem.n_outputs, -1).sum(axis=1)


def _predictions(problem: Problem, kernel_val: np.ndarray, initial_val: np.ndarray) -> dict[str, np.ndarray]:
    """Return the predictions (n, k) and (m, k) of the network trained on all samples."""
    spectrum = problem.spectrum
    alpha = spectrum.solution(problem.dynamics, problem.residual)
    moved = spectrum.vectors @ (spectrum.values[:, None] * alpha)
    moved_val = kernel_val @ (spectrum.vectors @ alpha)
    return {
        "predictions": problem.initial - moved.reshape(problem.initial.shape),
        "val_predictions": initial_val - moved_val.reshape(initial_val.shape),
    }


def _by_group(columns: np.ndarray, n: int, k: int) -> np.ndarray:
    """Turn (n_channels, n_rows, g) into (g, n, k)."""
    return columns.transpose(2, 1, 0).reshape(columns.shape[2], n, k)
