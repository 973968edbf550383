"""The Gaussian loss of MinSyn: closed forms in the correlations, and their gradient.

Variables are standardised, Z_j = w_j·x + N(0, 1 - w_j'Sw_j) has unit variance, and R_ji = corr(Z_j, x_i) = (w_j'S)_i.
The decoder that combines the factors as if they were independent given x_i is, with b = R/(1-R^2),
S_i = sum_j R_ji b_ji, C = corr(Z) and Q_i = b_i'C b_i,

    p_CI(x_i|z) = N(b_i'z/(1+S_i), 1/(1+S_i)),
    -E log p_CI = log(2 pi)/2 - log(1+S_i)/2 + (1 + Q_i - S_i^2)/(2(1+S_i)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lstsq

from natwise.structure.minsyn._span import Span


class GaussianDecoder:
    """p_CI(x_i|z) = N(mean_i + scale_i loadings_i·z, scale_i^2/precision_i), in the units of the variables.

    Parameters
    ----------
    R : ndarray of shape (n_components, n_features)
        Correlations of factors and variables.
    factor_noise : ndarray of shape (n_components,)
        Variance of the noise in the factors.
    mean, scale : ndarray of shape (n_features,)
        Of the variables; the scale of constant variables is 0.
    """

    def __init__(self, R: np.ndarray, factor_noise: np.ndarray, mean: np.ndarray, scale: np.ndarray):
        b = R / (1 - R**2)
        self.precision = 1 + (R * b).sum(0)
        self.loadings = b / self.precision
        self.factor_noise, self.mean, self.scale = factor_noise, mean, scale

    def predict(self, Y: np.ndarray) -> np.ndarray:
        """Return E[x|y], shape (n_samples, n_features)."""
        return self.mean + self.scale * (Y @ self.loadings)

    def log_likelihood(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Return the mean log-density of X (n, p) with factors Y (n, m); of the variables that vary, noise averaged."""
        varies = self.scale > 0
        scale, precision = self.scale[varies], self.precision[varies]
        error = ((X - self.predict(Y))[:, varies] / scale) ** 2
        squared = error.mean(0) + self.factor_noise @ self.loadings[:, varies] ** 2
        return float((0.5 * (np.log(precision / (2 * np.pi)) - precision * squared) - np.log(scale)).sum())


@dataclass(frozen=True)
class GaussianLoss:
    """L = -sum_i E log p_CI(x_i|z) + beta sum_j I(Z_j;X), over the encoder in whitened coordinates of the sample.

    The encoder is w_j = sqrt(1-noise) a_j/sqrt(1+|a_j|^2) in these coordinates, so that |w_j|^2 = w_j'Sw_j < 1 - noise
    holds for every a_j and the problem is free of constraints.
    """

    span: Span
    n_components: int
    noise: float
    beta: float

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Return small random weights: zero weights are a stationary point."""
        a = rng.standard_normal((self.n_components, self.span.rank))
        return 0.1 * a / np.linalg.norm(a, axis=1, keepdims=True)

    def encode(self, a: np.ndarray) -> np.ndarray:
        """Return w in whitened coordinates, shape (n_components, rank)."""
        return np.sqrt((1 - self.noise) / (1 + (a**2).sum(1, keepdims=True))) * a

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient with respect to the flattened a (m rank,)."""
        a = flat.reshape(self.n_components, -1)
        squared = 1 + (a**2).sum(1)
        w, B = self.encode(a), self.span.loadings
        per_variable, by_R, by_C = _terms(w @ B, w @ w.T)
        by_w = by_R @ B.T + 2 * by_C @ w
        unexplained = self.noise + (1 - self.noise) / squared
        loss = per_variable.sum() - 0.5 * self.beta * np.log(unexplained).sum()
        shrink = np.sqrt((1 - self.noise) / squared)
        along = (by_w * w).sum(1) / squared - self.beta * (1 - self.noise) / (unexplained * squared**2)
        return float(loss), (shrink[:, None] * by_w - along[:, None] * a).ravel()

    def weights(self, a: np.ndarray) -> np.ndarray:
        """Return w in standardised variables, shape (n_components, n_features).

        The loss does not see the part of w that is orthogonal to all samples (n_features > n_samples). That
        part is chosen as for the limit of a vanishing noise on the variables: then the gradient G S of the loss
        vanishes only where G does. In linear CorEx the same choice follows from its quasi-Newton step.
        """
        w, B = self.encode(a), self.span.loadings
        R = w @ B
        _, by_R, by_C = _terms(R, w @ w.T)
        pull = by_R @ B.T + 2 * by_C @ w
        capacity = (w**2).sum(1)
        multiplier = -(pull * w).sum(1) / np.maximum(capacity, np.finfo(float).tiny)
        alive = (capacity > 1e-8) & (multiplier > 1e-8)  # the others explain nothing
        unseen = by_R[alive] - self.span.project(by_R[alive])
        weights = self.span.to_variables(w)
        weights[alive] += lstsq(np.diag(multiplier[alive]) + 2 * by_C[np.ix_(alive, alive)], -unseen)[0]
        return weights


def synergy(R: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Return S_CI(X_i;Z) of every variable, in nats, from R (m, p) and the correlations C (m, m) of the factors."""
    b = R / (1 - R**2)
    S, Q = (R * b).sum(0), (b * (C @ b)).sum(0)
    explained = (R * np.linalg.solve(C, R)).sum(0)
    value = (Q - S * S - S) / (2 * (1 + S)) - 0.5 * np.log1p(S) - 0.5 * np.log1p(-np.minimum(explained, 1 - 1e-15))
    return np.maximum(value, 0.0)


def correlations(w: np.ndarray) -> np.ndarray:
    """Return corr(Z) from w in whitened coordinates; the noise of the factors enters the diagonal only."""
    C = w @ w.T
    np.fill_diagonal(C, 1.0)
    return C


def _terms(R: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return -E log p_CI (p,), and the derivatives of its sum by R (m, p) and by the off-diagonal of C (m, m)."""
    C = overlap.copy()
    np.fill_diagonal(C, 1.0)
    inverse = 1 / (1 - R**2)
    b = R * inverse
    Qij = C @ b
    S, Q = (R * b).sum(0), (b * Qij).sum(0)
    per_variable = 0.5 * np.log(2 * np.pi) - 0.5 * np.log1p(S) + (1 + Q - S * S) / (2 * (1 + S))
    by_Q = 0.5 / (1 + S)
    by_S = -(2 + 3 * S + S * S + Q) / (2 * (1 + S) ** 2)
    by_R = 2 * inverse**2 * (by_S * R + by_Q * Qij * (1 + R**2))
    by_C = (b * by_Q) @ b.T
    np.fill_diagonal(by_C, 0.0)
    return per_variable, by_R, by_C
