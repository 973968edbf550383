"""The synthetic series of the paper: modular Gaussian models that change suddenly or smoothly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.core.random import RandomState, Streams


@dataclass(frozen=True)
class ModularModel:
    """Variables that each lean on one factor: standard deviations, correlations with the parent, and parents, (p,)."""

    std: np.ndarray
    rho: np.ndarray
    parent: np.ndarray

    @classmethod
    def draw(cls, n_features: int, n_components: int, generator: np.random.Generator, snr: float = 5.0) -> ModularModel:
        """Draw deviations from U(1/4, 4), signal-to-noise ratios from U(0, snr) and signs; parents in equal blocks."""
        ratio = generator.uniform(0, snr, n_features)
        sign = generator.choice([-1.0, 1.0], n_features)
        parent = np.arange(n_features) * n_components // n_features
        return cls(generator.uniform(0.25, 4, n_features), sign * np.sqrt(ratio / (1 + ratio)), parent)

    def covariance(self) -> np.ndarray:
        """Return the covariance matrix (p, p)."""
        correlation = np.where(self.parent[:, None] == self.parent, np.outer(self.rho, self.rho), 0.0)
        np.fill_diagonal(correlation, 1.0)
        return correlation * np.outer(self.std, self.std)


def sudden_change(
    n_periods: int, n_features: int, n_components: int, random_state: RandomState = None
) -> list[ModularModel]:
    """Return the model of each period: one model up to the middle, another one, with other parents, from there on."""
    generator = Streams.of(random_state).numpy("sudden")
    before, after = (_shuffled(ModularModel.draw(n_features, n_components, generator), generator) for _ in range(2))
    return [before if t < n_periods // 2 else after for t in range(n_periods)]


def smooth_change(
    n_periods: int, n_features: int, n_components: int, random_state: RandomState = None
) -> list[ModularModel]:
    """Return the model of each period: all moves from one model to another; parents switch one by one."""
    generator = Streams.of(random_state).numpy("smooth")
    first, last = (_shuffled(ModularModel.draw(n_features, n_components, generator), generator) for _ in range(2))
    switch = generator.integers(1, max(2, n_periods), n_features)
    return [
        ModularModel(
            std=(1 - t / n_periods) * first.std + t / n_periods * last.std,
            rho=(1 - t / n_periods) * first.rho + t / n_periods * last.rho,
            parent=np.where(switch <= t, last.parent, first.parent),
        )
        for t in range(n_periods)
    ]


def sample_periods(
    models: list[ModularModel], n: int, random_state: RandomState = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `n` samples of each period, (T n, p), and their periods, (T n,)."""
    generator = Streams.of(random_state).numpy("samples")
    samples = [
        np.linalg.cholesky(model.covariance()) @ generator.standard_normal((len(model.std), n)) for model in models
    ]
    return np.concatenate(samples, axis=1).T, np.repeat(np.arange(len(models)), n)


def _shuffled(model: ModularModel, generator: np.random.Generator) -> ModularModel:
    return ModularModel(model.std, model.rho, generator.permutation(model.parent))
