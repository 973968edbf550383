"""Erasers: reference numbers, the guarantees they come with, scikit-learn's contract, bad input.

golden.npz holds `x`, `label` and what the original implementation of LEACE makes of them in float64: `erased` and its
projection `P` without shrinkage, with the defaults of shrinkage and trace constraint, and the orthogonal variant.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from natwise.core.io import load_npz
from natwise.shift import spurious_features as module
from natwise.shift.spurious_features import (
    INLP,
    LEACE,
    CounterfactualProjection,
    DropDimensions,
    LastLayerRetrainer,
    LinearDisentangler,
    SpuriousFeatureReport,
)
from natwise.shift.spurious_features._last_layer import METHODS
from natwise.shift.spurious_features._leace import Moments
from natwise.testing import check_bad_input, check_estimator_contract, with_derived_arguments

GOLDEN = load_npz(Path(__file__).parent / "golden.npz")


def entangled(n=240, d=6, n_values=2, agree=0.8, seed=0):
    """Rows whose class and attribute both move them, and mostly go together; and the rows with another attribute."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    site = np.where(rng.random(n) < agree, y, rng.integers(n_values, size=n))
    other = (site + 1) % n_values
    effects = rng.standard_normal((n_values, d))
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 2 * y[:, None] * rng.standard_normal(d)
    return X + 2 * effects[site], y, site, X + 2 * effects[other]


def class_means(X, labels):
    return np.stack([X[labels == value].mean(axis=0) for value in np.unique(labels)])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "erased"),
        ({"shrinkage": True}, "erased_official_defaults_shrinkage_trace"),
        ({"method": "orthogonal"}, "erased_orth"),
    ],
)
def test_leace_gives_the_reference_numbers(options, name):
    eraser = LEACE(**options).fit(GOLDEN["x"], attribute=GOLDEN["label"])
    np.testing.assert_allclose(eraser.transform(GOLDEN["x"]), GOLDEN[name], rtol=0, atol=1e-8)
    if not options:
        np.testing.assert_allclose(eraser.projection_, GOLDEN["P"], rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(
    n_values=st.integers(2, 4), d=st.integers(4, 9), seed=st.integers(0, 999), balance=st.sampled_from([None, "group"])
)
def test_leace_keeps_its_promise(n_values, d, seed, balance):
    X, y, site, _ = entangled(200, d, n_values, 0.5, seed)
    eraser = LEACE(balance=balance).fit(X, y, attribute=site)
    weights = module._inputs.row_weights(y, module._inputs.check_attribute(site, 200), balance)
    erased, P = eraser.transform(X), eraser.projection_
    means = [np.average(erased[site == v], axis=0, weights=weights[site == v]) for v in range(n_values)]
    np.testing.assert_allclose(means - means[0], 0, atol=1e-10 * np.abs(X).max())
    np.testing.assert_allclose(P @ P, P, atol=1e-9)
    assert eraser.rank_ == np.linalg.matrix_rank(np.eye(d) - P, tol=1e-6) == n_values - 1
    orthogonal = LEACE(balance=balance, method="orthogonal").fit(X, y, attribute=site).transform(X)
    assert weights @ ((X - erased) ** 2).sum(1) <= weights @ ((X - orthogonal) ** 2).sum(1) * (1 + 1e-9)
    A, b = np.random.default_rng(seed).standard_normal((d, d)) + 3 * np.eye(d), np.arange(d)
    mapped = LEACE(balance=balance).fit(X @ A.T + b, y, attribute=site).transform(X @ A.T + b)
    np.testing.assert_allclose(mapped, erased @ A.T + b, atol=1e-7 * np.abs(mapped).max())


def test_leace_by_the_definition():
    """Slow reference: of all affine maps with equal means, the least change, by Lagrange's conditions."""
    X, _, site, _ = entangled(100, 4)
    centred = X - X.mean(0)
    covariance = centred.T @ centred / len(X)
    u = np.cov(X.T, site, ddof=0)[:-1, -1]
    expected = np.eye(4) - np.outer(u, np.linalg.solve(covariance, u)) / (u @ np.linalg.solve(covariance, u))
    np.testing.assert_allclose(LEACE().fit(X, attribute=site).projection_, expected, atol=1e-10)


def test_leace_does_nothing_where_nothing_is_to_erase():
    X, site = np.random.default_rng(0).standard_normal((50, 3)), np.repeat([0, 1], 50)
    eraser = LEACE().fit(np.vstack([X, X]), attribute=site)
    np.testing.assert_allclose(eraser.projection_, np.eye(3), atol=1e-12)
    assert eraser.rank_ == 0


@pytest.mark.parametrize("method", ["leace", "orthogonal"])
def test_leace_does_not_mind_the_units(method):
    X, _, site, _ = entangled()
    expected = LEACE(method=method).fit(X, attribute=site).projection_
    for unit in (1e-12, 1e9):
        np.testing.assert_allclose(LEACE(method=method).fit(unit * X, attribute=site).projection_, expected, atol=1e-9)


def test_labels_may_be_of_any_kind_and_rows_of_any_container():
    X, y, site, _ = entangled()
    expected = LEACE(balance="group").fit(X, y, attribute=site).transform(X)
    words = np.array(["north", "south"])
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    for data, classes, sites in [
        (X.tolist(), (1 - y).tolist(), (5 - site).tolist()),
        (frame, pd.Series(words[y]), pd.Series(words[site], dtype=object)),
        (torch.tensor(X), torch.tensor(y), torch.tensor(site)),
    ]:
        eraser = LEACE(balance="group").fit(data, classes, attribute=sites)
        np.testing.assert_allclose(eraser.transform(data), expected, atol=1e-9)
    assert LEACE().fit(frame, attribute=site).get_feature_names_out().tolist() == list(frame.columns)
    single = LEACE(balance="group").fit(X.astype(np.float32), y, attribute=site).transform(X.astype(np.float32))
    np.testing.assert_allclose(single, expected, atol=1e-4)


def test_moments_in_blocks_are_those_of_numpy(monkeypatch):
    X, y, _, _ = entangled(100)
    monkeypatch.setattr(module._leace, "_BLOCK", 7)
    moments = Moments.of(X, np.eye(2)[y], np.ones(100))
    np.testing.assert_allclose(moments.xx, np.cov(X.T), atol=1e-12)
    weights = np.random.default_rng(0).integers(1, 4, size=100)
    repeated = np.repeat(X, weights, axis=0)
    weighted = Moments.of(X, np.eye(2)[y], weights.astype(float))
    np.testing.assert_allclose(weighted.mean, repeated.mean(0), atol=1e-12)
    biased = weighted.xx * (1 - 1 / weighted.n_effective)
    np.testing.assert_allclose(biased, np.cov(repeated.T, ddof=0), atol=1e-12)


def test_shrinkage_allows_few_rows_and_never_adds_variance():
    rng = np.random.default_rng(0)
    X, site = rng.standard_normal((20, 40)) * np.geomspace(1, 30, 40), np.arange(20) % 2
    eraser = LEACE(shrinkage=True).fit(X, attribute=site)
    covariance = Moments.of(X, np.eye(2)[site], np.ones(20)).shrunk()
    P = eraser.projection_
    assert np.trace(P @ covariance @ P.T) <= np.trace(covariance) * (1 + 1e-12)
    np.testing.assert_allclose(class_means(eraser.transform(X), site).std(0), 0, atol=1e-9)


def test_balanced_erasure_leaves_the_class():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=4000)
    site = np.where(rng.random(4000) < 0.9, y, 1 - y)
    X = np.stack([y, site], axis=1) + 0.5 * rng.standard_normal((4000, 2))
    naive, balanced = (LEACE(balance=b).fit(X, y, attribute=site).projection_ for b in (None, "group"))
    np.testing.assert_allclose(balanced, np.diag([1, 0]), atol=0.1)
    assert naive[0, 0] < 0.7


@pytest.mark.parametrize("n_values", [2, 3])
@pytest.mark.parametrize("balance", [None, "group"])
def test_inlp(n_values, balance):
    X, y, site, _ = entangled(300, 6, n_values, 0.5)
    eraser = INLP(3, balance=balance).fit(X, y, attribute=site)
    P = eraser.projection_
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    np.testing.assert_allclose(P @ P, P, atol=1e-12)
    np.testing.assert_allclose(P @ eraser.components_.T, 0, atol=1e-12)
    assert len(eraser.components_) == min(6, 3 * (n_values - 1))
    assert eraser.accuracies_[-1] <= eraser.accuracies_[0]
    everything = INLP(50).fit(X, attribute=site)
    assert len(everything.components_) == 6 >= everything.n_iter_
    np.testing.assert_allclose(everything.transform(X), 0, atol=1e-9)


def test_counterfactual_projection():
    X, y, site, other = entangled(n_values=3, agree=0.4)
    eraser = CounterfactualProjection(2).fit(X, counterfactual=other, attribute=site)
    np.testing.assert_allclose(eraser.transform(X), eraser.transform(other), atol=1e-9)  # two directions span them all
    _, sizes, right = np.linalg.svd(X - other, full_matrices=False)
    np.testing.assert_allclose(eraser.singular_values_, sizes[:2] / len(X) ** 0.5, rtol=1e-10)
    np.testing.assert_allclose(np.abs((eraser.components_ * right[:2]).sum(1)), 1, rtol=1e-9)
    with pytest.raises(ValueError, match="n_components must be at most 2"):
        CounterfactualProjection(3).fit(X, counterfactual=other, attribute=site)
    framed = CounterfactualProjection(2).fit(pd.DataFrame(X).add_prefix("f"), counterfactual=other, attribute=site)
    np.testing.assert_array_equal(framed.components_, eraser.components_)
    balanced = CounterfactualProjection(1, balance="group").fit(X, y, counterfactual=other, attribute=site)
    assert balanced.components_.shape == (1, 6)


@pytest.mark.parametrize("rank_by", [None, "counterfactual", "auc", "probe"])
def test_drop_dimensions(rank_by):
    rng = np.random.default_rng(0)
    site, noise = np.arange(200) % 2, rng.standard_normal((200, 5))
    X, other = noise.copy(), noise.copy()
    X[:, 3] += 2.0 * site
    other[:, 3] += 2.0 * (1 - site)
    X[:, 1] += 0.7 * site
    other[:, 1] += 0.7 * (1 - site)
    selector = DropDimensions(2, rank_by=rank_by).fit(X, attribute=site, counterfactual=other)
    assert selector.dropped_.tolist() == [3, 1]
    np.testing.assert_array_equal(selector.transform(X), X[:, [0, 2, 4]])
    assert (DropDimensions(2).fit(X, attribute=site).dropped_ == selector.dropped_).all()


def test_disentangler_finds_the_parts():
    """Independent parts, mixed: the decoder must find what the attribute adds, the encoder what tells the class."""
    rng = np.random.default_rng(0)
    y, site = rng.integers(2, size=(2, 3000))
    parts = 0.7 * rng.standard_normal((3000, 4))
    parts[:, :2] += np.stack([y, site], axis=1)
    mixing = rng.standard_normal((4, 4))
    model = LinearDisentangler(1, 1, random_state=0)
    model.fit(parts @ mixing.T, y, attribute=site)
    added = model.scale_ * model.decoder_[:, 1]
    read = model.encoder_[0] / model.scale_
    assert angle(added, mixing[:, 1]) < 5
    assert angle(read @ mixing, np.eye(4)[0]) < 5
    assert model.reconstruction_error_ < 1e-3
    assert model.attribute_leak_ < 0.02


def angle(a, b):
    return np.degrees(np.arccos(min(1, abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b))))


def test_disentangler_keeps_what_it_is_told_to():
    X, y, site, _ = entangled()
    core = LinearDisentangler(2, 1, tol=0.01, random_state=0).fit(X, y, attribute=site)
    rest = clone(core).set_params(keep="core+other").fit(X, y, attribute=site)
    np.testing.assert_array_equal(core.transform(X), core.encode(X)[:, :2])
    np.testing.assert_array_equal(rest.transform(X), core.encode(X)[:, [0, 1, 3, 4, 5]])
    assert core.get_feature_names_out().tolist() == ["lineardisentangler0", "lineardisentangler1"]
    expected = rest.mean_ + rest.scale_ * (rest.transform(X) @ rest.decoder_[:, [0, 1, 3, 4, 5]].T)
    np.testing.assert_allclose(rest.inverse_transform(rest.transform(X)), expected, atol=1e-12)
    plain = LinearDisentangler(0, 0, keep="core+other", random_state=0).fit(X, y, attribute=site)
    assert plain.reconstruction_error_ < 1e-3


def test_disentangler_descends_its_objective():
    """Slow reference: the loss written out row by row, as the page states it."""
    X, y, site, _ = entangled(80, 5)
    model = LinearDisentangler(2, 1, class_weight=0.5, attribute_weight=2.0, independence=3.0, random_state=0)
    Z, _, _ = module._scores.standardised(X)
    weights = np.random.default_rng(1).uniform(0.5, 2, size=80)
    objective = module._disentangler._Objective(Z, np.eye(2)[y], np.eye(2)[site], weights, model)
    rng = np.random.default_rng(2)
    parts = {name: value.detach() for name, value in objective.start(module._disentangler.Streams(0)).items()}
    parts = {name: value + 0.3 * torch.tensor(rng.standard_normal(value.shape)) for name, value in parts.items()}
    E, D, H, b = (parts[name].numpy() for name in ("encoder", "decoder", "heads", "intercepts"))
    codes, w = Z @ E.T, weights / weights.sum()
    expected = w @ ((codes @ D.T - Z) ** 2).sum(1) / 5
    for weight, labels, rows, columns in [(0.5, y, slice(0, 2), slice(0, 2)), (2.0, site, slice(2, 3), slice(2, 4))]:
        logits = codes[:, rows] @ H[rows, columns] + b[columns]
        expected += weight * w @ (np.log(np.exp(logits).sum(1)) - logits[np.arange(80), labels])

    def squared_correlations(kept, labels):
        covariance = np.cov(codes[:, kept].T, labels, aweights=weights, ddof=0)
        correlations = covariance[:-1, -1] / np.sqrt(np.diag(covariance)[:-1] * covariance[-1, -1])
        return 2 * (correlations**2).sum()  # both indicators of two values

    expected += 3 * (squared_correlations([0, 1, 3, 4], site) + squared_correlations([2], y))
    assert float(objective(parts)) == pytest.approx(expected, rel=1e-9)


def _made_up(X, y, *, transformer=True, counterfactual=False):
    """Return what `fit` needs beside X and y: attribute, counterfactual and, for transformers, class."""
    shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
    rows = np.arange(shape[0])
    derived = {"y": rows // 2 % 2} if transformer else {}
    labels = np.asarray(derived.get("y", y))
    if labels.shape == rows.shape:
        rows = np.array([np.sum(labels[:i] == labels[i]) for i in rows])  # within classes
    return derived | {"attribute": rows % 2} | ({"counterfactual": np.zeros(shape)} if counterfactual else {})


_head = functools.partial(_made_up, transformer=False)
_pair = functools.partial(_made_up, counterfactual=True)
CHECKED = [
    with_derived_arguments(LEACE, _made_up)(),
    with_derived_arguments(LEACE, _made_up)(balance="group", shrinkage=True),
    with_derived_arguments(INLP, _made_up)(2, balance="group"),
    with_derived_arguments(CounterfactualProjection, _pair)(),
    with_derived_arguments(DropDimensions, _made_up)(0),
    with_derived_arguments(LinearDisentangler, _made_up)(1, 0, tol=0.1),
    with_derived_arguments(LastLayerRetrainer, _head)("reweight"),
    with_derived_arguments(SpuriousFeatureReport, _made_up)(2),
]
OTHER_HEADS = [
    with_derived_arguments(LastLayerRetrainer, _head)(method, n_refits=2) for method in METHODS if method != "reweight"
]


@parametrize_with_checks(CHECKED)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(OTHER_HEADS)
def test_scikit_learn_contract_of_other_heads(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("estimator", "extra"),
    [
        (LEACE(balance="group"), {}),
        (INLP(2), {}),
        (CounterfactualProjection(1), {"counterfactual"}),
        (DropDimensions(2), {}),
        (LinearDisentangler(2, 1, tol=0.1), {}),
        (LastLayerRetrainer("dfr", n_refits=2), {}),
        (SpuriousFeatureReport(2), {"counterfactual"}),
    ],
)
def test_contract_with_attribute(estimator, extra):
    X, y, site, other = entangled(80)
    check_estimator_contract(estimator, X, y, attribute=site, **({"counterfactual": other} if extra else {}))


X, Y, SITE, OTHER = entangled(60)
HOLE = np.where(np.arange(X.size).reshape(X.shape) == 7, np.nan, X)
EVERYWHERE = [
    ({"attribute": np.zeros(60)}, ValueError, "at least two values"),
    ({"attribute": SITE[:-1]}, ValueError, "60 entries"),
    ({"attribute": None}, ValueError, "None"),
    ({"attribute": SITE + 0.5}, ValueError, "not continuous"),
    ({"attribute": np.where(SITE == 0, np.nan, 1.0)}, ValueError, "missing"),
    ({"attribute": np.stack([SITE, SITE], axis=1)}, ValueError, "shape (n,)"),
    ({"attribute": Y}, ValueError, "cannot separate: attribute is determined by y"),
    ({"attribute": 2 * Y + SITE}, ValueError, "cannot separate: y is determined by attribute"),
    ({"attribute": SITE + 0j}, TypeError, "complex128"),
    ({"attribute": SITE.astype("datetime64[D]")}, TypeError, "datetime64"),
    ({"attribute": [(0,), *SITE[1:].tolist()]}, ValueError, "regular"),
    ({"attribute": np.array(["0", *SITE[1:]], dtype=object)}, TypeError, "of type int64, str"),
    ({"attribute": np.ma.masked_equal(SITE, 1)}, ValueError, "no masked values"),
    ({"attribute": torch.tensor(SITE).to_sparse()}, TypeError, "dense tensor"),
    ({"X": X.astype("timedelta64[s]")}, TypeError, "timedelta64"),
    ({"X": np.ma.masked_less(X, 0)}, ValueError, "no masked values"),
    ({"X": X * 1e200}, ValueError, "below 1e+70 in size"),
    ({"X": HOLE}, ValueError, "no NaN and no inf, got nan in row 1, column 1"),
    ({"X": np.where(np.isnan(HOLE), np.inf, HOLE)}, ValueError, "got inf"),
]
NEED_CLASSES = [({"y": None}, ValueError, "None"), ({"y": Y[:-1]}, ValueError, "60 entries")]


@pytest.mark.parametrize(
    ("estimator", "cases"),
    [
        (
            LEACE(balance="group"),
            [*NEED_CLASSES, ({"X": X[:, :1].repeat(60, axis=1)}, ValueError, "more rows than columns")],
        ),
        (INLP(balance="group"), NEED_CLASSES),
        (
            DropDimensions(2, balance="group"),
            [*NEED_CLASSES, ({"counterfactual": OTHER[:5]}, ValueError, "shape (60, 6)")],
        ),
        (LinearDisentangler(2, 2, tol=0.1), NEED_CLASSES),
        (LastLayerRetrainer(), [*NEED_CLASSES, ({"y": np.zeros(60)}, ValueError, "at least two classes")]),
        (SpuriousFeatureReport(), [*NEED_CLASSES, ({"y": np.zeros(60)}, ValueError, "at least two classes")]),
    ],
)
def test_bad_data(estimator, cases):
    check_bad_input(clone(estimator).fit, EVERYWHERE + cases, X=X, y=Y, attribute=SITE)


def test_bad_counterfactuals():
    cases = [
        ({"counterfactual": OTHER[:-1]}, ValueError, "shape (60, 6)"),
        ({"counterfactual": None}, ValueError, "None"),
        ({"counterfactual": HOLE}, ValueError, "finite, got nan"),
        ({"counterfactual": X}, ValueError, "at most 0"),
    ]
    check_bad_input(CounterfactualProjection().fit, cases, X=X, y=Y, attribute=SITE)


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        (
            LEACE,
            [
                ({"balance": "groups"}, ValueError, "'group'"),
                ({"method": "lace"}, ValueError, "leace"),
                ({"shrinkage": 2}, TypeError, "True"),
            ],
        ),
        (
            INLP,
            [
                ({"n_iterations": 0}, ValueError, ">= 1"),
                ({"n_iterations": 1.5}, TypeError, "integer"),
                ({"C": 0}, ValueError, "> 0"),
            ],
        ),
        (
            DropDimensions,
            [({"n_dimensions": 6}, ValueError, "less than the 6 columns"), ({"rank_by": "mi"}, ValueError, "auc")],
        ),
        (
            LinearDisentangler,
            [
                ({"n_core": 4, "n_spurious": 3}, ValueError, "at most n_features = 6"),
                ({"n_core": -1}, ValueError, ">= 0"),
                ({"keep": "spurious"}, ValueError, "core"),
                ({"independence": -1.0}, ValueError, ">= 0"),
                ({"max_iter": 0}, ValueError, ">= 1"),
                ({"device": "tpu9"}, ValueError, "cuda"),
            ],
        ),
        (
            SpuriousFeatureReport,
            [
                ({"directions": "lda"}, ValueError, "pca"),
                ({"n_directions": 0}, ValueError, ">= 1"),
                ({"directions": "counterfactual"}, ValueError, "None"),
            ],
        ),
    ],
)
def test_bad_parameters(kind, cases):
    good = {"n_core": 2, "n_spurious": 2} if kind is LinearDisentangler else {}
    good = {"n_dimensions": 2} if kind is DropDimensions else good
    cases = [({**kwargs}, error, text) for kwargs, error, text in cases]
    if kind is SpuriousFeatureReport:
        cases[-1] = ({"directions": "counterfactual", "counterfactual": None}, *cases[-1][1:])

    def call(counterfactual=None, **parameters):
        kind(**parameters).fit(X, Y, attribute=SITE)

    check_bad_input(call, cases, **good)


def test_pipelines_route_the_attribute():
    with config_context(enable_metadata_routing=True):
        steps = LEACE().set_fit_request(attribute=True), LogisticRegression()
        pipeline = make_pipeline(*steps).fit(X, Y, attribute=SITE)
        assert pipeline.score(X, Y) > 0.5


def test_an_empty_group_is_warned_of_and_left_out():
    kept = ~((Y == 0) & (SITE == 1))
    with pytest.warns(UserWarning, match=r"without rows .* \[\(0, 1\)\]"):
        eraser = LEACE(balance="group").fit(X[kept], Y[kept], attribute=SITE[kept])
    weights = module._inputs.balanced_weights(*(module._inputs.check_labels("y", v[kept]) for v in (Y, SITE)))
    expected = np.average(X[kept], axis=0, weights=weights)
    np.testing.assert_allclose(eraser.location_, expected, atol=1e-12)
