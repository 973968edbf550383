import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import multivariate_normal

from natwise.core.gaussian import LowRankDiagCovariance


def make(rank, n_features, seed=0):
    rng = np.random.default_rng(seed)
    return LowRankDiagCovariance(rng.standard_normal((rank, n_features)), np.exp(2 * rng.standard_normal(n_features)))


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(0, 5), n_features=st.integers(1, 12), seed=st.integers(0, 1000))
def test_equals_dense_algebra(rank, n_features, seed):
    covariance = make(rank, n_features, seed)
    dense = covariance.loadings.T @ covariance.loadings + np.diag(covariance.diagonal)
    X = 3 * np.random.default_rng(seed + 1).standard_normal((7, n_features))
    np.testing.assert_allclose(covariance.toarray(), dense, rtol=1e-12)
    np.testing.assert_allclose(covariance.logdet(), np.linalg.slogdet(dense)[1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(dense @ covariance.solve(X.T), X.T, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(dense @ covariance.solve(X[0]), X[0], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(dense @ covariance.precision(), np.eye(n_features), atol=1e-7)
    expected = np.atleast_1d(multivariate_normal(cov=dense).logpdf(X))
    np.testing.assert_allclose(covariance.log_likelihood(X), expected, rtol=1e-8)
    assert covariance.shape == (n_features, n_features)


def test_samples_have_the_covariance_and_follow_the_seed():
    covariance = make(2, 4)
    samples = covariance.sample(200_000, random_state=0)
    error = np.cov(samples.T) - covariance.toarray()
    assert np.abs(error).max() < 0.02 * np.abs(covariance.toarray()).max()
    np.testing.assert_array_equal(covariance.sample(3, random_state=1), covariance.sample(3, random_state=1))
    assert not np.array_equal(covariance.sample(3, random_state=1), covariance.sample(3, random_state=2))


def test_a_hundred_thousand_variables_need_no_square_matrix():
    covariance = make(3, 100_000)
    X = covariance.sample(2, random_state=0)
    assert np.isfinite(covariance.log_likelihood(X)).all()
    assert covariance.solve(X[0]).shape == (100_000,)


@pytest.mark.parametrize(
    ("loadings", "diagonal", "message"),
    [
        (np.ones(3), np.ones(3), "loadings must have shape"),
        (np.ones((2, 3)), np.ones(4), "diagonal must have shape"),
        (np.ones((2, 3)), [1, 0, 1], "diagonal must be > 0, got 0.0 at index 1"),
        (np.full((2, 3), np.nan), np.ones(3), "loadings must be finite"),
    ],
)
def test_bad_construction(loadings, diagonal, message):
    with pytest.raises(ValueError, match=message):
        LowRankDiagCovariance(loadings, diagonal)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.solve(np.ones(5)), "b must have shape"),
        (lambda c: c.log_likelihood(np.ones((2, 5))), "X must have shape"),
        (lambda c: c.log_likelihood(np.ones(4)), "X must have shape"),
        (lambda c: c.sample(0), "n must be >= 1"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(make(2, 4))
