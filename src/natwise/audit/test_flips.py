"""The share of wrong labels and the precision of a ranking, held to simulations in which both are known."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise.audit.flips import expected_precision, fit_flips
from natwise.audit.judging import label_issue_score
from natwise.core.random import Streams

CUTS = np.array([20, 60, 200, 600])


def simulate(noise, overlap, k=4, n=3000, seed=0, dull=1.0):
    """Labels drawn from probabilities, some replaced; what a model would say, which is duller by a power."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, k)) * (4.0 / overlap)
    right = np.exp(logits - logits.max(axis=1, keepdims=True))
    right /= right.sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > np.cumsum(right, axis=1)).sum(axis=1).clip(max=k - 1)
    wrong = rng.random(n) < noise
    labels[wrong] = (labels[wrong] + rng.integers(1, k, wrong.sum())) % k
    seen = right**dull
    return seen / seen.sum(axis=1, keepdims=True), labels, wrong


@pytest.mark.parametrize("k", [2, 4, 20])
@pytest.mark.parametrize("overlap", [0.5, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_noise_and_precision_hold_with_and_without_overlap(noise, overlap, k):
    probabilities, labels, wrong = simulate(noise, overlap, k, dull=0.7)
    flips = fit_flips(probabilities, labels, Streams(0))
    estimate, low, high = flips.noise
    assert low <= estimate <= high
    assert low - 0.005 <= wrong.mean() <= high + 0.005
    assert abs(estimate - wrong.mean()) < 0.02 + 0.02 * overlap
    order = np.argsort(-label_issue_score(probabilities, labels), kind="stable")
    chances = np.stack([flips.wrong(probabilities, labels, which) for which in range(3)])
    expected, lower, upper = expected_precision(chances, order, CUTS)
    known = np.cumsum(wrong[order])[CUTS - 1] / CUTS
    assert ((lower - 0.1 <= known) & (known <= upper + 0.1)).all()
    assert (lower <= expected).all()
    assert (expected <= upper).all()


def test_labels_that_nothing_determines_leave_the_noise_open():
    labels = np.random.default_rng(0).integers(4, size=1000)
    flips = fit_flips(np.full((1000, 4), 0.25), labels, Streams(0))
    assert flips.noise[2] - flips.noise[1] > 0.5


def test_a_model_that_expects_mistakes_hides_them_and_the_high_end_can_be_raised():
    probabilities, labels, wrong = simulate(0.2, 1.0)
    expecting = 0.8 * probabilities + 0.2 * (1 - probabilities) / 3
    flips = fit_flips(expecting, labels, Streams(0))
    assert flips.noise[0] < wrong.mean() - 0.05
    raised = flips.up_to(0.25)
    assert raised.noise[2] >= 0.25
    np.testing.assert_array_equal(raised.noise[:2], flips.noise[:2])
    assert raised.wrong(expecting, labels, 2).sum() > flips.wrong(expecting, labels, 0).sum()
    assert raised.up_to(0.1) is raised


def test_blocks_change_nothing(monkeypatch):
    probabilities, labels, _ = simulate(0.1, 1.0, n=500)
    flips = fit_flips(probabilities, labels, Streams(0))
    whole = flips.wrong(probabilities, labels)
    monkeypatch.setattr("natwise.audit.flips.BLOCK", 7)
    np.testing.assert_array_equal(flips.wrong(probabilities, labels), whole)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(20, 60))
def test_anything_gives_chances(seed, k, n):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(k, 0.2), size=n)
    labels = rng.integers(k, size=n)
    flips = fit_flips(probabilities, labels, Streams(seed))
    wrong = flips.wrong(probabilities, labels)
    assert ((wrong >= 0) & (wrong <= 1)).all()
