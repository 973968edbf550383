"""What must hold for any data: a slow reference, limits, symmetries, and refusals."""

import dataclasses
import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from natwise.structure import LinearCorEx, TCorEx, make_periods, select_smoothness
from natwise.structure.tcorex import _objective, study
from natwise.structure.tcorex._baselines import time_graphical_lasso
from natwise.structure.tcorex._changes import DENSE_UP_TO, PrecisionDifference
from natwise.structure.tcorex._estimator import _rows
from natwise.structure.tcorex._lbfgs import LBFGS
from natwise.structure.tcorex._objective import TemporalObjective, TemporalPenalty
from natwise.structure.tcorex._periods import Standardization, distance_weights
from natwise.structure.tcorex._synthetic import sample_periods, smooth_change, sudden_change
from natwise.testing import check_bad_input, check_result

COUNTS = np.array([6, 5, 7, 6])


@pytest.fixture(scope="module")
def series():
    """Return 4 periods of 20 samples of 12 variables; the model changes in the middle."""
    return sample_periods(sudden_change(4, 12, 3, random_state=0), 20, random_state=0)


def problem(gamma, weighted, n_features=40, counts=COUNTS, seed=0):
    """Return standardised samples, their weights, rows and random weights of 3 factors."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((counts.sum(), n_features)) @ rng.standard_normal((n_features, n_features))
    period = np.repeat(np.arange(len(counts)), counts)
    window = distance_weights(counts, gamma)
    Z = Standardization.estimate(X, window).apply(X, period)
    window /= window.sum(axis=1, keepdims=True)
    W = torch.from_numpy(0.2 * rng.standard_normal((len(counts), 3, n_features)))
    return Z, window, _rows(Z, counts, window, weighted), W


def slow_bound(S, S_own, w):
    """Return O_t from second-moment matrices, everything written out."""
    identity = torch.eye(len(w), dtype=w.dtype)
    z2 = (w @ S @ w.T).diagonal() + 1
    R = (w @ S) / torch.sqrt(torch.outer(z2, S.diagonal()))
    r = (R**2 / (1 - R**2)).sum(0)
    B = R / (1 - R**2) / (1 + r) / torch.sqrt(z2)[:, None] * torch.sqrt(S.diagonal())
    residual = S_own.diagonal() - 2 * (B * (w @ S_own)).sum(0) + (B * ((w @ S_own @ w.T + identity) @ B)).sum(0)
    return 0.5 * torch.log(residual).sum() + 0.5 * torch.log(z2).sum(), R


def slow_objective(Z, window, W, weighted, penalty, eps):
    Z, window = torch.from_numpy(Z), torch.from_numpy(window)
    period = np.repeat(np.arange(len(COUNTS)), COUNTS)
    noise = eps**2 * torch.eye(Z.shape[1], dtype=Z.dtype)
    total, R = 0.0, []
    for t, w in enumerate(W):
        S = (1 - eps**2) * Z.T @ torch.diag(window[t]) @ Z + noise
        own = Z[period == t]
        S_own = S if weighted else (1 - eps**2) * own.T @ own / len(own) + noise
        bound, R_t = slow_bound(S, S_own, w)
        total = total + bound
        R.append(R_t)
    M = W if penalty.on == "weights" else -0.5 * torch.log(1 - torch.stack(R) ** 2)
    change, s = M[1:] - M[:-1], penalty.smoothing
    cost = penalty.l1 * (torch.sqrt(change**2 + s**2) - s).sum() + penalty.l2 * (change**2).sum()
    return (total + cost) / (len(W) * Z.shape[1])


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.36])
@pytest.mark.parametrize("penalty", [TemporalPenalty(l1=0.2), TemporalPenalty(l1=0.1, l2=0.3, on="mutual_info")])
def test_objective_and_gradient_against_the_slow_reference(gamma, weighted, eps, penalty, monkeypatch):
    monkeypatch.setitem(_objective._BLOCK_ELEMENTS, "cpu", 12 * 16)  # three blocks of variables
    Z, window, rows, W = problem(gamma, weighted)
    gradient = torch.full_like(W, np.nan)
    value = TemporalObjective(*rows, penalty, eps)(W, gradient)
    W.requires_grad_()
    expected = slow_objective(Z, window, W, weighted, penalty, eps)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected_gradient = torch.autograd.grad(expected, W)[0]
    assert_allclose(gradient, expected_gradient, atol=2e-5 * float(expected_gradient.abs().max()))


@pytest.mark.parametrize("eps", [0.0, 0.36])
def test_noise_free_objective_is_the_average_of_the_noisy_one(eps):
    """Each sample is seen with 10,000 draws of the noise, so that means over samples are means over the noise."""
    Z, window, rows, W = problem(0.5, False, n_features=6, counts=np.array([4, 4]))
    W = W[:, :2]
    bounds, _ = TemporalObjective(*rows, TemporalPenalty(), eps).evaluate(W, torch.empty_like(W))
    rng, repeats, noisy = np.random.default_rng(0), 10_000, 0.0
    for t, w in enumerate(W.numpy()):
        x = np.sqrt(1 - eps**2) * np.tile(Z, (repeats, 1)) + eps * rng.standard_normal((repeats * len(Z), 6))
        z = x @ w.T + rng.standard_normal((len(x), 2))
        alpha = np.tile(window[t], repeats) / repeats
        z2, x2 = alpha @ z**2, alpha @ x**2
        R = (alpha[:, None] * z).T @ x / np.sqrt(np.outer(z2, x2))
        B = R / (1 - R**2) / (1 + (R**2 / (1 - R**2)).sum(0)) / np.sqrt(z2)[:, None] * np.sqrt(x2)
        own = np.tile(np.repeat([0, 1], 4) == t, repeats)
        noisy += 0.5 * np.log(((x - z @ B)[own] ** 2).mean(0)).sum() + 0.5 * np.log(z2).sum()
    assert float(bounds.sum()) == pytest.approx(noisy, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_finds_the_minimum_of_rosenbrock(dtype):
    def objective(x, gradient):
        x = x.detach().double().clone().requires_grad_()
        value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        gradient.copy_(torch.autograd.grad(value, x)[0])
        return value.detach()

    weights = torch.full((6,), -0.5, dtype=dtype)
    lbfgs = LBFGS(objective, weights)
    values = [lbfgs.value]
    while len(values) < 300 and lbfgs.step():
        values.append(lbfgs.value)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-6
    assert_allclose(weights, np.ones(6), atol=1e-2)
    assert lbfgs.n_evaluations < 2 * len(values)


def test_one_period_is_linear_corex(series):
    X = series[0][:40]
    model, linear = TCorEx(3, random_state=0).fit(X), LinearCorEx(3, random_state=0).fit(X)
    assert model.tc_[0] == pytest.approx(linear.tc_, rel=0.01)
    n = len(X)
    assert_allclose(
        model.covariances_[0] * (n - 1) / n, linear.covariance_, atol=0.03 * np.abs(linear.covariance_).max()
    )


def test_without_ties_the_periods_are_problems_of_their_own():
    _, _, rows, W = problem(0.0, False)
    together = TemporalObjective(*rows, TemporalPenalty()).evaluate(W, torch.empty_like(W))[0]
    start = 0
    for t, count in enumerate(COUNTS):
        Z = rows[0].X[t, :count]
        alone = _rows(Z.numpy(), COUNTS[t : t + 1], np.full((1, count), 1 / count), False)
        w = W[t : t + 1]
        assert_allclose(TemporalObjective(*alone, TemporalPenalty()).evaluate(w, torch.empty_like(w))[0], together[t])
        start += count


def test_with_gamma_one_all_periods_see_the_same():
    _, _, rows, W = problem(1.0, True)
    W = W[:1].repeat(len(W), 1, 1)
    bounds, _ = TemporalObjective(*rows, TemporalPenalty()).evaluate(W, torch.empty_like(W))
    assert_allclose(bounds, bounds[0].expand_as(bounds))


def test_a_large_penalty_makes_all_weights_equal(series):
    X, times = series
    free, tied = (TCorEx(3, l1=l1, gamma=1.0, random_state=0).fit(X, times).components_ for l1 in (0.0, 1000.0))
    assert np.abs(np.diff(tied, axis=0)).max() < 0.02 < np.abs(np.diff(free, axis=0)).max()


def test_time_can_run_backwards_and_rows_in_any_order(series):
    X, times = series
    settings_ = {"l1": 0.1, "gamma": 0.3, "tol": 1e-5, "dtype": "float64", "random_state": 0}
    model = TCorEx(3, **settings_).fit(X, times)
    order = np.random.default_rng(0).permutation(len(X))
    again = TCorEx(3, **settings_).fit(X[order], times[order])
    assert_allclose(again.tc_, model.tc_, rtol=1e-2)
    backwards = TCorEx(3, **settings_).fit(X, -times)
    assert_allclose(backwards.tc_[::-1], model.tc_, rtol=1e-2)
    assert_allclose(backwards.change_scores()[::-1], model.change_scores(), rtol=0.05)


def test_times_of_any_kind(series):
    X, times = series
    days = pd.date_range("2024-01-31", periods=4, freq="D")
    reference = TCorEx(3, tol=1e-3, random_state=0).fit(X, times)
    for labels in (days[times], np.array(["a", "b", "c", "d"])[times], 0.5 * times):
        model = TCorEx(3, tol=1e-3, random_state=0).fit(X, times=labels)
        assert_array_equal(model.covariances_, reference.covariances_)
        assert model.score(X, labels) == reference.score(X, times)
        assert_array_equal(model.transform(X, labels), reference.transform(X, times))
    assert_array_equal(reference.transform(X), reference.transform(X, np.full(len(X), 3)))


def test_periods_of_unequal_length_missing_values_and_constant_columns(series):
    X, times = series
    kept = np.r_[0:2, 20:40, 40:51, 60:80]
    X, times = X[kept].copy(), times[kept]
    X[:, 4] = 7.1
    X[times == 1, 5] = 3.3
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    X[0] = np.nan
    model = TCorEx(3, gamma=0.1, max_iter=20, tol=1e-3, missing_values=np.nan, random_state=0).fit(X, times)
    marked = clone(model).set_params(missing_values=-99).fit(np.nan_to_num(X, nan=-99), times)
    assert_array_equal(model.covariances_, marked.covariances_)
    for value in (model.covariances_, model.change_scores(), model.feature_change_scores(), model.score(X, times)):
        assert np.isfinite(value).all()
    assert (model.covariances_[:, 4, 4] < 1e-15).all()
    assert np.isfinite([covariance.logdet() for covariance in model.low_rank_]).all()


def test_fitted_attributes(series):
    X, times = series
    model = TCorEx(3, l1=0.1, gamma=0.2, random_state=0).fit(X, times)
    assert model.covariances_.shape == (4, 12, 12)
    assert model.labels_.shape == (4, 12)
    assert model.components_.shape == model.mutual_info_.shape == (4, 3, 12)
    assert_array_equal(model.labels_, model.mutual_info_.argmax(axis=1))
    scores = model.feature_change_scores()
    assert scores.shape == (3, 12)
    assert_allclose(np.linalg.norm(scores, axis=1), model.change_scores())
    correlation = [c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for c in model.covariances_]
    change = np.linalg.inv(correlation[1]) - np.linalg.inv(correlation[0])
    assert model.change_scores()[0] == pytest.approx(np.linalg.norm(change))
    assert model.change_scores("spectral")[0] == pytest.approx(np.linalg.norm(change, 2))
    likelihood = [
        model.low_rank_[t].log_likelihood(x - model.location_[t]) for x, t in zip(X[:, None], times, strict=True)
    ]
    assert model.score(X, times) == pytest.approx(np.mean(likelihood))
    covariances = model.covariances_
    assert model.fit(X * 2, times).covariances_ is not covariances


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.sampled_from([6, DENSE_UP_TO + 6]), st.integers(0, 1000), st.floats(1e-9, 1))
def test_precision_differences_against_dense_matrices(n_components, n_features, seed, size):
    rng = np.random.default_rng(seed)
    A = 0.5 * rng.standard_normal((n_components, n_features)) / np.sqrt(n_components)
    B = A + size * rng.standard_normal(A.shape) / 10
    models = [(a, rng.uniform(0.3, 1) + np.zeros(n_features)) for a in (A, B)]
    before, after = (np.linalg.inv(a.T @ a + np.diag(d)) for a, d in models)
    change = PrecisionDifference(*models)
    assert_allclose(change.row_norms(), np.linalg.norm(after - before, axis=1), rtol=1e-6, atol=1e-10)
    assert change.frobenius() == pytest.approx(np.linalg.norm(after - before), rel=1e-6, abs=1e-10)
    assert change.spectral() == pytest.approx(np.linalg.norm(after - before, 2), rel=1e-6, abs=1e-10)
    assert PrecisionDifference(models[0], models[0]).frobenius() < 1e-12


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_every_index_gets_a_period(n, window, stride):
    window = min(n, window)
    periods = make_periods(n, window, min(stride, window))
    assert periods.shape == (n,)
    assert periods[0] == 0
    assert set(np.diff(periods)) <= {0, 1}


@pytest.mark.parametrize("change", [sudden_change, smooth_change])
def test_synthetic_models_are_proper(change):
    models = change(6, 20, 4, random_state=1)
    assert all(np.linalg.eigvalsh(model.covariance()).min() > 0 for model in models)
    moved = [not np.array_equal(a.parent, b.parent) for a, b in pairwise(models)]
    assert moved == [False, False, True, False, False] if change is sudden_change else sum(moved) > 1
    X, times = sample_periods(models, 2000, random_state=1)
    assert_allclose(np.cov(X[times == 0].T), models[0].covariance(), atol=1.5)


def test_time_graphical_lasso_without_penalties_is_the_sample_covariance():
    rng = np.random.default_rng(0)
    X, times = rng.standard_normal((200, 4)), np.repeat([0, 1], 100)
    covariances = time_graphical_lasso(X, times, 0.0, 0.0, n_iter=200)
    assert_allclose(covariances[0], X[:100].T @ X[:100] / 100, atol=1e-6)
    tied = time_graphical_lasso(X, times, 0.0, 10.0, n_iter=200)
    assert_allclose(tied[0], tied[1], atol=1e-3)


def test_selection(series):
    X, times = series
    result = select_smoothness(X, times, 3, l1=(0.1,), gamma=(0.1, 0.9), n_splits=2, tol=1e-4, random_state=0)
    check_result(result)
    best = result.to_frame()["score"].idxmax()
    assert best == f"l1={result.scalars['l1']:g} gamma={result.scalars['gamma']:g}"
    assert result.scalars["gamma"] == 0.1


def test_stopping_early_is_said(series):
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        TCorEx(3, max_iter=2, random_state=0).fit(*series)


def fit_and_compare(X, times, norm="frobenius", **parameters):
    return TCorEx(**{"random_state": 0, **parameters}).fit(X, times).change_scores(norm)


def test_bad_input(series):
    X, times = series
    with_nan = np.where(np.eye(*X.shape) == 1, np.nan, X)
    unsortable = np.array([None, *times[1:]], dtype=object)
    cases = [
        ({"times": times[:-1]}, ValueError, "same length"),
        ({"times": np.c_[times, times]}, ValueError, "(n_samples,)"),
        ({"times": [[1, 2], *times[1:]]}, ValueError, "regular array"),
        ({"times": unsortable}, TypeError, "sortable"),
        ({"times": np.where(times == 0, np.nan, times)}, ValueError, "NaN"),
        ({"times": np.r_[9, times[1:]]}, ValueError, "at least 2 samples"),
        ({"n_components": 13}, ValueError, "<= 12"),
        ({"n_components": 0}, ValueError, ">= 1"),
        ({"n_components": 2.0}, TypeError, "integer"),
        ({"X": with_nan}, ValueError, "NaN"),
        ({"X": with_nan, "missing_values": -1}, ValueError, "NaN"),
        ({"X": np.where(np.isnan(with_nan), np.inf, X)}, ValueError, "no inf"),
        ({"X": np.ones_like(X)}, ValueError, "varies"),
        ({"X": X * np.where(np.arange(12) == 3, 1e200, 1)}, ValueError, "overflow in column 3"),
        ({"times": np.ma.masked_equal(times, 0)}, ValueError, "masked"),
        ({"weighted_objective": "yes"}, TypeError, "True or False"),
        ({"X": np.where(np.arange(12) == 3, np.nan, X), "missing_values": np.nan}, ValueError, "column 3"),
        ({"l1": -0.1}, ValueError, ">= 0"),
        ({"l2": -1}, ValueError, ">= 0"),
        ({"l1": "much"}, TypeError, "number"),
        ({"gamma": 1.5}, ValueError, "<= 1"),
        ({"gamma": -0.5}, ValueError, ">= 0"),
        ({"gamma": np.nan}, ValueError, "finite"),
        ({"max_iter": 0}, ValueError, ">= 1"),
        ({"tol": -1}, ValueError, ">= 0"),
        ({"penalty": "weight"}, ValueError, "'weights'"),
        ({"dtype": "float16"}, ValueError, "float32"),
        ({"device": "abacus"}, ValueError, "device must be like"),
        ({"missing_values": "none"}, TypeError, "number"),
        ({"norm": "nuclear"}, ValueError, "spectral"),
    ]
    check_bad_input(fit_and_compare, cases, X=X, times=times)
    model = TCorEx(random_state=0).fit(X, times)
    other = [
        ({"times": times + 1}, ValueError, "seen in fit, got 4"),
        ({"times": times.astype("M8[D]")}, TypeError, "like those of fit, int64, got datetime64"),
    ]
    check_bad_input(model.score, other, X=X)
    check_bad_input(model.transform, [({"times": times[1:]}, ValueError, "same length")], X=X)
    check_bad_input(
        make_periods,
        [
            ({"n": 0}, ValueError, ">= 1"),
            ({"window": 11}, ValueError, "<= 10"),
            ({"stride": "quarter"}, ValueError, "'half'"),
            ({"stride": 6}, ValueError, "<= 5"),
        ],
        n=10,
        window=5,
        stride="full",
    )
    check_bad_input(
        select_smoothness,
        [
            ({"n_splits": 1}, ValueError, ">= 2"),
            ({"l1": ()}, ValueError, "none"),
            ({"l1": 0.3}, TypeError, "numbers to try"),
            ({"gamma": (0.5, 2)}, ValueError, "<= 1"),
            ({"times": np.r_[9, 9, times[2:]]}, ValueError, "at least 4 samples"),
            ({"times": times[1:]}, ValueError, "same length"),
            ({"X": X[0]}, ValueError, "shape"),
            ({"gamma": (-1.0,)}, ValueError, ">= 0"),
        ],
        X=X,
        times=times,
    )
    with pytest.raises(ValueError, match="times must be given once"):
        TCorEx().fit(X, times, times=times)


@pytest.mark.parametrize("claim", ["sudden-change", "change-point", "portfolio"])
def test_study(claim, monkeypatch, request):
    """On tiny data: the claims themselves are measured by `natwise reproduce`."""
    monkeypatch.setitem(study.SYNTHETIC, "ci", {"n_periods": 3, "n_features": 8, "n_components": 2})
    monkeypatch.setitem(study.GRID, "ci", {"l1": (0.1,), "gamma": (0.1,)})
    monkeypatch.setitem(study.N_SERIES, "ci", 1)
    if claim == "portfolio":
        request.getfixturevalue("local_data")(study.STOCKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = study.run(claim, scale="ci", seed=0)
    check_result(dataclasses.replace(result))
    assert all(np.isfinite(value) for value in result.scalars.values())
    study.figure(claim, result).canvas.draw()


@pytest.mark.parametrize(("shared", "own"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (1e4, 0.0)])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_means_are_drawn_to_what_noise_explains(shared, own, gamma):
    rng, periods = np.random.default_rng(0), np.repeat(np.arange(5), 12)
    truth = shared * rng.standard_normal(60) + own * rng.standard_normal((5, 60))
    X = truth[periods] + rng.standard_normal((60, 60))
    X[:, 0] = 7.0
    X[::7, 1] = np.nan
    found = Standardization.estimate(X, distance_weights(np.full(5, 12), gamma))
    assert_allclose(found.location[:, 0], 7.0, rtol=1e-12)
    loss, plain = (((means - truth)[:, 1:] ** 2).mean() for means in (found.location, found.mean))
    # windows that mix periods of different means are biased, which shrinking cannot see
    assert loss <= (1.15 if own or gamma == 1.0 else 0.8) * plain
    if shared == own == 0:
        assert loss <= 0.07 * plain
