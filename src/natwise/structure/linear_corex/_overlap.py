"""The variant without the modular constraint: factors may share variables and may be synergistic about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from natwise.core.progress import Report
from natwise.structure.linear_corex._annealing import Climb, compress
from natwise.structure.linear_corex._moments import SMALLEST_VARIANCE

STEP = 0.1


@dataclass
class OverlapModel:
    """What weights (m, p) of unnormalised factors Z = W x + N(0, 1) say about standardised data.

    Attributes
    ----------
    factor_covariance : tensor of shape (m, m)
        E[Z Z^T].
    covariance : tensor of shape (m, p)
        E[Z x^T].
    regression : tensor of shape (m, p)
        Coefficients of the best linear prediction of each variable from all factors.
    residual : tensor of shape (p,)
        Variance that this prediction leaves, at least 1e-6.
    tc : float
        The objective in nats: sum_i I(X_i ; Y) - sum_j log(E[Z_j^2]) / 2.
    """

    factor_covariance: torch.Tensor
    covariance: torch.Tensor
    regression: torch.Tensor
    residual: torch.Tensor
    tc: float

    @classmethod
    def of(cls, X: torch.Tensor, weights: torch.Tensor) -> OverlapModel:
        """Return the model of `weights` (m, p) on standardised data `X` (n, p)."""
        factors = weights @ X.T
        factor_covariance = factors @ factors.T / len(X)
        factor_covariance.diagonal().add_(1)
        covariance = factors @ X / len(X)
        regression = torch.linalg.solve(factor_covariance, covariance)
        residual = (1 - (regression * covariance).sum(0)).clamp(min=SMALLEST_VARIANCE)
        kept = torch.log(factor_covariance.diagonal().double()).sum()
        tc = -0.5 * float(torch.log(residual.double()).sum() + kept)
        return cls(factor_covariance, covariance, regression, residual, tc)

    def improve(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the weights (m, p) moved by the damped fixed-point update."""
        scaled = self.regression / self.residual
        coupling = (scaled @ self.regression.T).fill_diagonal_(0)
        return (1 - STEP) * weights + STEP * (scaled - coupling @ weights)

    @property
    def correlation(self) -> torch.Tensor:
        """Correlation of factors and variables, shape (m, p)."""
        return self.covariance / self.factor_covariance.diagonal().sqrt()[:, None]


def climb_with_overlap(
    X: torch.Tensor,
    weights: torch.Tensor,
    *,
    tol: float,
    max_iter: int,
    report: Report,
) -> Climb:
    """Iterate the update on standardised data `X` (n, p) from `weights` (m, p) until a gain is less than `tol`."""
    X = compress(X)
    model = OverlapModel.of(X, weights)
    history: list[float] = []
    for _ in range(max_iter):
        weights = model.improve(weights)
        before, model = model.tc, OverlapModel.of(X, weights)
        history.append(model.tc)
        report(len(history), f"TC {model.tc:.4f} nats")
        if abs(model.tc - before) < tol:
            return Climb(weights, history, converged=True)
    return Climb(weights, history, converged=False)


def random_overlap_weights(X: torch.Tensor, n_components: int, generator: np.random.Generator) -> torch.Tensor:
    """Return Gaussian weights (m, p) of variance 1/p on the device of `X`."""
    shape = (n_components, X.shape[1])
    return torch.from_numpy(generator.standard_normal(shape) / X.shape[1] ** 0.5).to(X)
