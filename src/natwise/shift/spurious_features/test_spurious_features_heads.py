"""Heads, groups, the report and the studies: against slow references, on real embeddings, and with bad input."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from natwise import registry
from natwise.core.information import mutual_information
from natwise.shift.spurious_features import (
    LastLayerRetrainer,
    SpuriousFeatureReport,
    _heads,
    _inputs,
    _scores,
    group_metrics,
    infer_attribute,
    study,
)
from natwise.shift.spurious_features._last_layer import METHODS
from natwise.testing import check_bad_input, check_result


def shortcut(n=600, d=4, n_classes=2, n_values=2, agree=0.9, seed=0):
    """Return rows with a weak sign of the class and a strong one of an attribute that mostly goes with it."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    site = np.where(rng.random(n) < agree, y % n_values, rng.integers(n_values, size=n))
    X = rng.standard_normal((n, d))
    X[:, 0] += 1.5 * y
    X[:, 1] = 4 * site + 0.3 * rng.standard_normal(n)
    return X, y, site


@pytest.mark.parametrize("kind", ["number", "text"])
def test_group_metrics_by_hand(kind):
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    site = np.array([0, 1, 2, 0, 1, 1, 0, 0])
    predicted = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    expected = [0.5, 0.0, 1.0, 1.0, 0.5, np.nan]
    if kind == "text":
        y, predicted = np.array(["a", "b"])[y], np.array(["a", "b"], dtype=object)[predicted]
    result = group_metrics(y, predicted, site.tolist())
    check_result(result)
    np.testing.assert_array_equal(result.arrays["group_accuracy"], expected)
    np.testing.assert_array_equal(result.arrays["group_count"], [2, 1, 1, 2, 2, 0])
    scalars = result.scalars
    assert (scalars["accuracy"], scalars["worst_group_accuracy"], scalars["worst_group"]) == (5 / 8, 0.0, 1)
    assert scalars["mean_group_accuracy"] == pytest.approx(0.6)
    assert scalars["worst_group_low"] == 0 < scalars["worst_group_high"] == pytest.approx(0.7935, abs=1e-4)
    assert len(result.warnings) == 1
    assert "attribute=2" in result.warnings[0]


def test_group_metrics_refuses():
    cases = [
        ({"y_pred": [0.2, 0.8, 0.3]}, ValueError, "not continuous"),
        ({"y_pred": [0, 1]}, ValueError, "same length"),
        ({"y_pred": ["a", "b", "a"]}, TypeError, "like those of y"),
        ({"y": [0, 1, 1j]}, TypeError, "complex128"),
        ({"attribute": [0, np.nan, 1]}, ValueError, "missing"),
        ({"attribute": [None, "x", "y"]}, ValueError, "missing"),
        ({"y": [[0, 1, 1]]}, ValueError, "shape (n,)"),
        ({"y": [], "y_pred": [], "attribute": []}, ValueError, "empty"),
    ]
    check_bad_input(group_metrics, cases, y=[0, 1, 1], y_pred=[0, 1, 0], attribute=[0, 0, 1])


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_scale_free_and_repeatable(method, n_classes):
    X, y, site = shortcut(300, n_classes=n_classes, agree=0.6)
    head = LastLayerRetrainer(method, n_refits=2, C=0.5, random_state=0).fit(X, y, attribute=site)
    scaled = clone(head).fit(X * [1, 10, 0.1, 3] + 5, y, attribute=site)
    np.testing.assert_allclose(scaled.predict_proba(X * [1, 10, 0.1, 3] + 5), head.predict_proba(X), atol=5e-3)
    assert head.coef_.shape == (1 if n_classes == 2 else 3, 4)
    np.testing.assert_allclose(head.predict_proba(X).sum(1), 1)
    assert (head.classes_[head.predict_proba(X).argmax(1)] == head.predict(X)).all()
    if method in ("reweight", "groupdro", "jtt"):
        assert head.group_weights_.sum() == pytest.approx(1)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_reweighting_is_repeating_rows(n_classes):
    """Slow reference: the weighted loss written out, minimised by a general optimiser."""
    X, y, site = shortcut(120, n_classes=n_classes, agree=0.5)
    Z = (X - X.mean(0)) / X.std(0)
    groups = 2 * y + site
    weights = 1 / np.bincount(groups)[groups]
    weights /= weights.mean()

    def loss(flat):
        W, b = flat[: 4 * n_classes].reshape(n_classes, 4), flat[4 * n_classes :]
        scores = Z @ W.T + b
        losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(120), y]
        return 0.5 * (W**2).sum() + C * weights @ losses

    C = 0.3
    found = minimize(loss, np.zeros(5 * n_classes), method="BFGS", options={"gtol": 1e-7})
    W, b = found.x[: 4 * n_classes].reshape(n_classes, 4), found.x[4 * n_classes :]
    if n_classes == 2:  # two rows of opposite sign cost half of one: the same model at twice the strength
        head = LastLayerRetrainer("reweight", C=2 * C).fit(X, y, attribute=site)
    else:
        head = LastLayerRetrainer("reweight", C=C).fit(X, y, attribute=site)
    probabilities = np.exp(Z @ W.T + b)
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X), probabilities, atol=2e-4)


def test_groupdro_reaches_the_optimum():
    """No head may have a smaller largest group loss: tried from the optimum in random directions."""
    X, y, site = shortcut(400, agree=0.8)
    Z, groups = (X - X.mean(0)) / X.std(0), 2 * y + site
    head, q = _heads.fit_worst_group_head(Z, y, groups, 0.1)

    def objective(candidate):
        losses = -candidate.log_probabilities(Z)[np.arange(400), y]
        by_group = np.bincount(groups, weights=losses) / np.bincount(groups)
        return by_group.max() + (candidate.weights**2).sum() / (2 * 400 * 0.1), by_group

    best, by_group = objective(head)
    assert by_group[q > 0.01].min() == pytest.approx(by_group.max(), abs=5e-3)  # those that count are equally bad
    rng = np.random.default_rng(0)
    for size in (0.3, 0.1, 0.03):
        for _ in range(20):
            moved = _heads.Head(
                head.weights + size * rng.standard_normal((1, 4)), head.intercepts + size * rng.normal()
            )
            assert objective(moved)[0] >= best - 1e-3
    plain = _heads.fit_head(Z, y, np.ones(400), 0.1)
    assert objective(plain)[0] > best


def test_afr_pulls_toward_the_plain_head():
    X, y, _ = shortcut(200)
    start = _heads.fit_head(X, y, np.ones(200), 1.0)
    weights = np.random.default_rng(0).uniform(0.5, 2, 200)
    near = _heads.fit_head_near(start, X, y, weights, 1e-9)
    np.testing.assert_allclose(near.weights, start.weights, atol=1e-6)
    zero = _heads.Head(np.zeros((1, 4)), np.zeros(1))
    free, expected = _heads.fit_head_near(zero, X, y, weights, 1.0), _heads.fit_head(X, y, weights, 1.0)
    np.testing.assert_allclose(free.weights, expected.weights, atol=1e-4)
    np.testing.assert_allclose(free.intercepts, expected.intercepts, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "erm"])
def test_methods_help_the_group_against_the_shortcut(method):
    X, y, site = shortcut(3000, agree=0.95)
    fresh, fresh_y, fresh_site = shortcut(3000, agree=0.0, seed=1)
    worst = {}
    for name in ("erm", method):
        head = LastLayerRetrainer(name, random_state=0).fit(X, y, attribute=site)
        worst[name] = group_metrics(fresh_y, head.predict(fresh), fresh_site).scalars["worst_group_accuracy"]
    assert worst[method] > worst["erm"] + 0.1


def test_the_strength_is_chosen_for_the_worst_group():
    X, y, site = shortcut(400, agree=0.9)
    head = LastLayerRetrainer("reweight", C=[1e-6, 0.1], random_state=0).fit(X, y, attribute=site)
    assert head.C_ in (1e-6, 0.1)
    assert LastLayerRetrainer("reweight", C=[0.1], random_state=0).fit(X, y, attribute=site).C_ == 0.1
    assert LastLayerRetrainer("dfr", random_state=0).fit(X, y, attribute=site).C_ <= 1
    assert np.isfinite(LastLayerRetrainer("erm", C=np.inf).fit(X, y, attribute=None).coef_).all()


def test_inferred_attribute_marks_the_misled():
    X, y, site = shortcut(1000, agree=0.95)
    inferred = infer_attribute(X, y, random_state=0)
    assert inferred[site != y].mean() > 0.7 > 0.1 > inferred[site == y].mean()
    np.testing.assert_array_equal(inferred, infer_attribute(X.tolist(), y.astype(str), random_state=0))
    cases = [
        ({"y": np.zeros(1000)}, ValueError, "at least two classes"),
        ({"X": np.full_like(X, np.nan)}, ValueError, "finite"),
        ({"C": -1.0}, ValueError, "> 0"),
        ({"y": (X[:, 0] > 0).astype(int), "X": 1e3 * np.sign(X[:, :1])}, ValueError, "without error"),
    ]
    check_bad_input(infer_attribute, cases, X=X, y=y)


def test_bad_parameters_of_the_last_layer():
    X, y, site = shortcut(60, agree=0.5)

    def call(attribute=site, **parameters):
        LastLayerRetrainer(**parameters).fit(X, y, attribute=attribute)

    cases = [
        ({"method": "irm"}, ValueError, "groupdro"),
        ({"C": 0.0}, ValueError, "> 0"),
        ({"C": "strong"}, TypeError, "number"),
        ({"C": []}, ValueError, "at least one"),
        ({"n_refits": 0}, ValueError, ">= 1"),
        ({"gamma": np.nan}, ValueError, "finite"),
        ({"method": "groupdro", "attribute": None}, ValueError, "None"),
        ({"method": "erm", "C": [0.1, 1.0], "attribute": None}, ValueError, "choice of C"),
    ]
    check_bad_input(call, cases)
    kept = ~((y == 0) & (site == 1))
    with pytest.warns(UserWarning, match="without rows"):
        head = LastLayerRetrainer().fit(X[kept], y[kept], attribute=site[kept])
    np.testing.assert_allclose(head.group_weights_, [1 / 3, 0, 1 / 3, 1 / 3])


def test_scores_of_columns():
    X, y, site = shortcut(300, n_values=3, agree=0.3)
    X[:, 2] = np.round(X[:, 2])  # ties
    classes, attribute = _inputs.check_labels("y", y), _inputs.check_attribute(site, 300)
    weights = np.random.default_rng(0).uniform(0.5, 2, 300)
    by_class = [roc_auc_score(y, column, sample_weight=weights) for column in X.T]
    np.testing.assert_allclose(_scores.auc(X, classes, weights), np.maximum(by_class, 1 - np.array(by_class)))
    one_by_one = np.array([[roc_auc_score(site == v, column) for column in X.T] for v in range(3)])
    np.testing.assert_allclose(
        _scores.auc(X, attribute, np.ones(300)), np.maximum(one_by_one, 1 - one_by_one).mean(axis=0)
    )
    within = [_scores.auc(X[site == v], classes.only(site == v), np.ones((site == v).sum())) for v in range(3)]
    np.testing.assert_allclose(_scores.auc_given(X, classes, attribute, np.ones(300)), np.mean(within, axis=0))


def test_information_given_the_class():
    _, y, site = shortcut(4000, agree=0.5)
    bits = np.stack([(site ^ (np.random.default_rng(1).random(4000) < 0.1)), np.arange(4000) % 2], axis=1).astype(float)
    pmf = np.zeros((2, 2, 2))
    np.add.at(pmf, (bits[:, 0].astype(int), site, y), 1 / 4000)
    found = _scores.information_given(bits, *(_inputs.check_labels("y", v) for v in (site, y)))
    assert found[0] == pytest.approx(mutual_information(pmf, 0, 1, given=2), abs=2e-3)
    assert found[1] < 2e-3


@pytest.mark.parametrize("directions", ["probe", "pca", "counterfactual"])
def test_report(directions):
    X, y, site = shortcut(800, agree=0.8)
    other = X.copy()
    other[:, 1] += 4 * (1 - 2 * site)
    report = SpuriousFeatureReport(2, directions=directions, random_state=0)
    report.fit(X, y, attribute=site, counterfactual=other if directions == "counterfactual" else None)
    frame = report.coordinates_.to_frame()
    assert frame["attribute_auc_given_class"].idxmax() == "x1"
    assert frame["class_auc_given_attribute"].idxmax() == "x0"
    assert frame["attribute_information"].idxmax() == "x1"
    assert ("counterfactual_effect" in frame) == (directions == "counterfactual")
    np.testing.assert_allclose(np.linalg.norm(report.directions_, axis=1), 1)
    if directions == "counterfactual":
        assert report.directions_.shape == (1, 4)
        np.testing.assert_allclose(frame["counterfactual_effect"], [0, 4 / X[:, 1].std(), 0, 0], atol=1e-9)
    if directions != "pca":
        assert report.direction_scores_.arrays["attribute_auc_given_class"][0] > 0.95
    assert report.scalars_["attribute_probe"] > 0.95
    assert report.scalars_["reweighted_worst_group"] > report.scalars_["plain_worst_group"]
    sentences = report.summary()
    assert len(sentences) == 5
    assert "x1" in sentences[2]
    for result in (report.coordinates_, report.direction_scores_):
        check_result(result)


LONG = ("reference-table", "no-eraser-wins", "split")
CLAIMS = [
    pytest.param(claim, id=claim.id, marks=[pytest.mark.slow] if claim.id in LONG else [])
    for claim in registry.card("shift.spurious_features").claims
    if "ci" in claim.scale
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_hold(claim, local_data):
    if claim.id != "split":
        local_data(study.DIGITBIRDS)
    result = study.run(claim.id, scale="ci", seed=0)
    assert claim.holds(result.scalars[claim.metric])
    check_result(result)
    assert study.figure(claim.id, result).axes[0].get_xlabel()


def test_methods_of_the_study_have_the_names_they_say():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in study.EVERYTHING:
            eraser, head = study._method(name, 0)
            assert head.method == ("reweight" if "reweighted" in name else head.method)
            assert (eraser is None) == name.endswith("head") or "head, C" in name
            if eraser is not None and "naive" not in name:
                assert eraser.balance == ("group" if "balanced" in name.replace("unbalanced", "") else None)
