"""Full-batch training of a linearised network, seen through the eigenvalues of its tangent kernel.

With ``A = Theta + weight_decay * I`` and ``r = f_0 - Y`` the weights after t steps are ``w_0 - J^T phi_t(A) r``,
where ``phi_t`` is a scalar function of the eigenvalues of A. Everything in this package follows from that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Dynamics:
    """Training on the sum of the per-sample losses, with decay toward the initialisation.

    The loss is ``sum_i 1/2 ||f(x_i) - y_i||^2 + weight_decay/2 ||w - w_0||^2``.

    Parameters
    ----------
    t : int, float or None
        Number of gradient steps (gd), or time in units of ``step_size`` (flow); None is converged.
    step_size : float
        Learning rate of the sum loss; unused when converged.
    weight_decay : float
        Coefficient of the decay in the sum loss.
    flow : bool
        Gradient flow instead of discrete steps.
    """

    t: float | None
    step_size: float
    weight_decay: float
    flow: bool = False

    def phi(self, curvature: np.ndarray) -> np.ndarray:
        """Return phi_t at eigenvalues of A (which include the weight decay); phi_t(0) is its limit t * step_size.

        ``log1p`` and ``expm1`` keep every digit for eigenvalues of any size. For converged training phi(0) = 0,
        the pseudo-inverse.
        """
        curvature = np.asarray(curvature, dtype=np.float64)
        positive = curvature > 0
        safe = np.where(positive, curvature, 1.0)
        if self.t is None:
            return np.where(positive, 1.0 / safe, 0.0)
        return np.where(positive, self._progress(safe, self.t) / safe, self.step_size * self.t)

    def _progress(self, curvature: np.ndarray, t: float) -> np.ndarray:
        """Return the fraction of an eigendirection's residual that training has removed."""
        x = self.step_size * curvature
        if self.flow:
            return -np.expm1(-t * x)
        if t == 0:
            return np.zeros_like(x)
        with np.errstate(divide="ignore"):  # x = 1: log(0) = -inf is right, the direction is fitted in one step
            overshoot = np.exp(t * np.log(np.maximum(x - 1.0, 0.0)))
            return np.where(x < 1.0, -np.expm1(t * np.log1p(-np.minimum(x, 1.0))), 1.0 - (-1.0) ** t * overshoot)

    def diverges(self, largest: float) -> bool:
        """Say whether gradient descent diverges when `largest` is the largest eigenvalue of the kernel."""
        return self.t is not None and not self.flow and self.step_size * (largest + self.weight_decay) >= 2.0


@dataclass(frozen=True)
class TrainingRule:
    """What is kept fixed when samples are removed: learning rate and weight decay of which loss.

    Parameters
    ----------
    t, lr, weight_decay, flow
        As the user trains: with ``reduction="mean"`` those of ``(1/n) sum_i loss_i + weight_decay/2 ||w - w_0||^2``.
    reduction : {"mean", "sum", "official"}
        ``sum``: `lr` and `weight_decay` belong to the sum loss and stay as they are when samples are removed.
        ``mean``: they belong to the mean loss; on n samples they act as lr / n and n * weight_decay on the sum.
        ``official``: as ``mean``, but the decay n * weight_decay is not rescaled when samples are removed.
    """

    t: float | None
    lr: float
    weight_decay: float
    flow: bool = False
    reduction: str = "mean"

    def dynamics(self, n: int, n_removed: int = 0) -> Dynamics:
        """Return the dynamics in the sum convention after `n_removed` of `n` samples were taken away."""
        if self.reduction == "sum":
            return Dynamics(self.t, self.lr, self.weight_decay, self.flow)
        left = n - n_removed
        n_decay = left if self.reduction == "mean" else n
        return Dynamics(self.t, self.lr / left, self.weight_decay * n_decay, self.flow)

    def largest_stable_lr(self, largest: float, n: int, n_removed: int = 0) -> float:
        """Return the learning rate, in the user's convention, at which the top direction stops converging."""
        unit = replace(self, lr=1.0).dynamics(n, n_removed)
        curvature = largest + unit.weight_decay
        return 2.0 / (unit.step_size * curvature) if curvature > 0 else math.inf
