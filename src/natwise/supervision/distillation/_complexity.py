"""Supervision complexity: how hard targets are for a kernel, and what that says about the student's error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from natwise.core.validation import check_array, check_flag, check_option, check_real
from natwise.result import Result, provenance
from natwise.supervision.distillation._kernel import FactoredKernel, check_kernel

UNIONS = ("stratified", "paper")
LARGEST = 1e100  # squares of larger numbers overflow


def supervision_complexity(
    kernel: Any, targets: Any, init_preds: Any = None, adjusted: bool = True, jitter: float = 0.0
) -> float | np.ndarray:
    """Say how hard it is for a student with this kernel to fit these targets.

    Parameters
    ----------
    kernel : array (n * k, n * k) or FactoredKernel
        The student's tangent kernel, sample-major (`natwise.core.linearized.empirical_ntk` in float64), of its logits:
        that of softmax outputs is singular. A `FactoredKernel` has its factorisation, and its jitter, already.
    targets : array (n,), (n, k) or (m, n, k)
        Labels (one-hot, or +-1), teacher probabilities or logits; m of them share one factorisation.
    init_preds : array (n,) or (n, k), optional
        The student's predictions at initialisation, in the space of the targets; default zero.
    adjusted : bool
        Return ``sqrt((v - f0)^T K^-1 (v - f0) Tr K) / n``, which does not depend on the scale of the kernel; else
        ``(v - f0)^T K^-1 (v - f0)``, the squared norm of the smallest function that interpolates.
    jitter : float
        Added to the diagonal, as a fraction of the mean eigenvalue. It changes the number; 0 is exact.

    Returns
    -------
    float or ndarray (m,)
        Infinite where the kernel is singular and the targets are not in its range, whatever the jitter.

    Raises
    ------
    TypeError, ValueError
        For a kernel that `FactoredKernel` refuses, or shapes that do not fit.

    Notes
    -----
    Harutyunyan et al., ICLR 2023. n counts samples, not outputs. No original code exists; the adjusted form was
    recalled, not read, and gives the published figure's orderings.

    Examples
    --------
    >>> import numpy as np
    >>> supervision_complexity(np.eye(4), [1.0, -1.0, 1.0, -1.0])
    1.0
    >>> supervision_complexity(4 * np.eye(4), [1.0, -1.0, 1.0, -1.0], adjusted=False)
    1.0
    """
    if isinstance(kernel, FactoredKernel):
        if jitter:
            raise ValueError(f"jitter must be 0 with a FactoredKernel, which has its own, got {jitter}")
        factored = kernel
    else:
        factored = FactoredKernel(kernel, jitter)
    values, n, single = _residuals(factored.size, targets, init_preds)
    complexity = factored.quadratic(values)
    if check_flag("adjusted", adjusted):
        complexity = np.sqrt(complexity * factored.trace) / n
    return float(complexity[0]) if single else complexity


def distillation_bound(
    kernel: Any,
    targets: Any,
    predictions: Any,
    gamma: float,
    delta: float = 0.05,
    *,
    union: str = "stratified",
    kappa: float | None = None,
) -> Result:
    """Bound how often a kernel student disagrees with its supervision on new inputs, term by term.

    The student minimises a non-negative loss that vanishes at the targets, plus any multiple of its squared norm. With
    probability 1 - delta over n independent inputs, the share of new inputs on which its class differs from the
    teacher's is at most the sum of the terms. To bound its error against true labels, add the teacher's error.

    Parameters
    ----------
    kernel : array (n * k, n * k) or FactoredKernel
        Sample-major; fixed before the data were seen.
    targets : array (n,) or (n, k)
        Real targets whose sign is the class; or k > 1 scores whose largest is the class.
    predictions : array, shape of targets
        The student's outputs on the same inputs.
    gamma : float
        Margin, > 0, chosen before the data were seen.
    delta : float
        Chance that the bound fails, in (0, 1).
    union : {"stratified", "paper"}
        How the bound holds for all radii at once: weight delta / (R (R + 1)) on radius R, always valid; or M0
        equally weighted radii, which needs Tr K = n kappa.
    kappa : float, optional
        Largest k(x, x) over all inputs, for ``paper``; default the largest on the diagonal.

    Returns
    -------
    Result
        Scalars ``bound`` (the sum, often above 1: then it says nothing), ``bound_clipped``, ``margin_term``,
        ``complexity_term``, ``confidence_term``, both ``confidence_stratified`` and ``confidence_paper``,
        ``complexity`` (raw), ``radius``, ``paper_radii`` (M0), ``trace``, ``kappa``, ``effective_rank``, ``jitter``.
        Warnings say when the predictions cannot be of such a student, and what is uncertain.

    Raises
    ------
    TypeError, ValueError
        For a kernel that `FactoredKernel` refuses, shapes that do not fit, a zero target without a sign, gamma <= 0, or
        delta outside (0, 1).

    Notes
    -----
    Ramp loss and factor 2 for one output; for k outputs the share of margins up to gamma and factor 4 k, recalled from
    the paper and not checked against it.
    """
    gamma = check_real("gamma", gamma, minimum=0.0, exclusive=True)
    delta = check_real("delta", delta, minimum=0.0, maximum=1.0, exclusive=True)
    check_option("union", union, UNIONS)
    with provenance() as record:
        factored = kernel if isinstance(kernel, FactoredKernel) else FactoredKernel(kernel)
        target_rows, n, _ = _residuals(factored.size, _not_stacked("targets", targets), None)
        prediction_rows, _, _ = _residuals(factored.size, _like(predictions, targets), None)
        kappa = _kappa(factored, kappa)
        scalars = _terms(factored, target_rows, prediction_rows, n, gamma, delta, kappa)
        scalars["confidence_term"] = scalars[f"confidence_{union}"]
        scalars["bound"] = sum(scalars[f"{name}_term"] for name in ("margin", "complexity", "confidence"))
        scalars["bound_clipped"] = min(scalars["bound"], 1.0)
        warnings = _cautions(factored, scalars, prediction_rows, n, union)
    params = {"gamma": gamma, "delta": delta, "union": union, "n": n, "n_outputs": factored.size // n}
    return Result(
        "supervision.distillation/bound", scalars=scalars, params=params, provenance=record, warnings=warnings
    )


def kernel_alignment(a: Any, b: Any, *, centered: bool = False) -> float:
    """Compare two kernels on the same inputs: the cosine of the angle between them, in [0, 1] for kernels.

    Parameters
    ----------
    a, b : array (n, n)
        Symmetric kernels of the same size, such as the tangent kernels of student and teacher.
    centered : bool
        Centre the features of both first (centred kernel alignment, CKA), which ignores what all inputs share. Average
        kernels of several outputs over these before (``empirical_ntk(..., outputs="mean")``).

    Raises
    ------
    TypeError, ValueError
        If a kernel is not numeric, finite, square and symmetric, is zero (after centring), or the sizes differ.
    """
    first, second = (check_kernel(name, value).astype(np.float64) for name, value in (("a", a), ("b", b)))
    if first.shape != second.shape:
        raise ValueError(f"a and b must have the same size, got {first.shape} and {second.shape}")
    norms = [float(np.linalg.norm(kernel)) for kernel in (first, second)]
    if check_flag("centered", centered):
        first, second = _centre(first), _centre(second)
    for name, kernel, norm in (("a", first, norms[0]), ("b", second, norms[1])):
        if np.linalg.norm(kernel) <= 1e-14 * norm * len(kernel):
            raise ValueError(f"{name} must be non-zero{' after centring' if centered else ''}")
    return float(np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def fidelity(a: Any, b: Any) -> float:
    """Return the share of samples on which two models choose the same class.

    Parameters
    ----------
    a, b : array (n,) of class numbers, or (n, k) of scores
        Scores may be logits or probabilities; the largest counts.

    Raises
    ------
    TypeError, ValueError
        For unequal lengths or numbers of classes, no samples, values that are not finite, or class numbers that are
        not whole.
    """
    arrays = [check_array(name, value) for name, value in (("a", a), ("b", b))]
    if all(array.ndim == 2 for array in arrays) and arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise ValueError(f"a and b must have the same number of classes, got shapes {[x.shape for x in arrays]}")
    first, second = (_classes(name, array) for name, array in zip("ab", arrays, strict=True))
    if len(first) != len(second) or not len(first):
        raise ValueError(f"a and b must have the same length of at least 1, got {len(first)} and {len(second)}")
    return float(np.mean(first == second))


def soft_targets(logits: Any, temperature: float) -> np.ndarray:
    """Return the class probabilities of logits (..., k) at a temperature, in float64.

    Parameters
    ----------
    logits : array (..., k)
        At least two classes; what already are probabilities is refused.
    temperature : float
        tau > 0; large values give nearly uniform targets.
    """
    temperature = check_real("temperature", temperature, minimum=0.0, exclusive=True)
    values = check_array("logits", logits).astype(np.float64)
    if values.ndim < 1 or values.shape[-1] < 2 or not values.size:
        raise ValueError(f"logits must have shape (..., k >= 2), got {values.shape}")
    if (values >= 0).all() and np.abs(values.sum(axis=-1) - 1).max() < 1e-6:
        raise ValueError("logits must not be probabilities, got rows that are non-negative and sum to 1")
    powers = np.exp((values - values.max(axis=-1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def _residuals(size: int, targets: Any, init_preds: Any) -> tuple[np.ndarray, int, bool]:
    """Return targets less initial predictions as rows (m, size), the number of samples, and whether m was left out."""
    values = check_array("targets", targets, dtype=np.float64)
    if not 1 <= values.ndim <= 3:
        raise ValueError(f"targets must have shape (n,), (n, k) or (m, n, k), got {values.shape}")
    sample_shape = values.shape[-2:] if values.ndim > 1 else values.shape
    if math.prod(sample_shape) != size or not values.size:
        hint = "; for one kernel shared by k outputs pass np.kron(kernel, np.eye(k))" if sample_shape[0] == size else ""
        raise ValueError(
            f"targets must have n * k = {size} entries for a kernel of {size} rows, got shape {values.shape}{hint}"
        )
    if init_preds is not None:
        values = values - check_array("init_preds", init_preds, shape=sample_shape, dtype=np.float64)
    if abs(values).max() > LARGEST:
        raise ValueError(f"targets and init_preds must be within {LARGEST:g} of each other, got {abs(values).max():g}")
    return values.reshape(-1, size), sample_shape[0], values.ndim < 3


def _not_stacked(name: str, value: Any) -> np.ndarray:
    array = check_array(name, value, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (n,) or (n, k), got {array.shape}")
    return array


def _like(predictions: Any, targets: Any) -> np.ndarray:
    """Return predictions in the shape of the targets, (n,) or (n, k)."""
    return check_array("predictions", predictions, shape=np.shape(targets), dtype=np.float64)


def _kappa(factored: FactoredKernel, kappa: float | None) -> float:
    if kappa is None:
        return factored.largest_diagonal
    kappa = check_real("kappa", kappa, minimum=0.0, exclusive=True)
    if kappa < factored.largest_diagonal * (1 - 1e-9):
        raise ValueError(f"kappa must be >= the largest diagonal entry {factored.largest_diagonal:.6g}, got {kappa}")
    return kappa


def _terms(
    factored: FactoredKernel,
    targets: np.ndarray,
    predictions: np.ndarray,
    n: int,
    gamma: float,
    delta: float,
    kappa: float,
) -> dict[str, float]:
    """Return the terms of the bound, and what they are made of, for targets and predictions (1, n * k)."""
    k = factored.size // n
    complexity = float(factored.quadratic(targets)[0])
    factor = 2 if k == 1 else 4 * k
    radius = max(1.0, math.ceil(math.sqrt(complexity))) if math.isfinite(complexity) else math.inf
    radii = math.ceil(gamma * math.sqrt(n) / (factor * math.sqrt(kappa)))
    return {
        "margin_term": _margin_term(targets.reshape(n, k), predictions.reshape(n, k), gamma),
        "complexity_term": factor * (math.sqrt(complexity) + 1) * math.sqrt(factored.trace) / (gamma * n),
        "confidence_stratified": 3 * math.sqrt(math.log(2 * radius * (radius + 1) / delta) / (2 * n)),
        "confidence_paper": 3 * math.sqrt(math.log(2 * radii / delta) / (2 * n)),
        "complexity": complexity,
        "radius": radius,
        "paper_radii": radii,
        "trace": factored.trace,
        "kappa": kappa,
        "effective_rank": factored.rank,
        "jitter": factored.jitter,
    }


def _margin_term(targets: np.ndarray, predictions: np.ndarray, gamma: float) -> float:
    """Return the mean ramp loss for one output, the share of margins up to gamma for several."""
    if targets.shape[1] == 1:
        if not targets.all():
            raise ValueError("targets must have a sign, got a zero")
        return float(np.clip(1 - np.sign(targets) * predictions / gamma, 0, 1).mean())
    chosen = targets.argmax(axis=1)[:, None]
    own = np.take_along_axis(predictions, chosen, axis=1)[:, 0]
    others = predictions.copy()
    np.put_along_axis(others, chosen, -np.inf, axis=1)
    return float(np.mean(own - others.max(axis=1) <= gamma))


def _cautions(
    factored: FactoredKernel, scalars: dict[str, float], predictions: np.ndarray, n: int, union: str
) -> list[str]:
    """Say what to keep in mind about a bound for predictions (1, n * k)."""
    cautions = []
    if factored.quadratic(predictions)[0] > scalars["complexity"] * (1 + 1e-6):
        cautions.append("no function of norm up to that of the targets takes these predictions: not covered")
    if factored.size > n:
        cautions.append("the constants for several outputs were recalled, not checked against the paper")
    if union == "paper" and scalars["trace"] < n * scalars["kappa"] * (1 - 1e-9):
        cautions.append("the paper's union needs a kernel of constant diagonal; prefer union='stratified'")
    if scalars["bound"] >= 1:
        cautions.append("the bound is 1 or more: it says nothing at this n; read the terms")
    return cautions


def _centre(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel (n, n) of centred features."""
    means = kernel.mean(axis=0)
    return kernel - means - means[:, None] + means.mean()


def _classes(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,) or (n, k >= 2), got {array.shape}")
    return check_array(name, array, dtype=np.int64)
