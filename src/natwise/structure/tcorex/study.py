"""Re-measures what was claimed for T-CorEx beside baselines, every setting chosen on validation samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.result import Result
from natwise.structure.tcorex._baselines import Candidate, methods
from natwise.structure.tcorex._estimator import TCorEx
from natwise.structure.tcorex._synthetic import sample_periods, smooth_change, sudden_change
from natwise.study import Found, Setting, Study

STOCKS = "tabular/sp500_daily_logreturns_2000_2011.npz"
SYNTHETIC: dict[str, dict[str, int]] = {
    "ci": {"n_periods": 6, "n_features": 48, "n_components": 6},
    "small": {"n_periods": 10, "n_features": 128, "n_components": 8},
}
GRID: dict[str, dict[str, tuple[float, ...]]] = {
    "ci": {"l1": (0.1, 0.3), "gamma": (0.1, 0.3)},
    "small": {"l1": (0.03, 0.1, 0.3), "gamma": (0.1, 0.3, 0.5)},
}
STOCK_GRID: dict[str, tuple[float, ...]] = {"l1": (0.3, 3.0), "gamma": (0.7, 0.9)}
N_SERIES = {"ci": 5, "small": 20}
N_TRAIN, N_VALIDATION, N_TEST = 16, 16, 200
OTHERS = ("linear_corex", "linear_corex_pooled", "ledoit_wolf", "oas", "factor_analysis", "graphical_lasso")


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of `claim`."""
    drawing = Figure(figsize=(6.4, 3.8), layout="constrained")
    DRAWINGS[claim](drawing, result)
    return drawing


def _synthetic(change: Callable[..., Any], setting: Setting) -> Found:
    size = SYNTHETIC[setting.scale]
    models = change(**size, random_state=setting.seed)
    train, validation, test = (
        sample_periods(models, n, setting.streams.child(name))
        for name, n in (("train", N_TRAIN), ("validation", N_VALIDATION), ("test", N_TEST))
    )
    estimators = methods(size["n_components"], setting.seed, **GRID[setting.scale])
    losses = {name: _held_out(candidates, train, validation, test) for name, candidates in estimators.items()}
    losses["truth"] = negative_log_likelihood(np.stack([model.covariance() for model in models]), *test)
    return _compare(losses, {**size, "n_train": N_TRAIN, "n_validation": N_VALIDATION, "n_test": N_TEST})


def _change_point(setting: Setting) -> Found:
    size, n_series = SYNTHETIC[setting.scale], N_SERIES[setting.scale]
    true = size["n_periods"] // 2 - 1
    scores: dict[str, list[np.ndarray]] = {"tcorex": [], "ledoit_wolf": [], "linear_corex": []}
    baselines = methods(size["n_components"], setting.seed, l1=(), gamma=())
    for k in range(n_series):
        streams = setting.streams.child(k)
        X, times = sample_periods(sudden_change(**size, random_state=streams), N_TRAIN, streams)
        model = TCorEx(size["n_components"], l1=0.3, gamma=0.4, random_state=streams.seed("fit")).fit(X, times)
        scores["tcorex"].append(model.change_scores())
        for name in ("ledoit_wolf", "linear_corex"):
            scores[name].append(_precision_changes(baselines[name][0](X, times)))
    arrays = {f"scores_{name}": np.array(values) for name, values in scores.items()}
    scalars = {f"hit_rate_{name}": float((arrays[f"scores_{name}"].argmax(axis=1) == true).mean()) for name in scores}
    scalars["hit_rate"] = scalars.pop("hit_rate_tcorex")
    arrays["labels"] = model.labels_
    arrays["moved"] = model.feature_change_scores()
    params = {**size, "n_train": N_TRAIN, "n_series": n_series, "true_change": true, "l1": 0.3, "gamma": 0.4}
    return Found(arrays, scalars, params)


def _stocks(setting: Setting) -> Found:
    """Ten windows of 16 training, 4 validation and 4 test days, as in the paper, from several starts."""
    n_starts, returns = {"ci": 1, "small": 3}[setting.scale], _returns(setting)
    losses: dict[str, list[float]] = {}
    for start in np.linspace(0, len(returns) - 240, n_starts).astype(int):
        Z = _standardized(returns[start : start + 240])
        shuffled = _shuffled_within(24, 240, setting.streams.child(int(start)))
        position, times = np.arange(240) % 24, np.arange(240) // 24
        parts = [position < 16, (position >= 16) & (position < 20), position >= 20]
        train, validation, test = ((Z[shuffled[part]], times[part]) for part in parts)
        for name, candidates in methods(16, setting.seed, **STOCK_GRID).items():
            losses.setdefault(name, []).append(_held_out(candidates, train, validation, test))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    return _compare(means, {"n_periods": 10, "days": [16, 4, 4], "n_components": 16, "n_starts": n_starts})


def _portfolio(setting: Setting) -> Found:
    """Least-variance long-only portfolios from ten windows of 12 days, held for the next 12 days."""
    n_starts, returns = {"ci": 1, "small": 8}[setting.scale], _returns(setting)
    chosen = {
        name: candidates[0]
        for name, candidates in methods(16, setting.seed, l1=(0.1,), gamma=(0.8,)).items()
        if name in ("tcorex", "ledoit_wolf", "oas", "linear_corex", "linear_corex_pooled")
    }
    daily: dict[str, list[np.ndarray]] = {name: [] for name in (*chosen, "equal_weights")}
    for start in np.linspace(0, len(returns) - 132, n_starts).astype(int):
        train, held = returns[start : start + 120], returns[start + 120 : start + 132]
        for name, candidate in chosen.items():
            first = 0 if name in ("tcorex", "linear_corex_pooled") else 108  # the others look at the last window only
            latest = candidate((train - train.mean(axis=0))[first:], np.arange(first, 120) // 12)[-1]
            daily[name].append(held @ least_variance_weights(latest))
        daily["equal_weights"].append(held.mean(axis=1))
    volatility = {f"volatility_{name}": float(np.mean([x.std() for x in days])) for name, days in daily.items()}
    scalars = {**volatility, "ratio": volatility["volatility_tcorex"] / volatility["volatility_ledoit_wolf"]}
    arrays = {name: np.concatenate(days) for name, days in daily.items()}
    return Found(arrays, scalars, {"days": [120, 12], "n_starts": n_starts, "l1": 0.1, "gamma": 0.8})


def _returns(setting: Setting) -> np.ndarray:
    """Return daily log-returns (n_days, n_stocks)."""
    return load_npz(local.find(STOCKS, setting.data_dir))["logret_x5000"] / 5000.0


def least_variance_weights(covariance: np.ndarray) -> np.ndarray:
    """Return the non-negative weights of sum one whose portfolio varies least.

    min x'Sx subject to 1'x = 1, x >= 0 is a non-negative least-squares problem up to scale: |R x|^2 + (1'x - 1)^2.
    """
    from scipy.optimize import nnls

    root = np.linalg.cholesky(covariance / np.trace(covariance) * len(covariance)).T
    weights, _ = nnls(np.vstack([root, np.ones(len(root))]), np.append(np.zeros(len(root)), 1.0))
    return weights / weights.sum()


def negative_log_likelihood(covariances: np.ndarray, X: np.ndarray, times: np.ndarray) -> float:
    """Return the mean over samples X (N, p) and their periods under Gaussians (T, p, p), mean zero, in nats.

    Infinite when one of them is singular.
    """
    losses = []
    for covariance, t in zip(covariances, np.unique(times), strict=True):
        x = X[times == t]
        sign, logdet = np.linalg.slogdet(2 * np.pi * covariance)
        if sign <= 0:
            return float("inf")
        losses.append(0.5 * (np.einsum("ij,ij->i", x, np.linalg.solve(covariance, x.T).T).mean() + logdet))
    return float(np.mean(losses))


def _held_out(candidates: list[Candidate], train: Any, validation: Any, test: Any) -> float:
    """Return the test loss of the candidate that is best on the validation samples."""
    fitted = [candidate(*train) for candidate in candidates]
    best = int(np.argmin([negative_log_likelihood(covariances, *validation) for covariances in fitted]))
    return negative_log_likelihood(fitted[best], *test)


def _compare(losses: dict[str, float], params: dict[str, Any]) -> Found:
    scalars = {**losses, "advantage": min(losses[name] for name in OTHERS) - losses["tcorex"]}
    notes: Sequence[str] = ()
    if losses["time_graphical_lasso"] < losses["tcorex"]:
        difference = losses["tcorex"] - losses["time_graphical_lasso"]
        notes = (f"the time-varying graphical lasso, O(T p^3), is better by {difference:.2f} nats per sample",)
    return Found(scalars=scalars, params=params, warnings=notes)


def _precision_changes(covariances: np.ndarray) -> np.ndarray:
    """Return the Frobenius norms (T - 1,) of the steps between inverse correlations."""
    scale = np.sqrt(np.einsum("tii->ti", covariances))
    inverse = np.linalg.inv(covariances / scale[:, :, None] / scale[:, None])
    return np.linalg.norm(inverse[1:] - inverse[:-1], axis=(1, 2))


def _standardized(returns: np.ndarray) -> np.ndarray:
    """Return columns (n, p) of mean 0 and variance 1."""
    return (returns - returns.mean(axis=0)) / returns.std(axis=0)


def _shuffled_within(window: int, n: int, streams: Streams) -> np.ndarray:
    """Return a permutation of `n` days that keeps each in its window."""
    generator = streams.numpy("days")
    return np.concatenate([start + generator.permutation(window) for start in range(0, n, window)])


def _draw_losses(drawing: Figure, result: Result) -> None:
    axes = drawing.add_subplot()
    names = sorted((n for n in result.scalars if n != "advantage"), key=lambda n: result.scalars[n], reverse=True)
    colours = ["tab:red" if n == "tcorex" else "black" if n == "truth" else "tab:gray" for n in names]
    values = [result.scalars[n] for n in names]
    axes.barh([n.replace("_", " ") for n in names], values, color=colours)
    finite = [v for v in values if np.isfinite(v)]
    axes.set_xlim(0.97 * min(finite), min(max(finite), 2 * min(finite)))
    axes.set_xlabel("held-out negative log-likelihood (nats per sample; lower is better)")


def _draw_changes(drawing: Figure, result: Result) -> None:
    """Change scores above, the group of every variable in every period below, variables sorted by their groups."""
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    labels, scores = result.arrays["labels"], result.arrays["scores_tcorex"]
    steps = np.arange(1, len(labels)) - 0.5
    above.plot(steps, scores.T, color="tab:gray", alpha=0.5)
    above.plot(steps, scores[-1], color="tab:red", label="series below")
    above.axvline(result.params["true_change"] + 0.5, color="black", linestyle=":", label="true change")
    above.set_ylabel("change of\nthe precision")
    above.legend(fontsize="small")
    order = np.lexsort((labels[-1], labels[0]))
    below.imshow(labels.T[order], aspect="auto", cmap="tab20", interpolation="nearest")
    below.set(xlabel="period", ylabel="variable, sorted\nby its first group")


def _draw_portfolio(drawing: Figure, result: Result) -> None:
    axes: Axes = drawing.add_subplot()
    names = [n for n in result.scalars if n.startswith("volatility_")]
    axes.barh(
        [n.removeprefix("volatility_").replace("_", " ") for n in names], [100 * result.scalars[n] for n in names]
    )
    axes.set_xlabel("volatility of the held-out daily return (%; lower is better)")


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "sudden-change": partial(_synthetic, sudden_change),
    "smooth-change": partial(_synthetic, smooth_change),
    "change-point": _change_point,
    "stock-windows": _stocks,
    "portfolio": _portfolio,
}
DRAWINGS: dict[str, Callable[[Figure, Result], None]] = {
    "sudden-change": _draw_losses,
    "smooth-change": _draw_losses,
    "change-point": _draw_changes,
    "stock-windows": _draw_losses,
    "portfolio": _draw_portfolio,
}
STUDY = Study("structure.tcorex", MEASUREMENTS)
run = STUDY.run
