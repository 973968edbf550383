"""The transformer: gradients, identities with the measures of synergy, scikit-learn's contract, bad input, studies."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from natwise import registry
from natwise.structure import MinSyn, synergy
from natwise.structure.minsyn import study
from natwise.structure.minsyn._bernoulli import BernoulliDecoder, BernoulliLoss, factor_information
from natwise.structure.minsyn._gaussian import GaussianLoss
from natwise.structure.minsyn._span import Span
from natwise.testing import check_bad_input, check_result, same_bits, unchanged


def mixtures(n_samples=60, n_features=7, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) @ rng.standard_normal((n_features, n_features))
    return (X - X.mean(0)) / X.std(0)


def groups(n_samples=300, seed=0):
    """Nine variables in three groups of three; the sources of the groups depend on one another."""
    rng = np.random.default_rng(seed)
    sources = rng.multivariate_normal(np.zeros(3), 0.6 * np.eye(3) + 0.4, size=n_samples)
    return np.repeat(sources, 3, axis=1) + 0.4 * rng.standard_normal((n_samples, 9))


def bits(n_samples=120, seed=0):
    """Two dependent bits, each seen through three noisy copies."""
    rng = np.random.default_rng(seed)
    first = rng.random(n_samples) < 0.5
    second = np.where(rng.random(n_samples) < 0.25, ~first, first)
    clean = np.repeat(np.stack([first, second], axis=1), 3, axis=1)
    return np.where(rng.random(clean.shape) < 0.05, ~clean, clean).astype(float)


def loss_of(likelihood, beta):
    if likelihood == "gaussian":
        return GaussianLoss(Span.of(mixtures()), 3, 0.1, beta)
    X = np.random.default_rng(1).random((30, 5))
    return BernoulliLoss(X, Span.of(X - X.mean(0)), 3, beta)


@parametrize_with_checks([MinSyn(), MinSyn(n_components=1, beta=1.0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("likelihood", "X"), [("gaussian", groups(40)), ("bernoulli", bits(40))])
def test_same_seed_same_bits_and_nothing_changed(likelihood, X):
    model = MinSyn(2, likelihood=likelihood, beta=0.5, random_state=0)
    with unchanged(X, model.get_params()):
        first = model.fit(X).transform(X)
    assert same_bits(first, clone(model).fit(X).transform(X))


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_gradient(likelihood, beta):
    loss = loss_of(likelihood, beta)
    a = 2 * np.random.default_rng(2).standard_normal(loss.start(np.random.default_rng(0)).shape).ravel()
    steps = 1e-6 * np.eye(a.size)
    numeric = [(loss(a + step)[0] - loss(a - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(loss(a)[1], numeric, rtol=1e-6, atol=1e-6)


def test_gaussian_loss_is_entropy_plus_synergy():
    """Slow reference: every variable by itself, from the joint covariance of the variable and the noisy factors."""
    loss = loss_of("gaussian", beta=0.7)
    X, a = mixtures(), np.random.default_rng(3).standard_normal((3, 7))
    W = loss.weights(a)
    S = X.T @ X / len(X)
    C = W @ S @ W.T
    expected = 0.7 * -0.5 * np.log(1 - np.diag(C)).sum()
    np.fill_diagonal(C, 1)
    for i in range(X.shape[1]):
        R = np.block([[S[i, i], S[i] @ W.T], [(W @ S[:, i])[:, None], C]])
        conditional_entropy = 0.5 * np.log(2 * np.pi * np.e * np.linalg.det(R) / np.linalg.det(C))
        expected += conditional_entropy + synergy.ci(covariance=R)
    assert loss(a.ravel())[0] == pytest.approx(expected, rel=1e-10)


def test_bernoulli_loss_is_the_decoder_by_bayes_rule():
    """Slow reference: with 0/1 factors, p_CI(x|y) ~ p(x) prod_j p(y_j|x), by loops."""
    rng = np.random.default_rng(4)
    X = (rng.random((50, 4)) < 0.5).astype(float)
    Y = (rng.random((50, 3)) < 0.2 + 0.6 * X[:, :3]).astype(float)
    predicted = BernoulliDecoder.of(X, Y).predict(Y)
    for n in range(len(X)):
        for i in range(X.shape[1]):
            weight = {}
            for x in (0, 1):
                rows = X[:, i] == x
                weight[x] = rows.mean() * np.prod([(Y[rows, j] == Y[n, j]).mean() for j in range(Y.shape[1])])
            assert predicted[n, i] == pytest.approx(weight[1] / (weight[0] + weight[1]), rel=1e-9)


def test_information_of_binary_factors():
    logits = np.random.default_rng(5).standard_normal((40, 2))
    y = 1 / (1 + np.exp(-logits))
    joint = np.stack([y, 1 - y], axis=1) / len(y)  # (samples, on or off, factor)
    expected = [(p * np.log(p / (p.sum(1, keepdims=True) * p.sum(0)))).sum() for p in joint.transpose(2, 0, 1)]
    np.testing.assert_allclose(factor_information(logits), expected, rtol=1e-12)


def test_dependent_groups_are_found():
    model = MinSyn(3, random_state=0).fit(groups())
    strongest = np.abs(model.components_).argmax(0)
    assert len(set(strongest)) == 3
    assert (strongest.reshape(3, 3) == strongest[::3, None]).all()
    assert (np.diff(model.mutual_info_.sum(1)) <= 1e-9).all()
    assert (model.components_[np.arange(3), np.abs(model.components_).argmax(1)] > 0).all()
    assert (model.factor_information_ <= -0.5 * np.log(model.noise) + 1e-9).all()


def test_dependent_bits_are_found():
    X = bits()
    model = MinSyn(2, likelihood="bernoulli", beta=0.5, random_state=0).fit(X)
    correlation = np.abs(np.corrcoef(X.T, model.transform(X).T)[:6, 6:])
    assert (correlation.argmax(1).reshape(2, 3) == correlation.argmax(1)[::3, None]).all()
    assert correlation.max(1).min() > 0.8
    reconstruction = model.inverse_transform(model.transform(X))
    assert ((reconstruction > 0.5) == (X > 0.5)).mean() > 0.9


def test_attributes_agree_with_the_measures():
    X = groups()
    model = MinSyn(3, noise=0.05, random_state=0).fit(X)
    Z = (X - X.mean(0)) / X.std(0)
    C = np.cov((Z @ model.components_.T).T, bias=True)
    R = Z.T @ model.transform(X) / len(X)
    np.testing.assert_allclose(model.factor_information_, -0.5 * np.log(1 - np.diag(C)), rtol=1e-6)
    np.fill_diagonal(C, 1)
    for i in range(9):
        joint = np.block([[np.ones((1, 1)), R[i : i + 1]], [R[i][:, None], C]])
        assert model.synergy_[i] == pytest.approx(synergy.ci(covariance=joint), abs=1e-9)
    np.testing.assert_allclose(model.mutual_info_, -0.5 * np.log(1 - R.T**2), rtol=1e-9)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_score_on_the_sample_is_minus_the_loss(likelihood):
    X = groups() if likelihood == "gaussian" else bits()
    X = np.column_stack([X, np.full(len(X), 0.25)]) if likelihood == "gaussian" else X
    model = MinSyn(2, likelihood=likelihood, random_state=0).fit(X)
    constant = 0.5 * np.log(2 * np.pi) + 0.5 if likelihood == "gaussian" else 0.0  # the constant variable
    assert model.score(X) == pytest.approx(-(model.loss_ - constant) - np.log(model.scale_).sum(), rel=1e-9)


def test_more_variables_than_samples():
    """The weights on directions that no sample shows follow from the others: the sample's factors stay the same."""
    rng = np.random.default_rng(6)
    X = np.hstack([groups(30), rng.standard_normal((30, 60))])
    model = MinSyn(3, random_state=0).fit(X)
    span = Span.of((X - X.mean(0)) / X.std(0))
    visible = span.project(model.components_)
    assert np.abs(model.components_ - visible).max() > 1e-3
    np.testing.assert_allclose((X - X.mean(0)) / X.std(0) @ visible.T, model.transform(X), atol=1e-8)
    on_noise = (model.components_[:, 9:] ** 2).sum() / (model.components_**2).sum()
    assert on_noise < (visible[:, 9:] ** 2).sum() / (visible**2).sum()


def test_units_do_not_matter():
    X = groups()
    a = MinSyn(3, random_state=0).fit(X)
    b = MinSyn(3, random_state=0).fit(-100 * X + 3)
    assert a.loss_ == pytest.approx(b.loss_, rel=1e-6)
    np.testing.assert_allclose(a.inverse_transform(a.transform(X)), X, atol=2.0)
    assert np.mean((a.inverse_transform(a.transform(X)) - X) ** 2) < 0.25


def test_restarts_keep_the_best():
    losses = [MinSyn(3, likelihood="bernoulli", n_init=n, random_state=0).fit(bits()).loss_ for n in (1, 4)]
    assert losses[1] <= losses[0]


def test_it_says_when_it_stopped_early():
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        MinSyn(2, max_iter=1, random_state=0).fit(groups())


def test_bad_parameters_and_data():
    def fit(X, **parameters):
        return MinSyn(**parameters).fit(X)

    good = {"X": groups(20), "n_components": 2}
    nan = np.where(np.arange(9) == 4, np.nan, groups(20))
    cases = [
        ({"n_components": 0}, ValueError, ">= 1"),
        ({"n_components": 1.5}, TypeError, "integer"),
        ({"likelihood": "gausian"}, ValueError, "Did you mean 'gaussian'"),
        ({"beta": -1}, ValueError, ">= 0"),
        ({"beta": float("nan")}, ValueError, "finite"),
        ({"noise": 0.0}, ValueError, "[1e-6, 1)"),
        ({"noise": 1.0}, ValueError, "[1e-6, 1)"),
        ({"n_init": 0}, ValueError, ">= 1"),
        ({"max_iter": 0}, ValueError, ">= 1"),
        ({"tol": "small"}, TypeError, "number"),
        ({"random_state": "x"}, TypeError, "random_state"),
        ({"X": nan}, ValueError, "NaN"),
        ({"X": groups(1)}, ValueError, "minimum of 2"),
        ({"X": np.ones((5, 3))}, ValueError, "varies"),
        ({"X": 1e200 * groups(20)}, ValueError, "finite variances"),
        ({"X": groups(20), "likelihood": "bernoulli"}, ValueError, "[0, 1]"),
    ]
    messages = [case for case in cases if "X" not in case[0] or case[2] in ("varies", "[0, 1]")]
    check_bad_input(fit, messages, **good)
    for kwargs, error, text in cases:
        with pytest.raises(error, match=text.replace("[", r"\[").replace(")", r"\)")):
            fit(**{**good, **kwargs})


def test_bad_factors():
    model = MinSyn(2, likelihood="bernoulli", random_state=0).fit(bits())
    with pytest.raises(ValueError, match="shape"):
        model.inverse_transform(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model.inverse_transform(np.full((3, 2), 1.5))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model.transform(np.full((3, 6), -1.0))


@pytest.mark.parametrize("claim", ["synergy-values", "synthetic-strings"])
def test_study(claim):
    result = study.run(claim, scale="ci", seed=0)
    check_result(result)
    assert study.figure(claim, result).axes
    stated = {claim.id: claim for claim in registry.card("structure.minsyn").claims}
    assert stated[claim].holds(result.scalars[stated[claim].metric])


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["words-purity", "words-noise"])
def test_words(claim, local_data):
    path = local_data(study.WORDS)
    result = study.run(claim, scale="ci", seed=0, data_dir=path.parent.parent)
    stated = {claim.id: claim for claim in registry.card("structure.minsyn").claims}
    assert stated[claim].holds(result.scalars[stated[claim].metric])
