"""Label noise, its estimates, and Fano's inequality in both directions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise.core.io import load_npz
from natwise.supervision import (
    InstanceNoise,
    PairNoise,
    UniformNoise,
    confident_joint,
    corrupt_labels,
    estimate_transition_matrix,
    fano_error_lower_bound,
    memorized_label_information,
    transition_entropy,
)
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))


@pytest.mark.parametrize("noise", [UniformNoise(0.0), UniformNoise(0.8), PairNoise(0.4), PairNoise(0.4, {0: 2})])
def test_realised_noise_follows_the_matrix(noise):
    matrix = noise.transition_matrix(4)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    y = np.repeat(np.arange(4), 25_000)
    labels, flags = corrupt_labels(y, matrix, random_state=0)
    realised = np.bincount(y * 4 + labels, minlength=16).reshape(4, 4) / 25_000
    assert (realised[matrix == 0] == 0).all()
    np.testing.assert_allclose(realised, matrix, atol=4 * np.sqrt(0.25 / 25_000))
    np.testing.assert_array_equal(flags, labels != y)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(corrupt_labels(y, matrix, random_state=0)[0], labels)
    assert matrix.max() == 1 or (corrupt_labels(y, matrix, random_state=1)[0] != labels).any()


def test_the_pairs_of_the_paper():
    matrix = PairNoise(0.4, PairNoise.CIFAR10).transition_matrix(10)
    changed = {(i, j): matrix[i, j] for i in range(10) for j in range(10) if i != j and matrix[i, j]}
    assert changed == {(9, 1): 0.4, (2, 0): 0.4, (4, 7): 0.4, (3, 5): 0.4}
    np.testing.assert_array_equal(PairNoise(0.4).transition_matrix(3), [[0.6, 0.4, 0], [0, 0.6, 0.4], [0.4, 0, 0.6]])


def test_instance_dependent_noise():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20_000, 5)), rng.integers(4, size=20_000)
    noise = InstanceNoise(0.3)
    probabilities = noise.label_probabilities(X, y, 4, random_state=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    rates = 1 - probabilities[np.arange(len(y)), y]
    np.testing.assert_allclose([rates.mean(), rates.std()], [0.3, 0.1], atol=0.01)
    labels, flags = noise.corrupt(X, y, 4, random_state=0)
    np.testing.assert_allclose(flags.mean(), 0.3, atol=0.02)
    likely = probabilities[np.arange(len(y)), labels]
    assert likely[flags].mean() > probabilities[flags].sum(axis=1).mean() * 0.3 / 3 * 1.2  # features choose the class
    np.testing.assert_array_equal(noise.corrupt(X, y, 4, random_state=0)[0], labels)


def test_entropy_of_noise():
    rows = GOLDEN["fano"][:1]
    uniform = UniformNoise(0.8).transition_matrix(10)
    np.testing.assert_allclose(transition_entropy(uniform), rows[0, 1], rtol=1e-12)
    pair = PairNoise(0.4, {0: 1}).transition_matrix(2)
    binary = -0.4 * np.log(0.4) - 0.6 * np.log(0.6)
    np.testing.assert_allclose(transition_entropy(pair), binary / 2)
    np.testing.assert_allclose(transition_entropy(pair, [0.1, 0.9]), binary / 10)


def noisy_world(seed=0, n=4000, k=3):
    """Calibrated probabilities of the given label around anchor points, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    noise = np.array([[0.7, 0.2, 0.1], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]])
    clean = rng.dirichlet(np.full(k, 0.05), size=n)
    true = clean.argmax(axis=1)
    return noise, clean @ noise, corrupt_labels(true, noise, random_state=seed)[0]


def test_anchor_estimate():
    noise, probabilities, _ = noisy_world()
    loose = np.abs(estimate_transition_matrix(probabilities, quantile=None) - noise).max()
    assert loose < 0.01
    spoilt = np.vstack([probabilities, [[1.0, 0.0, 0.0]]])  # one overconfident outlier
    assert np.abs(estimate_transition_matrix(spoilt, quantile=None) - noise).max() > 0.2
    assert np.abs(estimate_transition_matrix(spoilt) - noise).max() < 0.15


def test_the_anchor_estimate_leaves_other_rows_alone():
    """The original zeroed outliers inside the predictions, so that later rows lost entries."""
    probabilities = np.array([[0.6, 0.3, 0.1], [0.55, 0.35, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(estimate_transition_matrix(probabilities)[0], [0.55, 0.35, 0.1])
    np.testing.assert_allclose(estimate_transition_matrix(probabilities)[1], [0.55, 0.35, 0.1])


def test_confident_joint_counts_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    y = np.array([0, 0, 0, 1, 1])  # thresholds (0.9 + 0.5 + 0.2) / 3 = 0.533 and (0.4 + 0.9) / 2 = 0.65
    np.testing.assert_array_equal(confident_joint(y, probabilities), [[1, 1], [1, 1]])


def test_confident_estimate():
    noise, _, y = noisy_world()
    sure = np.full((len(y), 3), 0.05)
    sure[np.arange(len(y)), np.random.default_rng(0).dirichlet(np.full(3, 0.05), size=len(y)).argmax(axis=1)] = 0.9
    estimate = estimate_transition_matrix(sure, y, method="confident")
    np.testing.assert_allclose(estimate, noise, atol=0.05)
    empty = estimate_transition_matrix(np.array([[0.9, 0.1], [0.8, 0.2]]), [0, 0], method="confident")
    np.testing.assert_array_equal(empty[1], [0, 1])


def test_fano_reference_numbers():
    for k, entropy, information, rate in GOLDEN["fano"]:
        np.testing.assert_allclose(fano_error_lower_bound(entropy, information, int(k)), rate, atol=1e-10)
    for k, p, error, information in GOLDEN["memorised"]:
        entropy = transition_entropy(UniformNoise(p).transition_matrix(int(k)))
        np.testing.assert_allclose(memorized_label_information(error, entropy, int(k)), information, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(k=st.integers(2, 50), share=st.floats(0, 1), noise=st.floats(0, 1))
def test_the_two_directions_are_inverse(k, share, noise):
    p = noise * (k - 1) / k
    entropy = transition_entropy(UniformNoise(p).transition_matrix(k))
    np.testing.assert_allclose(fano_error_lower_bound(entropy, 0.0, k), p, atol=1e-7)  # no memory: the noise rate
    rate = fano_error_lower_bound(entropy, share * entropy, k)
    assert 0 <= rate <= p + 1e-7
    np.testing.assert_allclose(memorized_label_information(rate, entropy, k), share * entropy, atol=1e-9)


def test_arrays_broadcast():
    rates = fano_error_lower_bound([[0.5], [1.0]], [0.0, 0.2, 2.0], 4)
    assert rates.shape == (2, 3)
    assert (np.diff(rates, axis=1) <= 0).all()
    curve = memorized_label_information(np.linspace(0.8, 0.0, 9), np.log(10) - 0.05, 10)
    assert (np.diff(curve) >= 0).all()
    assert isinstance(memorized_label_information(0.1, 0.5, 2), float)


PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("call", "good", "cases"),
    [
        (UniformNoise, {}, [({"p": 1.2}, ValueError, "<= 1"), ({"p": "a"}, TypeError, "number")]),
        (PairNoise, {"p": 0.1}, [({"p": -0.1}, ValueError, ">= 0"), ({"mapping": [1, 0]}, TypeError, "dict")]),
        (PairNoise(0.1, {0: 5}).transition_matrix, {}, [({"n_classes": 1}, ValueError, ">= 2")]),
        (PairNoise(0.1).transition_matrix, {}, [({"n_classes": 1}, ValueError, ">= 2")]),
        (
            corrupt_labels,
            {"y": [0, 1], "transition": np.eye(2)},
            [
                ({"transition": np.ones((2, 3))}, ValueError, "square"),
                ({"transition": np.ones((2, 2))}, ValueError, "row 0 sums to 2"),
                ({"transition": np.array([[2.0, -1.0], [0.0, 1.0]])}, ValueError, ">= 0"),
                ({"y": [0, 2]}, ValueError, "within 0 and 1"),
                ({"y": [0.5, 1]}, ValueError, "whole numbers"),
                ({"y": []}, ValueError, "at least one"),
                ({"random_state": "seed"}, TypeError, "random_state"),
            ],
        ),
        (
            estimate_transition_matrix,
            {"probabilities": PROBABILITIES},
            [
                ({"probabilities": PROBABILITIES + 1}, ValueError, "sum to 1"),
                ({"method": "anchors"}, ValueError, "Did you mean 'anchor'"),
                ({"method": "confident", "y": None}, ValueError, "must be given"),
                ({"quantile": 1.0}, ValueError, "< 1"),
            ],
        ),
        (confident_joint, {"probabilities": PROBABILITIES}, [({"y": [0, 1, 1]}, ValueError, "same length")]),
        (
            transition_entropy,
            {"transition": np.eye(2)},
            [({"class_prior": [1.0, 1.0]}, ValueError, "sum to 1")],
        ),
        (
            fano_error_lower_bound,
            {"label_entropy": 0.5, "information": 0.1, "n_classes": 3},
            [
                ({"label_entropy": 1.2}, ValueError, "nats"),
                ({"information": -0.1}, ValueError, ">= 0"),
                ({"information": float("nan")}, ValueError, "finite"),
                ({"n_classes": 1}, ValueError, ">= 2"),
            ],
        ),
        (
            memorized_label_information,
            {"label_entropy": 0.5, "n_classes": 3},
            [({"train_error": 1.1}, ValueError, "<= 1"), ({"train_error": -0.1}, ValueError, ">= 0")],
        ),
    ],
)
def test_bad_input(call, good, cases):
    check_bad_input(call, cases, **good)
