"""The decomposition against reference numbers, scikit-learn's probes, exact identities and drawn problems.

`golden.npz` holds representations, labels, domains and predictions of two runs, and what the original implementation
makes of them with logistic probes scored on the rows they were fitted on; and penalties on one batch in float64.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.shift import FailureModes
from natwise.shift.failure_modes import _probe, study
from natwise.shift.failure_modes._errors import PairedErrors
from natwise.shift.failure_modes._folds import Rows, stratified_folds
from natwise.testing import check_bad_input, check_estimator_contract, check_result

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
NAMES = ("Z_train", "y_train", "domain", "Z_test", "y_test", "y_pred_id", "y_id", "y_pred_test")


def original(seed):
    keys = ("z_train", "y_train", "c_train", "z_test", "y_test", "pred_id_val", "y_id_val", "pred_test")
    return dict(zip(NAMES, (GOLDEN[f"seed{seed}_{key}"] for key in keys), strict=True))


def drawn(seed=0, n=120, m=60, k=2, d=3, n_domains=2):
    """Return a problem in which nothing is special; every class is in every domain."""
    rng = np.random.default_rng(seed)
    y, y_new = rng.permutation(np.arange(n) % k), rng.permutation(np.arange(m) % k)
    domain = rng.permutation(np.arange(n) % n_domains)
    Z = rng.normal(size=(n, d)) + np.eye(k, d)[y] + 0.5 * domain[:, None]
    Z_new = rng.normal(size=(m, d)) + np.eye(k, d)[y_new] - 0.5
    flips = rng.random(40) < 0.2
    y_id = np.arange(40) % k
    return dict(
        zip(NAMES, (Z, y, domain, Z_new, y_new, (y_id + flips) % k, y_id, rng.integers(k, size=m)), strict=True)
    )


def measured(problem, **options):
    return FailureModes(**{"n_bootstrap": 50, **options}).fit(**problem)


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_numbers_of_the_original(seed):
    modes = measured(original(seed), cv=None)
    np.testing.assert_allclose(modes.parts_, GOLDEN[f"seed{seed}_parts"], atol=1e-12)
    assert modes.distinguishability_[0] == pytest.approx(GOLDEN[f"seed{seed}_d0"], abs=1e-12)


@pytest.mark.parametrize("C", [1.0, 100.0])
@pytest.mark.parametrize("k", [2, 3])
def test_probes_are_scikit_learns_at_convergence(C, k):
    """Three fits at once, each with its own labels and weights, against one fit after another."""
    rng = np.random.default_rng(k)
    X = rng.normal(size=(300, 5)) * [0.1, 1, 1, 3, 20] + [0, 0, 5, 5, 100]
    codes = np.digitize(X[:, 1] + rng.normal(size=(3, 300)), [-0.5, 0.5][: k - 1])
    weight = rng.random((3, 300)) * (rng.random((3, 300)) > 0.2)
    basis = _probe.Basis.of(torch.from_numpy(X))
    found = _probe.fit_logistic(basis, torch.from_numpy(codes), torch.from_numpy(weight), k, C=C).numpy()
    for b in range(3):
        slow = LogisticRegression(C=C, tol=1e-9, max_iter=10_000)
        slow.fit(X, codes[b], sample_weight=weight[b])
        scores = (basis.X @ torch.from_numpy(found[:, b]).T).numpy()
        expected = slow.decision_function(X).reshape(300, -1)
        expected = expected if k == 2 else expected[:, 1:] - expected[:, :1]
        np.testing.assert_allclose(scores[:, 1:] - scores[:, :1], expected, atol=1e-3)


def test_probe_with_separable_rows_and_no_penalty_stops():
    X = _probe.Basis.of(torch.eye(3, dtype=torch.float64).repeat(20, 1))
    codes = torch.arange(60)[None] % 3
    found = _probe.fit_logistic(X, codes, torch.ones(1, 60, dtype=torch.float64), 3, C=np.inf)
    assert (_probe.predict_logistic(X, found) == codes).all()
    assert torch.isfinite(found).all()


def test_probes_say_when_they_did_not_converge(monkeypatch):
    monkeypatch.setattr(_probe, "MAX_ITER", 1)
    with pytest.warns(ConvergenceWarning, match="scale the features"):
        measured(original(0), cv=None)


def test_many_fits_are_done_in_turns(monkeypatch):
    expected = measured(drawn())
    monkeypatch.setattr(_probe, "LARGEST", 1)
    found = measured(drawn())
    np.testing.assert_allclose(found.parts_, expected.parts_, atol=1e-12)
    np.testing.assert_allclose(found.distinguishability_, expected.distinguishability_, atol=1e-12)


def test_decomposition_is_what_it_says():
    """The definition with scikit-learn's probes in a plain loop, on folds taken from the method."""
    problem = original(1)
    modes = measured(problem, distinguishability=False)
    by_classifier = measured(problem, distinguishability=False, probe=LogisticRegression(max_iter=2000, tol=1e-8))
    np.testing.assert_allclose(by_classifier.parts_, modes.parts_, atol=1e-12)
    Z = np.concatenate([problem["Z_train"], problem["Z_test"]]).astype(np.float64)
    rank = Rows.of(Z, torch.device("cpu")).rank
    n, y_test = len(problem["Z_train"]), problem["y_test"]
    streams = Streams(0)
    fold = stratified_folds(y_test, rank[n:], 5, streams.numpy("test folds"))
    alone, joint = np.zeros(len(y_test)), np.zeros(len(y_test))
    for f in range(5):
        rows = np.flatnonzero(fold != f)
        for guesses, Z_fit, y_fit in (
            (alone, problem["Z_test"][rows], y_test[rows]),
            (joint, np.r_[problem["Z_train"], problem["Z_test"][rows]], np.r_[problem["y_train"], y_test[rows]]),
        ):
            head = LogisticRegression(max_iter=2000, tol=1e-8).fit(Z_fit.astype(float), y_fit)
            guesses[fold == f] = head.predict(problem["Z_test"][fold == f].astype(float))
    errors = [
        (problem["y_pred_id"] != problem["y_id"]).mean(),
        (alone != y_test).mean(),
        (joint != y_test).mean(),
        (problem["y_pred_test"] != y_test).mean(),
    ]
    np.testing.assert_allclose(modes.cumulative_, errors, atol=1e-12)
    assert modes.majority_error_ == pytest.approx(1 - np.bincount(y_test).max() / len(y_test))


def test_distinguishability_is_what_it_says():
    """Equal domains and resubstitution: plain accuracies of scikit-learn's classifiers over all replacements."""
    rng = np.random.default_rng(0)
    problem = drawn(n=180, m=60, n_domains=3, d=4)
    problem["domain"] = np.repeat(np.arange(3), 60)
    problem["y_train"], problem["y_test"] = np.tile(np.arange(60) % 2, 3), np.arange(60) % 2
    problem["Z_train"] = problem["Z_train"] + 0.3 * rng.normal(size=(3, 4))[problem["domain"]]
    modes = measured(problem, cv=None)
    Z = np.concatenate([problem["Z_train"], problem["Z_test"]])
    y, domain = np.append(problem["y_train"], problem["y_test"]), np.append(problem["domain"], np.full(60, 3))

    def accuracy(kept):
        return LogisticRegression(tol=1e-8, max_iter=2000).fit(Z[kept], domain[kept]).score(Z[kept], domain[kept])

    triples = [np.isin(domain, [*pair, 3]) for pair in combinations(range(3), 2)]
    expected = [
        accuracy(domain < 3),
        np.mean([accuracy(rows) for rows in triples]),
        np.mean([accuracy(rows & (y == label)) for rows in triples for label in (0, 1)]),
    ]
    np.testing.assert_allclose(modes.domain_accuracies_, expected, atol=1e-12)
    np.testing.assert_allclose(modes.distinguishability_, np.diff(expected, prepend=1 / 3), atol=1e-12)


@given(
    st.integers(0, 10**6), st.sampled_from(["error", "balanced_error"]), st.integers(2, 3), st.sampled_from([3, None])
)
@settings(max_examples=10, deadline=None)
def test_parts_add_up_in_every_replicate_and_do_not_depend_on_the_order(seed, metric, k, cv):
    problem = drawn(seed, k=k)
    modes = measured(problem, metric=metric, cv=cv)
    np.testing.assert_allclose(np.cumsum(modes.parts_), modes.cumulative_, atol=1e-12)
    totals = modes.bootstrap_parts_.sum(axis=1)
    assert modes.bootstrap_parts_.shape == (50, 4)
    assert ((totals > -1e-12) & (totals < 1 + 1e-12)).all()
    assert np.isfinite(modes.bootstrap_parts_).all()
    if cv is None:
        return  # every tenth row is held out, as in the original
    rng = np.random.default_rng(seed)
    for names in (NAMES[:3], (*NAMES[3:5], NAMES[7]), NAMES[5:7]):
        order = rng.permutation(len(problem[names[0]]))
        problem |= {name: problem[name][order] for name in names}
    again = measured(problem, metric=metric, cv=cv)
    for name in ("parts_", "se_", "distinguishability_", "distinguishability_se_", "bootstrap_parts_"):
        np.testing.assert_allclose(getattr(again, name), getattr(modes, name), atol=1e-12, err_msg=name)


def test_affine_maps_change_nothing_without_a_penalty():
    problem, rng = original(1), np.random.default_rng(0)
    modes = measured(problem, C=np.inf)
    A, shift = rng.normal(size=(12, 12)), rng.normal(size=12)
    mapped = problem | {name: problem[name].astype(np.float64) @ A + shift for name in ("Z_train", "Z_test")}
    again = measured(mapped, C=np.inf)
    np.testing.assert_allclose(again.parts_, modes.parts_, atol=1e-12)
    np.testing.assert_allclose(again.distinguishability_, modes.distinguishability_, atol=1e-12)


def test_other_containers_and_dtypes_give_the_same():
    import pandas as pd

    problem = original(1)
    modes = measured(problem)
    names = np.array(["cat", "dog", "eel"])
    lists = problem | {"Z_train": pd.DataFrame(problem["Z_train"]), "Z_test": torch.from_numpy(problem["Z_test"])}
    for name in ("y_train", "y_test", "y_id", "y_pred_id", "y_pred_test"):
        lists[name] = pd.Series(names[problem[name]])
    lists["domain"] = [f"site {number}" for number in problem["domain"]]
    again = measured(lists, random_state=np.int64(0))
    np.testing.assert_array_equal(again.parts_, modes.parts_)
    np.testing.assert_array_equal(again.distinguishability_, modes.distinguishability_)
    assert list(again.classes_) == list(names)
    floats = problem | {"y_test": problem["y_test"].astype(float)}
    assert measured(floats, distinguishability=False).parts_ == pytest.approx(modes.parts_)


def one_hot(codes, k):
    return np.eye(k)[codes]


def simple(y, domain, y_new, Z, Z_new, right=None):
    guess = y_new if right is None else right
    return dict(zip(NAMES, (Z, y, domain, Z_new, y_new, y, y, guess), strict=True))


def test_limits_that_are_known_exactly():
    rng = np.random.default_rng(0)
    y, y_new, domain = rng.integers(3, size=300), rng.integers(3, size=150), np.arange(300) % 3
    label = measured(simple(y, domain, y_new, one_hot(y, 3), one_hot(y_new, 3)))
    np.testing.assert_array_equal(label.parts_, 0)
    turned = measured(simple(y, domain, y_new, one_hot(y, 3), one_hot((y_new + 1) % 3, 3), (y_new + 1) % 3))
    assert turned.cumulative_.tolist() == [0, 0, 1, 1]
    Z, Z_new = one_hot(domain, 4), one_hot(np.full(150, 3), 4)
    told = measured(simple(y, domain, y_new, Z, Z_new, 0 * y_new))
    np.testing.assert_allclose(told.domain_accuracies_, 1, atol=1e-12)
    np.testing.assert_allclose(told.distinguishability_, [2 / 3, 0, 0], atol=1e-12)


def test_limits_that_are_known_but_for_noise():
    rng = np.random.default_rng(1)
    y, domain = rng.integers(2, size=1200), np.arange(1200) % 3
    Z = rng.normal(size=(1200, 2)) + 4 * y[:, None]
    copy = measured(simple(y, domain, y, Z, Z.copy(), y))
    assert np.abs(copy.parts_).max() < 0.02
    assert np.abs(copy.distinguishability_).max() < 3.5 * copy.distinguishability_se_.max()
    y_new = (rng.random(600) < 0.3).astype(int)
    noise = measured(simple(y, domain, y_new, rng.normal(size=(1200, 2)), rng.normal(size=(600, 2)), 0 * y_new))
    assert np.abs(noise.cumulative_[1:] - noise.majority_error_)[[0, 2]].max() < 0.02
    skewed = (rng.random(1200) < np.array([0.1, 0.5, 0.9])[domain]).astype(int)
    y_new = (rng.random(600) < 0.1).astype(int)
    Z, Z_new = rng.normal(size=(1200, 1)) + 4 * skewed[:, None], rng.normal(size=(600, 1)) + 4 * y_new[:, None]
    classes = measured(simple(skewed, domain, y_new, Z, Z_new))
    d = np.cumsum(classes.distinguishability_)
    assert d[1] > 0.1
    assert abs(d[2]) < 0.08


@pytest.mark.parametrize("balanced", [False, True])
def test_bootstrap_of_cells_is_the_bootstrap_of_rows(balanced):
    rng = np.random.default_rng(0)
    y = (rng.random(80) < 0.3).astype(int)
    wrong = (rng.random((3, 80)) < [[0.1], [0.3], [0.5]]).astype(int)
    errors = PairedErrors(y, wrong, balanced)
    classes = [y == 0, y == 1] if balanced else [np.ones(80, dtype=bool)]
    np.testing.assert_allclose(errors.rates(), np.mean([wrong[:, rows].mean(axis=1) for rows in classes], axis=0))
    fast = errors.replicates(20_000, np.random.default_rng(1))
    slow = np.stack(
        [
            np.mean([wrong[:, rng.choice(np.flatnonzero(rows), rows.sum())].mean(axis=1) for rows in classes], axis=0)
            for _ in range(4000)
        ]
    )
    np.testing.assert_allclose(np.cov(fast.T), np.cov(slow.T), atol=3e-4)
    np.testing.assert_allclose(fast.mean(axis=0), errors.rates(), atol=2e-3)


def test_standard_errors_say_how_much_parts_vary():
    """Over fresh draws of the held-out and test rows, with a fixed model."""
    model = {name: value for name, value in drawn(7).items() if name in NAMES[:3]}
    runs = [measured(drawn(seed) | model, distinguishability=False) for seed in range(40)]
    observed = np.std([modes.parts_[[0, 3]] for modes in runs], axis=0)
    stated = np.mean([modes.se_[[0, 3]] for modes in runs], axis=0)
    assert (stated / observed > 0.6).all()
    assert (stated / observed < 1.6).all()


def test_classifiers_as_probes():
    problem = drawn()
    modes = measured(problem, probe=KNeighborsClassifier(5), distinguishability=False)
    assert not hasattr(modes, "distinguishability_")
    np.testing.assert_allclose(modes.parts_.sum(), modes.cumulative_[3])


def test_contract_and_picture():
    problem = drawn()
    fit_params = {name: value for name, value in problem.items() if name not in ("Z_train", "y_train")}
    check_estimator_contract(FailureModes(n_bootstrap=20), problem["Z_train"], problem["y_train"], **fit_params)
    assert clone(FailureModes(cv=3)).cv == 3
    for figure in (measured(problem).plot(), measured(problem, distinguishability=False).plot()):
        assert "inseparability" in figure.axes[0].get_xticklabels()[1].get_text().replace("-\n", "")
        heights = [patch.get_height() for patch in figure.axes[0].patches]
        assert len(heights) == 5


def test_bad_input():
    good = drawn()

    def with_entry(name, value):
        array = np.array(good[name], dtype=float if isinstance(value, float) else None)
        array.flat[0] = value
        return {name: array}

    lacking = {"y_train": np.where(good["domain"] == 1, 0, good["y_train"])}
    cases = [
        (with_entry("Z_train", np.nan), ValueError, "finite"),
        (with_entry("Z_test", np.inf), ValueError, "finite"),
        (with_entry("y_test", np.nan), ValueError, "missing"),
        ({"Z_test": good["Z_test"][:, :2]}, ValueError, "shape"),
        ({"Z_train": good["Z_train"][0]}, ValueError, "shape"),
        ({"y_train": good["y_train"][1:]}, ValueError, "120 entries"),
        ({"domain": good["domain"][1:]}, ValueError, "120 entries"),
        ({"y_pred_test": good["y_pred_test"][1:]}, ValueError, "60 entries"),
        ({"y_pred_id": good["y_pred_id"][1:]}, ValueError, "40 entries"),
        ({"domain": good["domain"] * 1.0}, TypeError, "float64"),
        ({"domain": good["domain"] * 0}, ValueError, "two training domains"),
        ({"y_pred_test": good["y_pred_test"] * 0.3 + 0.2}, ValueError, "not continuous"),
        ({"y_pred_test": np.full((60, 2), 0.5)}, ValueError, "shape (n,)"),
        ({"y_train": good["y_train"] * 0}, ValueError, "two classes"),
        ({"y_test": good["y_test"] + 1}, ValueError, "[2]"),
        ({"y_test": good["y_test"].astype(str)}, TypeError, "like those of y_train"),
        ({"y_test": good["y_test"] * 0}, ValueError, "at least 5 rows of every class"),
        ({"y_train": [{}] * 120}, TypeError, "dict"),
        ({**lacking, "domain": good["domain"]}, ValueError, "got 0 of 1"),
        (with_entry("Z_train", -1e200), ValueError, "below 1e+70 in size"),
        ({"y_train": good["y_train"] * 1j}, TypeError, "complex128"),
        ({"y_pred_test": good["y_pred_test"].astype("datetime64[D]")}, TypeError, "datetime64"),
        ({"domain": np.ma.masked_equal(good["domain"], 1)}, ValueError, "no masked values"),
        ({"test_domain": 1}, ValueError, "in both"),
        ({"test_domain": 0.5}, TypeError, "float64"),
        ({"y_id": [], "y_pred_id": []}, ValueError, "empty"),
    ]
    check_bad_input(FailureModes().fit, cases, **good)
    options = [
        ({"metric": "accuracy"}, ValueError, "balanced_error"),
        ({"cv": 1}, ValueError, ">= 2"),
        ({"cv": 2.5}, TypeError, "integer"),
        ({"cv": 50}, ValueError, "cv=50"),
        ({"C": 0}, ValueError, "> 0"),
        ({"C": "1"}, TypeError, "number"),
        ({"probe": "logit"}, ValueError, "logistic"),
        ({"probe": 3}, TypeError, "classifier"),
        ({"probe": LogisticRegression}, TypeError, "classifier"),
        ({"n_bootstrap": 0}, ValueError, ">= 2"),
        ({"distinguishability": "yes"}, TypeError, "True"),
        ({"device": "gpu"}, ValueError, "cuda"),
        ({"random_state": -1}, ValueError, ">= 0"),
    ]
    check_bad_input(lambda **kwargs: FailureModes(**kwargs).fit(**good), options)


@pytest.mark.parametrize("claim", ["four-causes", "heart-hospitals"])
def test_study_runs_and_draws(claim, local_data):
    if claim != "four-causes":
        local_data(study.HEART)
    result = study.run(claim, scale="ci", seed=3)
    check_result(result)
    if claim == "four-causes":
        assert result.scalars["smallest_intended_part"] >= 0.4
    else:
        assert result.scalars["largest_deviation"] <= 0.05
        assert result.scalars["switzerland_e1"] < 0 < result.scalars["switzerland_balanced_e1"]
    assert len(study.figure(claim, result).axes) == 4
