"""What must hold for any data: symmetries, identities, exact recovery, and refusals."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score

from natwise.structure import LinearCorEx, corex_moments, select_n_components
from natwise.structure.linear_corex._annealing import random_weights
from natwise.structure.linear_corex._ascent import Ascent
from natwise.testing import same_bits


def standardised(n_samples, n_features, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) @ rng.standard_normal((n_features, n_features))
    return (X - X.mean(axis=0)) / X.std(axis=0)


def weights_for(X, n_components, u=0.49, seed=1, eps=0.0):
    W = np.random.default_rng(seed).standard_normal((n_components, X.shape[1]))
    size = (1 - eps**2) * ((X @ W.T) ** 2).mean(axis=0) + eps**2 * (W**2).sum(axis=1)
    return W * np.sqrt(u / size)[:, None]


def modular(loadings, parents, n_samples=300, seed=0):
    """Return data whose sample correlation matrix is exactly block-wise diagonal plus rank one, and that matrix."""
    same = parents[:, None] == parents
    S = np.where(same, np.outer(loadings, loadings), 0.0)
    np.fill_diagonal(S, 1)
    Z = np.random.default_rng(seed).standard_normal((n_samples, len(S)))
    white = np.linalg.svd(Z - Z.mean(axis=0), full_matrices=False)[0] * np.sqrt(n_samples)
    return white @ np.linalg.cholesky(S).T, S


def slow_objective(X, weights, eps):
    """Return -TC variable by variable from E[(x_i - mu_i)^2], with the correlation matrix written out."""
    n_features = X.shape[1]
    S = (1 - eps**2) * X.T @ X / len(X) + eps**2 * np.eye(n_features)
    total = 0.0
    u = np.array([w @ S @ w for w in weights])
    ry = weights @ S @ weights.T
    np.fill_diagonal(ry, 1)
    for i in range(n_features):
        R = np.array([w @ S[:, i] for w in weights])
        b = R / (1 - R**2)
        coefficients = b / (1 + (R * b).sum())
        total += 0.5 * np.log(1 - 2 * coefficients @ R + coefficients @ ry @ coefficients)
    return total - 0.5 * np.log(1 - u).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(4, 9), st.sampled_from([0.0, 0.36]), st.integers(0, 100))
def test_objective_is_the_definition_and_the_gradient_its_slope(n_components, n_features, eps, seed):
    X = standardised(12, n_features, seed)
    weights = weights_for(X, n_components, seed=seed, eps=eps)
    assert corex_moments(X, weights, eps)["TC"] == pytest.approx(-slow_objective(X, weights, eps), abs=1e-9)
    S = (1 - eps**2) * X.T @ X / len(X) + eps**2 * np.eye(n_features)
    gradient = Ascent(torch.from_numpy(X), torch.from_numpy(weights.copy()), eps).gradient.numpy() @ S
    change = np.random.default_rng(seed).standard_normal(weights.shape)
    step = 1e-5
    numeric = slow_objective(X, weights + step * change, eps) - slow_objective(X, weights - step * change, eps)
    assert (gradient * change).sum() == pytest.approx(numeric / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_goes_up_and_keeps_its_books(eps, dtype):
    X = torch.from_numpy(standardised(30, 40)).to(dtype)
    ascent = Ascent(X, random_weights(X, 3, np.random.default_rng(0)), eps)
    for _ in range(25):
        before = ascent.tc
        assert ascent.step()
        assert ascent.tc >= before
    exact = corex_moments(X.numpy(), ascent.weights.numpy(), eps)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert ascent.tc == pytest.approx(exact["TC"], rel=tolerance)
    np.testing.assert_allclose(ascent.u, exact["uj"], rtol=tolerance)


def test_no_weights_explain_nothing_and_independent_data_hold_nothing():
    X = standardised(50, 6)
    assert corex_moments(X, np.zeros((2, 6)))["TC"] == 0
    white = np.linalg.qr(X)[0] * np.sqrt(50)
    rng = np.random.default_rng(0)
    best = max(corex_moments(white, weights_for(white, 2, rng.uniform(0, 1), seed))["TC"] for seed in range(200))
    assert best < 1e-12


def test_symmetries_of_the_objective():
    X = standardised(20, 8)
    weights = weights_for(X, 3)
    moments = corex_moments(X, weights)
    order, signs = np.random.default_rng(0).permutation(8), np.array([1, -1] * 4)
    moved = corex_moments(X[:, order] * signs, weights[:, order] * signs)
    assert moved["TC"] == pytest.approx(moments["TC"])
    np.testing.assert_allclose(moved["rho"], moments["rho"][:, order] * signs)
    turned = corex_moments(X, -weights[[2, 0, 1]])
    assert turned["TC"] == pytest.approx(moments["TC"])
    np.testing.assert_allclose(turned["TCs"], moments["TCs"][[2, 0, 1]])


def test_units_only_scale_the_covariance():
    X, _ = modular(np.linspace(0.5, 0.9, 10), np.arange(10) % 2)
    scale, shift = np.linspace(0.1, 50, 10), np.linspace(-9, 4, 10)
    a = LinearCorEx(2, random_state=0, dtype="float64").fit(X)
    b = LinearCorEx(2, random_state=0, dtype="float64").fit(X * scale + shift)
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-6)
    np.testing.assert_allclose(b.covariance_, a.covariance_ * np.outer(scale, scale), rtol=1e-5)
    np.testing.assert_allclose(b.location_, shift, atol=1e-9)


@pytest.mark.parametrize(("n_features", "tc"), [(3, 0.1751), (10, 1.2860), (200, 42.2628)])
def test_one_factor_is_recovered_exactly(n_features, tc):
    X, S = modular(np.full(n_features, 0.6), np.zeros(n_features, dtype=int))
    model = LinearCorEx(1, random_state=0).fit(X)
    assert model.tc_ == pytest.approx(tc, abs=1e-3)
    assert model.tc_ == pytest.approx(-0.5 * np.linalg.slogdet(S)[1], abs=1e-4)
    assert np.abs(model.covariance_ - S).max() < 1e-3


def test_modules_are_recovered_exactly():
    parents = np.arange(30) % 3
    rho = np.random.default_rng(0).uniform(0.5, 0.9, 30) * np.where(np.arange(30) % 4 == 0, -1, 1)
    X, S = modular(rho, parents)
    model = LinearCorEx(3, random_state=0, dtype="float64", tol=1e-9).fit(X)
    assert model.tc_ == pytest.approx(-0.5 * np.linalg.slogdet(S)[1], abs=1e-5)
    assert np.abs(model.covariance_ - S).max() < 1e-3
    assert adjusted_rand_score(parents, model.labels_) == 1
    moments = corex_moments(X, model.components_)
    found = np.abs(moments["rho"]).max(axis=0)
    np.testing.assert_allclose(found, np.abs(rho), atol=1e-3)
    assert moments["TC"] == pytest.approx(moments["TC_no_overlap"], abs=1e-4)
    for j, w in enumerate(model.components_):  # the optimum in closed form
        block = np.flatnonzero(model.labels_ == j)
        w_exact = np.linalg.solve(S[np.ix_(block, block)], rho[block])
        np.testing.assert_allclose(np.abs(w[block]), np.abs(w_exact), atol=2e-3)
        assert moments["uj"][j] == pytest.approx(rho[block] @ w_exact, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_one_factor_identities(seed):
    X = standardised(20, 6, seed)
    moments = corex_moments(X, weights_for(X, 1, seed=seed))
    np.testing.assert_allclose(moments["Qi"], moments["Si"] + moments["Si"] ** 2)
    assert moments["TC"] == pytest.approx(moments["MI"].sum() - moments["I(Y_j ; X)"].sum())
    np.testing.assert_allclose(moments["rhoinvrho"] / (1 + moments["Si"]), moments["rho"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_information_identities(n_components, seed):
    X = standardised(15, 8, seed)
    moments = corex_moments(X, weights_for(X, n_components, 0.8, seed))
    A = moments["rhoinvrho"] / (1 + moments["Si"])
    assert ((A**2).sum(axis=0) < 1).all()
    assert moments["TC_no_overlap"] <= moments["TCs"].sum() + 1e-12
    assert moments["additivity"] == pytest.approx(moments["TCs"].sum() - moments["TC_direct"])
    assert (moments["MI"] >= 0).all()


def test_noise_columns_do_not_disturb_the_rest():
    rng = np.random.default_rng(0)
    parents = np.repeat(np.arange(3), 8)
    X = rng.standard_normal((200, 3))[:, parents] + 0.8 * rng.standard_normal((200, 24))
    noise = rng.standard_normal((200, 20))
    model = LinearCorEx(3, random_state=0).fit(np.hstack([X, noise]))
    assert adjusted_rand_score(parents, model.labels_[:24]) == 1
    assert LinearCorEx(3, random_state=0).fit(noise).tc_ < 1


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_agree_and_repeat(seed):
    parents = np.repeat(np.arange(4), 6)
    rng = np.random.default_rng(9)
    X = rng.standard_normal((80, 4))[:, parents] + rng.standard_normal((80, 24))
    model = LinearCorEx(4, random_state=seed).fit(X)
    again = LinearCorEx(4, random_state=seed).fit(X)
    np.testing.assert_array_equal(model.components_, again.components_)
    np.testing.assert_array_equal(model.fit(X).components_, again.components_, err_msg="a refit starts anew")
    assert model.tc_ == pytest.approx(LinearCorEx(4, random_state=100).fit(X).tc_, rel=1e-4)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("gaussianize", ["standard", "outliers", "empirical", None])
def test_likelihood_is_that_of_the_dense_gaussian(gaussianize, overlap):
    X = standardised(40, 6) if gaussianize is None else 5 * standardised(40, 6) + 3
    model = LinearCorEx(2, gaussianize=gaussianize, overlap=overlap, random_state=0).fit(X)
    values = model._gaussianizer.transform(X) if gaussianize == "empirical" else X
    dense = multivariate_normal(model.location_, model.covariance_).logpdf(values)
    np.testing.assert_allclose(model.score_samples(X), dense, rtol=1e-8)
    assert model.score(X) == pytest.approx(dense.mean())
    np.testing.assert_allclose(model.precision_ @ model.covariance_, np.eye(6), atol=1e-7)
    assert model.transform(X).shape == (40, 2)
    assert model.inverse_transform(model.transform(X)).shape == X.shape


def test_factors_have_the_second_moment_that_the_data_explain():
    X = standardised(50, 12)
    model = LinearCorEx(3, random_state=0).fit(X)
    u = corex_moments(X, model.components_)["uj"]
    np.testing.assert_allclose((model.transform(X) ** 2).mean(axis=0), u)
    assert (np.diff(model.tcs_) <= 0).all()
    assert model.n_iter_ == len(model.history_)
    assert model.history_[-1] == pytest.approx(model.tc_, rel=1e-4)


def test_missing_values_by_nan_and_by_number_agree():
    X = 3 * standardised(60, 8) + 1
    X[::7, 2] = np.nan
    by_nan = LinearCorEx(2, missing_values=np.nan, random_state=0).fit(X)
    by_number = LinearCorEx(2, missing_values=-99, random_state=0).fit(np.where(np.isnan(X), -99, X))
    np.testing.assert_array_equal(by_nan.components_, by_number.components_)
    assert np.isfinite(by_nan.transform(X[:7])).all()
    assert np.isfinite(by_nan.score(X))
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = LinearCorEx(2, missing_values=np.nan, random_state=0).fit(frame)
    assert list(model.feature_names_in_) == list("abcdefgh")


def test_constant_columns_carry_nothing():
    X = 3 * standardised(40, 6) + 1
    X[:, 4] = 0.1
    model = LinearCorEx(2, random_state=0).fit(X)
    assert model.mutual_info_[:, 4].max() == 0
    assert model.covariance_[4, 4] == pytest.approx(0, abs=1e-12)
    assert np.isfinite(model.score(X))
    np.testing.assert_allclose(model.inverse_transform(model.transform(X))[:, 4], 0.1)


def test_refitting_forgets_the_dense_matrices():
    model = LinearCorEx(1, random_state=0).fit(standardised(30, 4))
    old = model.covariance_
    model.fit(standardised(30, 5))
    assert model.covariance_.shape == (5, 5)
    assert old.shape == (4, 4)


X = standardised(20, 4)
WITH_NAN = np.where(np.arange(80).reshape(20, 4) == 5, np.nan, X)
BAD_FITS = [
    ({}, WITH_NAN, ValueError, "NaN"),
    ({}, np.where(np.isnan(WITH_NAN), np.inf, X), ValueError, "no inf, got inf in row 1, column 1"),
    ({"missing_values": -1}, WITH_NAN, ValueError, "NaN"),
    ({"missing_values": np.nan}, np.where(np.arange(4) == 2, np.nan, X), ValueError, "none in column 2"),
    ({}, X[:1], ValueError, "minimum of 2 is required"),
    ({}, X[:, :1], ValueError, "minimum of 2 is required"),
    ({}, X[0], ValueError, "Expected 2D array"),
    ({}, X[None], ValueError, "dim 3"),
    ({"missing_values": np.nan}, np.where(np.isnan(WITH_NAN), np.inf, X), ValueError, "no inf, got inf"),
    ({}, [["a", "b"], ["c", "d"]], ValueError, "could not convert string"),
    ({}, X.astype(str), TypeError, "X must be numeric, got dtype <U"),
    ({}, X.astype("datetime64[s]"), TypeError, "X must hold no times and no records, got dtype datetime64"),
    ({}, np.ma.masked_greater(X, 1), ValueError, "X must have no masked values, got"),
    ({}, np.ones((5, 3)), ValueError, "must have a column that varies"),
    ({}, 1e-30 * standardised(20, 3), ValueError, "must have a standard deviation above"),
    ({}, X * 1e200, ValueError, "finite variances"),
    ({"n_components": 0}, X, ValueError, "n_components must be >= 1"),
    ({"n_components": 2.0}, X, TypeError, "n_components must be an integer"),
    ({"n_components": 5}, X, ValueError, "n_components must be at most n_features = 4, got 5"),
    ({"anneal": "no"}, X, TypeError, "anneal must be True or False"),
    ({"overlap": 1}, X, TypeError, "overlap must be True or False"),
    ({"gaussianize": "normal"}, X, ValueError, "gaussianize must be one of"),
    ({"dtype": "float16"}, X, ValueError, "dtype must be one of"),
    ({"tol": -1}, X, ValueError, "tol must be >= 0"),
    ({"max_iter": 0}, X, ValueError, "max_iter must be >= 1"),
    ({"missing_values": "?"}, X, TypeError, "missing_values must be a number"),
    ({"device": "abacus"}, X, ValueError, "device must be like"),
    ({"random_state": "lucky"}, X, TypeError, "random_state must be"),
]


@pytest.mark.parametrize(("parameters", "data", "error", "message"), BAD_FITS)
def test_bad_fits(parameters, data, error, message):
    with pytest.raises(error, match=message):
        LinearCorEx(**parameters).fit(data)


COPIED = np.hstack([X, -2 * X[:, :1] + 1e-6 * X[:, 1:2]])


@pytest.mark.parametrize(
    ("parameters", "data", "category", "message"),
    [
        ({"max_iter": 1}, X, ConvergenceWarning, "max_iter=1"),
        ({"max_iter": 1, "overlap": True}, X, ConvergenceWarning, "max_iter=1"),
        ({"missing_values": -1}, X, UserWarning, "missing_values=-1 does not occur"),
        ({}, COPIED, UserWarning, "nearly identical columns, such as 0 and 4"),
        ({"gaussianize": None}, 7 * X, UserWarning, "gaussianize=None expects columns of second moment 1"),
        ({"verbose": 1}, np.vstack([np.tile(X, (4, 1)), [[99, 0, 0, 0]]]), UserWarning, "beyond 6 standard deviations"),
    ],
)
def test_doubtful_fits_warn_once_and_stay_finite(parameters, data, category, message):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = LinearCorEx(random_state=0, **parameters).fit(data)
    assert [(w.category, message in str(w.message)) for w in seen] == [(category, True)]
    assert all(map(np.isfinite, (model.tc_, model.score(data), model.covariance_.sum(), model.components_.sum())))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearCorEx().transform(X), NotFittedError, "not fitted"),
        (lambda: LinearCorEx().score(X), NotFittedError, "not fitted"),
        (lambda: LinearCorEx().inverse_transform(X), NotFittedError, "not fitted"),
        (lambda: LinearCorEx().fit(X).transform(X[:, :3]), ValueError, "3 features"),
        (lambda: LinearCorEx().fit(X).transform(WITH_NAN), ValueError, "NaN"),
        (lambda: LinearCorEx().fit(X).inverse_transform(X), ValueError, "X must have shape"),
        (lambda: corex_moments(X, np.ones((2, 3))), ValueError, "weights must have shape"),
        (lambda: corex_moments(X, np.ones((2, 4)) * 9), ValueError, "must satisfy"),
        (lambda: corex_moments(X, np.zeros((2, 4)), eps=2), ValueError, "eps must be"),
        (lambda: corex_moments(WITH_NAN, np.zeros((2, 4))), ValueError, "X must be finite"),
        (lambda: corex_moments(X, np.zeros((0, 4))), ValueError, "weights must hold at least one row"),
        (lambda: corex_moments(X[:0], np.zeros((2, 4))), ValueError, "X must hold at least one row"),
        (lambda: select_n_components(X[0]), ValueError, "X must have shape"),
        (lambda: select_n_components(X, 3), TypeError, "candidates must hold numbers to try, got 3"),
        (lambda: select_n_components(X, [2, 5]), ValueError, "candidates must be >= 1 and <= 4, got 5"),
        (lambda: select_n_components(X, []), ValueError, "at least one"),
        (lambda: select_n_components(X, [0]), ValueError, "candidates must be >= 1"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tiny_columns_that_are_taken_as_they_are_tell_nothing():
    model = LinearCorEx(gaussianize=None, random_state=0).fit(1e-6 * X)
    assert model.tc_ == pytest.approx(0, abs=1e-12)
    assert np.isfinite(model.components_).all()


def test_a_tensor_with_a_gradient_is_data_like_any_other():
    tensor = torch.from_numpy(X).requires_grad_()
    assert same_bits(
        LinearCorEx(random_state=0).fit(tensor).components_, LinearCorEx(random_state=0).fit(X).components_
    )


@pytest.mark.filterwarnings("ignore:X has nearly identical columns", "ignore:gaussianize=None expects")
def test_a_factor_may_vanish_altogether():
    """Two columns that are one direction but for a hair: the second factor's weights shrink to exactly nothing."""
    X = np.random.default_rng(0).normal(loc=100, size=(100, 2))
    model = LinearCorEx(gaussianize=None, random_state=0).fit(X)
    assert np.isfinite(model.components_).all()
    assert np.isfinite(model.tc_)
