"""How a change of the weights becomes nats: the covariance of the noise that smooths the training algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.core.linearized import Dynamics, Spectrum
from natwise.core.validation import check_integer, check_option, check_real

KINDS = ("isotropic", "fisher", "sgd", "langevin")
_RANGE = 1e-12


@dataclass(frozen=True)
class Smoothing:
    """Covariance Sigma of the weights in ``SI = 1/2 (w - w_-i)^T Sigma^-1 (w - w_-i)``.

    Parameters
    ----------
    kind : {"isotropic", "fisher", "sgd", "langevin"}
        ``isotropic``: Sigma = sigma^2 I. ``fisher``: Sigma = sigma^2 F^-1 with F the mean of ``J_x^T J_x`` over the
        validation inputs, which makes weight and functional information the same. ``sgd``: the steady state of
        stochastic gradient descent, ``H Sigma + Sigma H = learning_rate / batch_size * (Lambda + ridge I)`` with
        ``H = J^T J + weight_decay I`` (of the sum loss) and Lambda the covariance of the per-sample gradients at the
        linearised solution. ``langevin``: the same with Lambda = sigma^2 I.
    sigma : float
        Standard deviation of the weights (isotropic, fisher) or of the gradient noise (langevin).
    learning_rate : float, optional
        Of the stochastic gradient descent; default: that of the training.
    batch_size : int
        Of the stochastic gradient descent.
    ridge : float, optional
        Added to Lambda, whose rank is below the number of samples. Without it Sigma is restricted to its
        numerical range, and a change that leaves the range has infinite information.
    """

    kind: str = "isotropic"
    sigma: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 1
    ridge: float | None = None

    @property
    def temperature(self) -> float:
        """Learning rate over batch size."""
        assert self.learning_rate is not None
        return self.learning_rate / self.batch_size

    @classmethod
    def of(cls, value: Any, lr: float | None) -> Smoothing:
        """Check `value` (a name or a `Smoothing`) and fill in the learning rate of the training."""
        given = value if isinstance(value, cls) else cls(check_option("smoothing", value, KINDS))
        check_option("smoothing.kind", given.kind, KINDS)
        sigma = check_real("smoothing.sigma", given.sigma, minimum=0.0, exclusive=True)
        ridge = None if given.ridge is None else check_real("smoothing.ridge", given.ridge, minimum=0.0)
        batch_size = check_integer("smoothing.batch_size", given.batch_size, minimum=1)
        rate = lr if given.learning_rate is None else given.learning_rate
        if given.kind in ("sgd", "langevin"):
            if rate is None:
                raise ValueError(
                    f"smoothing={given.kind!r} needs the learning rate of stochastic gradient descent: give lr or "
                    f"Smoothing({given.kind!r}, learning_rate=..., batch_size=...)"
                )
            rate = check_real("smoothing.learning_rate", rate, minimum=0.0, exclusive=True)
        return cls(given.kind, sigma, rate, batch_size, ridge)


class WeightInformation:
    """Nats of a change of the weights, from its dual coefficients in the eigenbasis of the kernel.

    With the thin decomposition ``J = U S^1/2 V^T`` the change ``J^T U m`` has the coordinates ``S^1/2 m`` in the
    basis V, in which H is diagonal: no vector of the size of the weights is formed.
    """

    def __init__(self, smoothing: Smoothing, spectrum: Spectrum, dynamics: Dynamics, gradients: np.ndarray):
        self._values = spectrum.values
        self._smoothing = smoothing
        self._curvature = spectrum.values + dynamics.weight_decay
        self.gradient_covariance = np.cov(gradients, rowvar=False, bias=True) if len(gradients) else None

    def __call__(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the information of each column of `coefficients` (n_rows, n_groups)."""
        how = self._smoothing
        if how.kind == "isotropic":
            return self._values @ coefficients**2 / (2 * how.sigma**2)
        if how.kind == "langevin":
            return (self._values * self._curvature) @ coefficients**2 / (how.temperature * how.sigma**2)
        return self._steady_state(np.sqrt(self._values)[:, None] * coefficients)

    def _steady_state(self, changes: np.ndarray) -> np.ndarray:
        """Return the nats of changes (n_rows, n_groups) under the steady state of stochastic gradient descent."""
        how = self._smoothing
        assert self.gradient_covariance is not None
        noise = self.gradient_covariance + (how.ridge or 0.0) * np.eye(len(self._values))
        pairs = self._curvature[:, None] + self._curvature[None, :]
        covariance = how.temperature * np.divide(noise, pairs, out=np.zeros_like(noise), where=pairs > 0)
        variances, directions = np.linalg.eigh(covariance)
        seen = variances > _RANGE * max(variances[-1], 0.0)
        projected = directions.T @ changes
        information = (projected[seen] ** 2 / variances[seen, None]).sum(axis=0) / 2
        outside = (projected[~seen] ** 2).sum(axis=0) > _RANGE * (changes**2).sum(axis=0)
        return np.where(outside, np.inf, information)
