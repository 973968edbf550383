"""Against the original: `golden.npz` holds inputs and outputs of the original implementation of linear CorEx.

Keys: ``moments_*`` (float64 moments, gradients and one accepted step), ``preprocess_*`` and ``fit_*`` (whole fits in
float32). They were produced by running its public release on these inputs.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from natwise.core.io import load_npz
from natwise.structure import LinearCorEx, corex_moments, select_n_components
from natwise.structure.linear_corex import _ascent, study
from natwise.structure.linear_corex._annealing import climb, compress, random_weights
from natwise.structure.linear_corex._gaussianize import Gaussianizer
from natwise.structure.linear_corex._moments import loadings
from natwise.structure.linear_corex._overlap import OverlapModel
from natwise.testing import check_estimator_contract

GOLDEN = load_npz(Path(__file__).parent / "golden.npz")
CASES = ("A", "B", "C")


def golden(case, key):
    return GOLDEN[f"moments_{case}_{key}"]


@pytest.mark.filterwarnings("ignore:X has nearly identical columns")
def test_contract():
    check_estimator_contract(LinearCorEx(), np.random.default_rng(0).standard_normal((40, 6)))


@pytest.mark.slow
@parametrize_with_checks(
    [
        LinearCorEx(gaussianize="empirical", missing_values=np.nan),
        LinearCorEx(gaussianize="outliers", anneal=False, dtype="float64"),
        LinearCorEx(gaussianize=None),
        LinearCorEx(overlap=True),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:X has nearly identical columns")
@pytest.mark.filterwarnings("ignore:gaussianize=None expects")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract_with_other_options(estimator, check):
    check(estimator)


@pytest.mark.parametrize("case", CASES)
def test_moments(case):
    moments = corex_moments(golden(case, "x"), golden(case, "ws"), float(golden(case, "eps")))
    keys = [key.removeprefix(f"moments_{case}_m_") for key in GOLDEN if key.startswith(f"moments_{case}_m_")]
    assert len(keys) == 20
    for key in set(keys) - {"TC_direct"}:
        np.testing.assert_allclose(moments[key], golden(case, f"m_{key}"), rtol=1e-8, atol=1e-10, err_msg=key)
    # the original forgets to sum I(Y_j ; X) over the factors
    np.testing.assert_allclose(
        moments["TC_direct"], moments["I(X_i ; Y)"].sum() - moments["I(Y_j ; X)"].sum(), rtol=1e-12
    )
    np.testing.assert_allclose(moments["Qi"] - moments["Si"] ** 2, moments["Qi-Si^2"], rtol=1e-8, atol=1e-12)
    assert {"Qi", *keys} == set(moments)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [3 * 2, 2**15])
def test_gradient_and_one_step(case, block, monkeypatch):
    monkeypatch.setattr(_ascent, "_BLOCK_ELEMENTS", block)
    monkeypatch.setattr(_ascent, "OVERSHOOT", np.inf)  # accept the original's step without a second trial
    X, eps = torch.from_numpy(golden(case, "x")), float(golden(case, "eps"))
    ascent = _ascent.Ascent(X, torch.from_numpy(golden(case, "ws").copy()), eps)
    G = ascent.gradient.numpy().copy()
    S = (1 - eps**2) * (X.T @ X / len(X)).numpy() + eps**2 * np.eye(X.shape[1])
    np.testing.assert_allclose(ascent.tc, golden(case, "m_TC"), rtol=1e-8)
    np.testing.assert_allclose(G, golden(case, "G"), atol=1e-8)
    np.testing.assert_allclose(G @ S, golden(case, "SigmaG"), atol=1e-8)
    np.testing.assert_allclose(G @ S, golden(case, "dnegTC_dW"), atol=1e-8)
    assert ascent.step()
    np.testing.assert_allclose(ascent.weights.numpy(), golden(case, "ws_next"), atol=1e-8)
    np.testing.assert_allclose(ascent.tc, golden(case, "TC_next"), rtol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_covariance_of_given_weights(case):
    eps = float(golden(case, "eps"))
    A = loadings(corex_moments(golden(case, "x"), golden(case, "ws"), eps))
    correlation = A.T @ A / (1 - eps**2)  # the original takes the noise out; fitted models have none
    np.fill_diagonal(correlation, 1)
    np.testing.assert_allclose(correlation, golden(case, "cov_ns"), atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_overlap_moments_and_one_update(case):
    weights = torch.from_numpy(golden(case, "syn_ws"))
    X = torch.from_numpy(golden(case, "x"))
    model = OverlapModel.of(X, weights)
    updated = model.improve(weights)
    found = {
        "cy": model.factor_covariance,
        "Y_j^2": model.factor_covariance.diagonal(),
        "X_i Y_j": model.covariance.T,
        "X_i Z_j": model.regression.T,
        "X_i^2 | Y": model.residual,
        "rho": model.correlation,
        "TC": torch.tensor(model.tc),
        "ws_next": updated,
        "TC_next": torch.tensor(OverlapModel.of(X, updated).tc),
    }
    for key, value in found.items():
        np.testing.assert_allclose(value, golden(case, f"syn_{key}"), atol=1e-8, err_msg=key)


@pytest.mark.parametrize("kind", ["standard", "outliers", "empirical"])
def test_gaussianize(kind):
    X = GOLDEN["preprocess_x"]
    fitted = Gaussianizer(kind, None).fit(X)
    Z = fitted.transform(X)
    np.testing.assert_allclose(Z, GOLDEN[f"preprocess_pre_{kind}"], atol=1e-10)
    np.testing.assert_allclose(fitted.inverse_transform(Z), X, atol=1e-8)
    np.testing.assert_allclose(fitted.transform(X[:3]), Z[:3], err_msg="rows are independent of one another")


def test_missing_values_are_filled_with_training_means():
    X = GOLDEN["preprocess_xm"]
    fitted = Gaussianizer("standard", np.nan).fit(X)
    np.testing.assert_allclose(fitted.transform(X), GOLDEN["preprocess_pre_missing_standard"], atol=1e-10)
    np.testing.assert_allclose(fitted.location_, GOLDEN["preprocess_missing_mean"])
    np.testing.assert_allclose(fitted.scale_, GOLDEN["preprocess_missing_std"])
    np.testing.assert_array_equal(fitted.transform(np.full((1, X.shape[1]), np.nan)), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("syn0", {}), ("syn1", {}), ("syn2", {}), ("syn0_outliers", {"gaussianize": "outliers"})],
)
def test_fit(name, parameters, dtype):
    data = name.split("_")[0]
    X = GOLDEN[f"fit_{data}_x"]
    labels = GOLDEN[f"fit_{name}_clusters"]
    model = LinearCorEx(labels.max() + 1, random_state=0, dtype=dtype, **parameters).fit(X)
    assert model.tc_ == pytest.approx(float(GOLDEN[f"fit_{name}_TC"]), rel=1e-4)
    assert adjusted_rand_score(labels, model.labels_) == 1
    if data != "syn2":
        expected = GOLDEN[f"fit_{name}_cov"]
        assert np.abs(model.covariance_ - expected).max() < 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(model.tcs_, GOLDEN[f"fit_{name}_TCs"], rtol=1e-3)


@pytest.mark.parametrize("name", ["syn0", "syn1"])
def test_fit_from_given_weights_without_annealing(name):
    X, start = GOLDEN[f"fit_{name}_x"], GOLDEN[f"fit_{name}_W0"]
    Z = torch.from_numpy((X - X.mean(axis=0)) / X.std(axis=0))
    weights = torch.from_numpy(start / (10 * np.sqrt(((Z.numpy() @ start.T) ** 2).mean(axis=0)))[:, None])
    found = climb(Z, weights, anneal=False, tol=1e-5, max_iter=10000, report=lambda done, text: None)
    assert found.converged
    assert found.history[-1] == pytest.approx(float(GOLDEN[f"fit_{name}_fromW0_TC"]), rel=1e-4)
    labels = found.weights.abs().argmax(dim=0)
    assert adjusted_rand_score(GOLDEN[f"fit_{name}_fromW0_clusters"], labels) == 1


def test_fit_with_overlap():
    X = GOLDEN["fit_syn0_x"]
    model = LinearCorEx(3, overlap=True, random_state=0).fit(X)
    expected = GOLDEN["fit_syn0_overlap_cov"]
    assert model.tc_ == pytest.approx(float(GOLDEN["fit_syn0_overlap_TC"]), rel=1e-3)
    assert np.abs(model.covariance_ - expected).max() < 2e-3 * np.abs(expected).max()
    assert (np.diff(model.tcs_) <= 0).all()
    np.testing.assert_allclose(model.covariance_.diagonal(), X.var(axis=0))


def test_transform_and_prediction_of_the_original_weights():
    X, weights = GOLDEN["fit_syn0_x"], GOLDEN["fit_syn0_ws"].astype(float)
    model = LinearCorEx(3, random_state=0).fit(X)
    model._describe(model._gaussianizer.transform(X), weights)
    factors = model.transform(X[:5])
    np.testing.assert_allclose(factors, GOLDEN["fit_syn0_transform5"], atol=1e-5)
    np.testing.assert_allclose(model.inverse_transform(factors), GOLDEN["fit_syn0_y_predict5"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_personality_questionnaire(local_data, seed):
    path = local_data("tabular/big5_first1000.npz")
    X = load_npz(path)["X"].astype(float)
    model = LinearCorEx(5, random_state=seed).fit(X)
    assert model.tc_ == pytest.approx(7.9696, abs=0.005)
    assert adjusted_rand_score(np.arange(50) % 5, model.labels_) == 1


def test_layers_stack_into_a_hierarchy():
    rng = np.random.default_rng(0)
    top = rng.standard_normal((400, 2))
    middle = 0.8 * top[:, [0, 0, 0, 1, 1, 1]] + 0.6 * rng.standard_normal((400, 6))
    X = 0.9 * np.repeat(middle, 5, axis=1) + 0.4 * rng.standard_normal((400, 30))
    stack = make_pipeline(LinearCorEx(6, random_state=0), LinearCorEx(2, random_state=0)).fit(X)
    groups, joins = stack[0].labels_, stack[1].labels_
    assert adjusted_rand_score(np.repeat(np.arange(6), 5), groups) == 1
    assert adjusted_rand_score(np.repeat([0, 1], 15), joins[groups]) == 1
    assert stack.transform(X).shape == (400, 2)
    assert list(stack.get_feature_names_out()) == ["linearcorex0", "linearcorex1"]


def test_number_of_components():
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((200, 4))
    X = np.repeat(factors, 6, axis=1) + 0.7 * rng.standard_normal((200, 24))
    chosen = select_n_components(X, [2, 6, 4], random_state=0)
    assert chosen.scalars["n_components"] == 4
    assert list(chosen.rows) == [2, 6, 4]
    assert chosen.arrays["tc_no_overlap"].shape == (3,)
    until_worse = select_n_components(X[:, ::2], n_repeats=2, random_state=0, gaussianize="outliers")
    assert until_worse.scalars["n_components"] == 4
    assert list(until_worse.rows) == list(range(1, len(until_worse.rows) + 1))


def test_compression_keeps_second_moments():
    X = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 6)))
    small = compress(X)
    assert small.shape == (6, 6)
    np.testing.assert_allclose(small.T @ small / 6, X.T @ X / 100)
    assert compress(X[:11]).shape == (11, 6)


def test_random_weights_explain_one_percent():
    X = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 6)))
    weights = random_weights(X, 4, np.random.default_rng(1))
    np.testing.assert_allclose(((weights @ X.T) ** 2).mean(1), 0.01)


@pytest.mark.parametrize("claim", ["modular-recovery"])
def test_study(claim):
    result = study.run(claim, scale="ci", seed=0)
    assert result.scalars["tc"] == pytest.approx(1.2860, abs=1e-3)
    assert result.scalars["covariance_error"] < 1e-3
    figure = study.figure(claim, result)
    assert figure.axes[0].get_xlabel()
