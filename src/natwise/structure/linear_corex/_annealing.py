"""From random weights to a good optimum: the noise in the correlation matrix is taken away in stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from natwise.core.progress import Report
from natwise.structure.linear_corex._ascent import Ascent

ANNEALING = tuple(0.6**k for k in range(1, 7))
ANNEALING_SLACK = 10.0  # the groups form in the first stage; those between it and the last need less care
START = 0.1  # correlation of a fresh factor with its noisy copy: u = 0.01
COMPRESSION = 2  # rows per column from which the data are replaced by their R factor


@dataclass
class Climb:
    """Where the ascent ended: weights (m, p), the objective after each iteration, and whether it converged."""

    weights: torch.Tensor
    history: list[float]
    converged: bool


def climb(
    X: torch.Tensor,
    weights: torch.Tensor,
    *,
    anneal: bool,
    tol: float,
    max_iter: int,
    report: Report,
) -> Climb:
    """Maximise the objective on standardised data.

    Parameters
    ----------
    X : tensor of shape (n, p)
        Standardised data.
    weights : tensor of shape (m, p)
        Where to start, at any scale when `anneal`, else with u < 1; overwritten.
    anneal : bool
        Go through the noise levels 0.6^k, k = 1..6, before the last stage without noise.
    tol : float
        A stage ends when two iterations in a row gain less, in nats; those between the first and the last when they
        gain less than ten times that. What the dtype cannot resolve counts as no gain.
    max_iter : int
        Iterations allowed in each stage.
    report : callable
        Called after each iteration with their number and a text, as `natwise.core.progress` wants it.
    """
    X = compress(X)
    history: list[float] = []
    converged, previous = True, 0.0
    u = torch.linalg.vecdot(weights @ X.T, weights @ X.T).double() / len(X)
    for eps in (*(ANNEALING if anneal else ()), 0.0):
        weights *= rescaling(weights, u, previous, eps).to(weights.dtype)[:, None]
        ascent = Ascent(X, weights, eps)
        slack = ANNEALING_SLACK if 0 < eps < max(ANNEALING) else 1.0
        converged = _run_stage(ascent, slack * tol, max_iter, history, report)
        u, previous = ascent.u, eps
    return Climb(weights, history, converged)


def _run_stage(ascent: Ascent, tol: float, max_iter: int, history: list[float], report: Report) -> bool:
    """Step until the objective stands still; return whether it does."""
    tol = max(tol, torch.finfo(ascent.weights.dtype).eps * abs(ascent.tc))
    small_gains = 0
    for _ in range(max_iter):
        before = ascent.tc
        moved = ascent.step()
        history.append(ascent.tc)
        report(len(history), f"noise {ascent.eps:.3f}, TC {ascent.tc:.4f} nats")
        small_gains = small_gains + 1 if ascent.tc - before < tol else 0
        if not moved or small_gains == 2:
            return True
    return False


def compress(X: torch.Tensor) -> torch.Tensor:
    """Return data with the second moments of `X` (n, p) but at most p rows, when that is clearly fewer than n."""
    n_samples, n_features = X.shape
    if n_samples < COMPRESSION * n_features:
        return X
    R = torch.linalg.qr(X.double(), mode="r").R
    return (R * (n_features / n_samples) ** 0.5).to(X.dtype)


def random_weights(X: torch.Tensor, n_components: int, generator: np.random.Generator) -> torch.Tensor:
    """Return Gaussian weights (m, p) on the device of `X`, scaled to u = 0.01."""
    weights = torch.from_numpy(generator.standard_normal((n_components, X.shape[1]), dtype=np.float32)).to(X)
    size = torch.linalg.vector_norm(weights @ X.T, dim=1) / len(X) ** 0.5
    return weights * (START / size)[:, None]


def rescaling(weights: torch.Tensor, u: torch.Tensor, old: float, new: float) -> torch.Tensor:
    """Return factors (m,), float64, by which weights of given `u` stay below u = 1 when the noise changes.

    They keep each u a little below its old value; three digits are kept, so that rounding cannot push u over 1. A
    factor that holds nothing but noise is not blown up by more than a hundred.
    """
    norm = torch.linalg.vecdot(weights, weights).double()
    delta = (new**2 - old**2) / (1 - new**2) * norm / u.clamp(min=torch.finfo(torch.float64).tiny)  # both may vanish
    scale = torch.sqrt((1 - old**2) / ((1 - new**2) * (1 + delta).clamp(min=1e-4)))
    return torch.floor(1000 * scale) / 1000
