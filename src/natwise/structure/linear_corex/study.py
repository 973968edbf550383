"""Re-measures what was claimed for linear CorEx, each time beside the baselines that a user would try first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.result import Result
from natwise.structure.linear_corex._estimator import LinearCorEx
from natwise.study import Found, Setting, Study

BIG5 = "tabular/big5_first1000.npz"
STOCKS = "tabular/sp500_daily_logreturns_2000_2011.npz"
PENALTIES = {"ci": (0.4,), "small": (0.3, 0.4, 0.5)}  # of the graphical lasso; the better ones
DIMENSIONS = {"ci": (256, 2048), "small": (256, 1024, 4096)}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of `claim`."""
    drawing = Figure(figsize=(6.4, 3.8), layout="constrained")
    DRAWINGS[claim](drawing.add_subplot(), result)
    return drawing


def modular_sample(
    n_features: int, n_components: int, n_samples: int, snr: float, seed: int, *, random_signs: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return data (n_samples, n_features) of unit variance with one parent per variable, and the parents."""
    streams = Streams(seed)
    parents = np.arange(n_features) * n_components // n_features
    loading = np.full(n_features, np.sqrt(snr / (1 + snr)))
    if random_signs:
        loading *= streams.numpy("signs").choice([-1.0, 1.0], n_features)
    factors = streams.numpy("factors").standard_normal((n_samples, n_components))
    noise = streams.numpy("noise").standard_normal((n_samples, n_features))
    return factors[:, parents] * loading + np.sqrt(1 - loading**2) * noise, parents


def _modular_recovery(setting: Setting) -> Found:
    S = np.full((10, 10), 0.36)
    np.fill_diagonal(S, 1)
    noise = setting.streams.numpy("noise").standard_normal((100, 10))
    white = np.linalg.svd(noise - noise.mean(axis=0), full_matrices=False)[0] * 10
    X = white @ np.linalg.cholesky(S).T  # its sample correlation matrix is S, not only its expectation
    model = LinearCorEx(1, random_state=setting.seed).fit(X)
    scalars = {
        "tc": model.tc_,
        "tc_true": float(-0.5 * np.linalg.slogdet(S)[1]),
        "covariance_error": float(np.abs(model.covariance_ - S).max()),
    }
    return Found({"covariance": model.covariance_, "true_covariance": S}, scalars, {"p": 10, "rho": 0.6, "n": 100})


def _big5(setting: Setting) -> Found:
    return _compare_groups(local.find(BIG5, setting.data_dir), setting.seed)


@lru_cache(maxsize=1)  # two claims read the same fits
def _compare_groups(path: Path, seed: int) -> Found:
    from sklearn.decomposition import PCA, FactorAnalysis

    X = load_npz(path)["X"].astype(float)
    traits = np.arange(X.shape[1]) % 5
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    model = LinearCorEx(5, random_state=seed).fit(X)
    cleaned = LinearCorEx(5, missing_values=-1, random_state=seed).fit(X)
    groups = {
        "ari": model.labels_,
        "ari_missing_filled": cleaned.labels_,
        "ari_mutual_information": model.mutual_info_.argmax(axis=0),
        "ari_factor_analysis": _strongest(FactorAnalysis(5, random_state=seed).fit(Z)),
        "ari_factor_analysis_varimax": _strongest(FactorAnalysis(5, rotation="varimax", random_state=seed).fit(Z)),
        "ari_pca": _strongest(PCA(5, random_state=seed).fit(Z)),
        "ari_k_means": _k_means(Z, 5, seed),
    }
    scalars = {name: _ari(traits, labels) for name, labels in groups.items()}
    scalars |= {"tc": model.tc_, "tc_missing_filled": cleaned.tc_}
    notes = (
        "18 answers are coded -1 (missing) and enter as they are, as in the reference; *_missing_filled treats them",
    )
    arrays = {"mutual_information": model.mutual_info_, "traits": traits}
    return Found(arrays, scalars, {"n_components": 5}, warnings=notes)


def _stocks(n_days: int, n_components: int, setting: Setting) -> Found:
    returns = load_npz(local.find(STOCKS, setting.data_dir))["logret_x5000"] / 5000.0
    models = _covariance_models(n_components, setting.seed, PENALTIES[setting.scale])
    losses: dict[str, list[float]] = {name: [] for name in models}
    for train, test in _windows(returns, n_days):
        for name, model in models.items():
            losses[name].append(_held_out_loss(model, train, test))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    return Found(
        {name: np.array(values) for name, values in losses.items()},
        means,
        {"n_days": n_days, "n_components": n_components, "n_windows": len(losses["linear_corex"])},
        warnings=[f"{name} is better" for name, value in means.items() if value < means["linear_corex"]],
    )


def _held_out_loss(model: Any, train: np.ndarray, test: np.ndarray) -> float:
    """Return the mean negative log-likelihood of days (n, p), NaN where the model cannot be fitted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FactorAnalysis and GraphicalLasso complain of n < p
            return float(-model.fit(train).score(test))
    except FloatingPointError:  # GraphicalLasso with a small penalty
        return float("nan")


def _covariance_models(n_components: int, seed: int, penalties: tuple[float, ...]) -> dict[str, Any]:
    from sklearn.covariance import OAS, GraphicalLasso, LedoitWolf
    from sklearn.decomposition import PCA, FactorAnalysis

    return {
        "linear_corex": LinearCorEx(n_components, random_state=seed),
        "ledoit_wolf": LedoitWolf(),
        "oas": OAS(),
        **{f"graphical_lasso_{alpha}": GraphicalLasso(alpha=alpha, tol=1e-2) for alpha in penalties},
        "factor_analysis": FactorAnalysis(n_components, random_state=seed),
        "pca": PCA(n_components, random_state=seed),
    }


def _windows(returns: np.ndarray, n_days: int, horizon: int = 60, stride: int = 250) -> Iterator[tuple[Any, Any]]:
    """Yield training and held-out days (n, p) in units of the training days' deviation, the latter cut at six."""
    for start in range(0, len(returns) - n_days - horizon + 1, stride):
        train = returns[start : start + n_days]
        test = returns[start + n_days : start + n_days + horizon]
        mean, std = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-10)
        yield (train - mean) / std, np.clip((test - mean) / std, -6, 6)


def _blessing(setting: Setting) -> Found:
    """Group more and more variables, up to 2048 ("ci") or 4096, with equal and with random signs."""
    size: dict[str, Any] = {"n_components": 64, "n_samples": 300, "snr": 0.1}
    dimensions = DIMENSIONS[setting.scale]
    curves: dict[str, list[float]] = {}
    for random_signs in (False, True):
        suffix = "_random_signs" if random_signs else ""
        for p in dimensions:
            X, parents = modular_sample(p, **size, seed=setting.seed, random_signs=random_signs)
            for name, labels in _groupings(X, size["n_components"], setting.seed):
                curves.setdefault(name + suffix, []).append(_ari(parents, labels))
    arrays = {name: np.array(values) for name, values in curves.items()} | {"p": np.array(dimensions)}
    scalars = {f"ari_{name}": values[-1] for name, values in curves.items()}
    scalars["ari_gain"] = curves["linear_corex"][-1] - curves["linear_corex"][0]
    best = max(("linear_corex", "k_means", "factor_analysis_varimax"), key=lambda name: curves[name][-1])
    note = f"{best} finds the groups better at p = {dimensions[-1]} when all signs agree"
    return Found(arrays, scalars, {**size, "p": list(dimensions)}, warnings=[] if best == "linear_corex" else [note])


def _groupings(X: np.ndarray, m: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each method and the group of each column of X (n, p), of m groups."""
    from sklearn.decomposition import FactorAnalysis
    from sklearn.exceptions import ConvergenceWarning

    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # all are stopped early
        yield "linear_corex", LinearCorEx(m, max_iter=500, random_state=seed).fit(X).labels_
        analysis = FactorAnalysis(m, rotation="varimax", max_iter=20, random_state=seed).fit(Z)
    yield "factor_analysis_varimax", _strongest(analysis)
    yield "k_means", _k_means(Z, m, seed)


def _strongest(model: Any) -> np.ndarray:
    """Return the component of largest absolute loading of each variable."""
    return np.abs(model.components_).argmax(axis=0)


def _k_means(Z: np.ndarray, m: int, seed: int) -> np.ndarray:
    """Return the group of each column of standardised data (n, p)."""
    from sklearn.cluster import KMeans

    return KMeans(m, n_init=3, random_state=seed).fit(Z.T).labels_


def _ari(true: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(true, labels))


def _draw_covariance(axes: Any, result: Result) -> None:
    true, found = result.arrays["true_covariance"].ravel(), result.arrays["covariance"].ravel()
    axes.plot(true, found, "o")
    axes.plot([0.3, 1], [0.3, 1], "k--", linewidth=1, label="exact")
    axes.set(xlabel="true covariance", ylabel="estimate", title=f"TC = {result.scalars['tc']:.4f} nats")
    axes.legend()


def _draw_big5(axes: Any, result: Result) -> None:
    order = np.argsort(result.arrays["traits"], kind="stable")
    image = axes.imshow(result.arrays["mutual_information"][:, order], aspect="auto", cmap="viridis")
    axes.set(xlabel="question, sorted by trait", ylabel="factor", title=f"ARI = {result.scalars['ari']:.3f}")
    axes.figure.colorbar(image, label="mutual information (nats)")


def _draw_stocks(axes: Any, result: Result) -> None:
    losses = {name: value for name, value in result.scalars.items() if np.isfinite(value)}
    names = sorted(losses, key=losses.__getitem__)
    axes.barh(names, [losses[name] for name in names])
    axes.set(xlabel="held-out negative log-likelihood (nats per day)", title="Smaller is better")
    axes.set_xlim(left=0.9 * min(losses.values()))
    axes.invert_yaxis()


def _draw_blessing(axes: Any, result: Result) -> None:
    for name in sorted(set(result.arrays) - {"p"}):
        style = "--" if name.endswith("random_signs") else "-"
        axes.plot(result.arrays["p"], result.arrays[name], "o" + style, label=name.replace("_", " "))
    axes.set(xscale="log", xlabel="number of variables", ylabel="adjusted Rand index of the groups", ylim=(0, 1))
    axes.legend(fontsize="small")


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "modular-recovery": _modular_recovery,
    "big5-clusters": _big5,
    "big5-tc": _big5,
    "stocks-50-days": partial(_stocks, 50, 10),
    "stocks-25-days": partial(_stocks, 25, 5),
    "blessing-of-dimensionality": _blessing,
}
DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "modular-recovery": _draw_covariance,
    "big5-clusters": _draw_big5,
    "big5-tc": _draw_big5,
    "stocks-50-days": _draw_stocks,
    "stocks-25-days": _draw_stocks,
    "blessing-of-dimensionality": _draw_blessing,
}
STUDY = Study("structure.linear_corex", MEASUREMENTS)
run = STUDY.run
