"""Exact enumeration: reference numbers, a slow dictionary reference, closed forms, properties, bad input.

`golden.npz` holds reference numbers: eleven learning problems (affine parities, balanced labellings) enumerated by an
independent implementation with dictionaries of training sets. Its own rounding reaches 4e-12.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from natwise.core.information import mutual_information as core_information
from natwise.core.io import load_npz
from natwise.generalization import FiniteLearningProblem, affine_parity_problem, balanced_labelling_problem
from natwise.generalization.samplewise_limits import study
from natwise.testing import check_bad_input, check_result, unchanged

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
CASES = list(zip(GOLDEN["balanced"], GOLDEN["n"], GOLDEN["size"], strict=True))
LOSS = [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
KERNEL = [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.1, 0.1, 0.8]]


def construct(balanced, n, size):
    return (balanced_labelling_problem if balanced else affine_parity_problem)(n, size)


def random_problem(seed):
    return study.random_problem(np.random.default_rng(seed))


@pytest.mark.parametrize("i", range(len(CASES)))
def test_reference_numbers(i):
    problem = construct(*CASES[i])
    n = problem.n_samples
    moments = problem.gap_moments()
    measured = {
        "n_hypotheses": problem.n_hypotheses,
        "I_W_Z1Z2": problem.information((0, 1)),
        "I_W_S": problem.information(range(n)),
        **moments,
        "P_absgap_ge_quarter": problem.gap_tail(0.25),
        "xu_raginsky": problem.subset_bound(n),
        "pair_bound_sq_gap": problem.pairwise_bound(),
        "pair_bound_sq_gap_tight": problem.pairwise_bound("tight"),
        "full_bound_sq_gap": problem.full_sample_bound(),
    }
    for name, value in measured.items():
        assert_allclose(value, GOLDEN[name][i], rtol=0, atol=1e-10, err_msg=name)
    reference = GOLDEN["samplewise_bound_expected_gap"][i]  # its rounding, under a square root: exactly 0 is meant
    assert 0 <= problem.samplewise_bound() <= max(reference, 1e-15)


@pytest.mark.parametrize("case", [*CASES, (True, 4, 8), (False, 1, 2), (True, 1, 2)])
def test_single_samples_are_silent_and_the_gap_is_one_half(case):
    problem = construct(*case)
    n, m = problem.n_samples, problem.n_points
    assert_allclose(problem.risks, 0.5, rtol=0, atol=1e-15)
    assert max(problem.information(i) for i in range(n)) < 1e-12
    assert problem.gap_tail(0.5) == pytest.approx(1.0)
    assert problem.gap_tail(0.5, over="posterior") == pytest.approx(1.0)
    assert problem.gap_tail(0.500001) == 0.0
    assert problem.gap_moments() == pytest.approx({"E_gap": 0.0, "E_absgap": 0.5, "E_gap2": 0.25})
    for pair in itertools.combinations(range(n), 2):
        formula = (1 - 1 / m) * math.log((m - 1) / (m / 2 - 1))
        assert problem.information(pair) == pytest.approx(formula, abs=1e-12)


def test_parity_learner_is_affine():
    """Read the definition off the kernel: a is orthogonal to all differences, and both coins are equally likely."""
    problem = affine_parity_problem(2, 3)
    vectors = [(a, b) for b in (0, 1) for a in range(1, 8)]
    loss = [[(bin(a & z).count("1") + b) % 2 for z in range(8)] for a, b in vectors]
    assert (problem.loss == loss).all()
    rows = problem.kernel.reshape(8, 8, -1)
    for z, other in itertools.product(range(8), repeat=2):
        allowed = [bin(a & (z ^ other)).count("1") % 2 == 0 for a, _ in vectors]
        assert_allclose(rows[z, other], np.array(allowed) / sum(allowed), atol=1e-15)


def slow_joint(problem):
    """Return {(training set, hypothesis): probability} and the gap of each, by plain loops."""
    joint, gaps = {}, {}
    for row, points in zip(
        problem.kernel, itertools.product(range(problem.n_points), repeat=problem.n_samples), strict=True
    ):
        for w in range(problem.n_hypotheses):
            joint[points, w] = math.prod(problem.pz[list(points)]) * row[w]
            risk = sum(p * loss for p, loss in zip(problem.pz, problem.loss[w], strict=True))
            gaps[points, w] = risk - sum(problem.loss[w, z] for z in points) / problem.n_samples
    return joint, gaps


def slow_information(problem, joint, subset):
    pmf = np.zeros((problem.n_points,) * len(subset) + (problem.n_hypotheses,))
    for (points, w), probability in joint.items():
        pmf[(*tuple(points[i] for i in subset), w)] += probability
    return core_information(pmf / pmf.sum(), tuple(range(len(subset))), len(subset))


@pytest.mark.parametrize("seed", range(8))
def test_slow_reference(seed):
    problem = random_problem(seed)
    joint, gaps = slow_joint(problem)
    for name, moment in {"E_gap": lambda g: g, "E_absgap": abs, "E_gap2": lambda g: g * g}.items():
        expected = sum(probability * moment(gaps[key]) for key, probability in joint.items())
        assert problem.gap_moments()[name] == pytest.approx(expected, abs=1e-12)
    tail = sum(probability for key, probability in joint.items() if abs(gaps[key]) >= 0.2)
    assert problem.gap_tail(0.2) == pytest.approx(tail, abs=1e-12)
    for size in range(1, problem.n_samples + 1):
        for subset in itertools.combinations(range(problem.n_samples), size):
            assert problem.information(subset) == pytest.approx(slow_information(problem, joint, subset), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.9))
def test_every_bound_holds(seed, delta):
    problem = random_problem(seed)
    moments = problem.gap_moments()
    sizes = range(1, problem.n_samples + 1)
    by_size = [problem.subset_bound(size) for size in sizes]
    assert abs(moments["E_gap"]) <= by_size[0] + 1e-12
    assert (np.diff(by_size) >= -1e-12).all()  # larger subsets bound the expected gap worse
    assert moments["E_gap2"] <= problem.pairwise_bound("tight") <= problem.pairwise_bound()
    assert moments["E_gap2"] <= problem.full_sample_bound()
    bound = problem.single_draw_bound(delta, "tight")
    assert problem.gap_tail(bound) <= delta
    assert problem.gap_tail(problem.pac_bayes_bound(delta, "tight"), over="posterior") <= delta
    assert moments["E_absgap"] ** 2 <= moments["E_gap2"] + 1e-15


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_information_grows_with_the_subset_and_ignores_its_order(seed):
    problem = random_problem(seed)
    subsets = [tuple(range(size)) for size in range(1, problem.n_samples + 1)]
    values = [problem.information(subset) for subset in subsets]
    assert (np.diff(values) >= -1e-12).all()
    assert values[0] >= 0
    assert problem.information(subsets[-1][::-1]) == problem.information(set(subsets[-1])) == values[-1]


def test_mean_over_the_posterior():
    """The learner's own coin cancels in the mean over hypotheses; one that comes from the data does not."""
    private, data = affine_parity_problem(3, 3), study.data_coin_problem(3, 3)
    assert private.gap_tail(1e-6, over="posterior_mean") == 0.0
    assert data.gap_tail(0.5, over="posterior_mean") == pytest.approx(1.0)
    assert max(data.information(i) for i in range(3)) < 1e-12
    assert data.information((0, 2)) == pytest.approx(private.information((0, 2)))


def test_blocks_do_not_change_the_numbers(monkeypatch):
    whole = random_problem(3).bounds()
    monkeypatch.setattr("natwise.generalization.samplewise_limits._enumeration._BLOCK", 5)
    assert random_problem(3).bounds().scalars == pytest.approx(dict(whole.scalars), abs=1e-14)


def test_bounds_as_a_result():
    result = affine_parity_problem(3, 3).bounds(delta=0.1)
    check_result(result)
    assert result.scalars["E_gap2"] == 0.25
    assert result.scalars["samplewise"] < 1e-15
    assert result.scalars["single_draw"] == pytest.approx(math.sqrt(result.scalars["pairwise"] / 0.1))
    assert result.arrays["pair_information"].shape == (3,)


def test_all_forms_of_input_agree_and_stay():
    kernel = np.array(KERNEL).reshape(2, 2, 3)
    inputs = [0.4, 0.6], np.array(LOSS), kernel
    with unchanged(*inputs[1:]):
        reference = FiniteLearningProblem(*inputs).bounds().scalars
    forms = (
        (np.array([0.4, 0.6]), LOSS, KERNEL),
        (pd.Series([0.4, 0.6]), pd.DataFrame(LOSS), pd.DataFrame(KERNEL)),
        (torch.tensor([0.4, 0.6], dtype=torch.float64), torch.tensor(LOSS), torch.from_numpy(kernel)),
    )
    for form in forms:
        assert FiniteLearningProblem(*form).bounds().scalars == reference


def test_one_sample_and_one_point():
    known = FiniteLearningProblem([0.5, 0.5], [[0, 1], [1, 0]], [[1, 0], [0, 1]])
    assert known.information(0) == pytest.approx(math.log(2))
    assert known.pairwise_bound() == 1.0  # no pairs: the diagonal is all that is left
    assert FiniteLearningProblem([1.0], [[0.3]], [[[1.0]]]).gap_moments()["E_absgap"] == 0.0


def test_float32_probabilities_are_made_good():
    exact, rounded = ([np.array(v, dtype) for v in ([0.3, 0.7], KERNEL)] for dtype in (np.float64, np.float32))
    first, second = (FiniteLearningProblem(pz, LOSS, kernel) for pz, kernel in (exact, rounded))
    assert second.kernel.sum(axis=1) == pytest.approx(1, abs=1e-15)
    assert second.information((0, 1)) == pytest.approx(first.information((0, 1)), abs=1e-6)


def test_bad_problems():
    good = {"pz": [0.4, 0.6], "loss": LOSS, "kernel": KERNEL, "budget": 100}
    check_bad_input(
        FiniteLearningProblem,
        [
            ({"pz": [0.4, 0.5]}, ValueError, "pz must sum to 1, got a sum of 0.9"),
            ({"pz": [-0.4, 1.4]}, ValueError, "pz must hold probabilities >= 0, got -0.4"),
            ({"pz": [np.nan, 1.0]}, ValueError, "pz must be finite"),
            ({"pz": [[0.4, 0.6]]}, ValueError, "pz must have shape (points)"),
            ({"pz": []}, ValueError, "pz must hold at least one"),
            ({"pz": "ab"}, TypeError, "pz must be numeric"),
            ({"loss": [[0, 2], [1, 0], [0, 0]]}, ValueError, "loss must hold values between 0 and 1"),
            ({"loss": [[0, 1, 0]]}, ValueError, "loss must have shape (hypotheses, 2)"),
            ({"loss": np.array(LOSS) + 1j}, TypeError, "loss must be numeric"),
            ({"kernel": 2 * np.array(KERNEL)}, ValueError, "kernel must sum to 1 in every row, got a sum of 2"),
            ({"kernel": np.array(KERNEL) - [1, -1, 0]}, ValueError, "kernel must hold probabilities >= 0"),
            ({"kernel": KERNEL[:3]}, ValueError, "kernel must have one axis of length 2 per training sample"),
            ({"kernel": np.ones((2, 2, 2)) / 2}, ValueError, "a last one of length 3"),
            ({"kernel": "uniform"}, TypeError, "kernel must be numeric"),
            ({"budget": 11}, ValueError, "2 ** 2 * 3 = 12 numbers of 8 bytes, got 11"),
            ({"budget": 1.5}, TypeError, "budget must be an integer"),
        ],
        **good,
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.information(2), ValueError, "subset must be >= 0 and <= 1, got 2"),
        (lambda p: p.information(-1), ValueError, "subset must be >= 0"),
        (lambda p: p.information(()), ValueError, "at least one sample"),
        (lambda p: p.information((0, 0)), ValueError, "none twice"),
        (lambda p: p.information("01"), TypeError, "subset must be an integer or several"),
        (lambda p: p.information([0.0]), TypeError, "subset must be an integer"),
        (lambda p: p.information(np.array([True, False])), TypeError, "subset must be an integer"),
        (lambda p: p.information(np.array(0.0)), TypeError, "subset must be an integer"),
        (lambda p: p.subset_bound(3), ValueError, "size must be >= 1 and <= 2"),
        (lambda p: p.gap_tail(-0.1), ValueError, "threshold must be >= 0"),
        (lambda p: p.gap_tail(0.1, over="runs"), ValueError, "over must be one of"),
        (lambda p: p.pairwise_bound("best"), ValueError, "constant must be one of"),
        (lambda p: p.single_draw_bound(0.0), ValueError, "delta must be > 0"),
        (lambda p: p.pac_bayes_bound(1.0), ValueError, "delta must be > 0"),
        (lambda p: p.bounds("low"), TypeError, "delta must be a number"),
        (lambda p: affine_parity_problem(4, 3), ValueError, "n must be >= 1 and <= 3, got 4"),
        (lambda p: affine_parity_problem(1, 1), ValueError, "d must be >= 2"),
        (lambda p: affine_parity_problem(6, 6), ValueError, r"budget must cover .*64 \*\* 6"),
        (lambda p: affine_parity_problem(60, 60), ValueError, r"budget must cover .*about 1e\d+ numbers"),
        (lambda p: affine_parity_problem(2, 10**4), ValueError, "d must be >= 2 and <= 64"),
        (lambda p: affine_parity_problem(2.0, 3), TypeError, "n must be an integer"),
        (lambda p: balanced_labelling_problem(2, 5), ValueError, "m must be even, got 5"),
        (lambda p: balanced_labelling_problem(4, 6), ValueError, "n must be >= 1 and <= 3, got 4"),
        (lambda p: balanced_labelling_problem(2, 60), ValueError, "budget must cover"),
    ],
)
def test_bad_calls(call, error, message):
    problem = FiniteLearningProblem([0.4, 0.6], LOSS, KERNEL)
    with pytest.raises(error, match=message):
        call(problem)


@pytest.mark.parametrize("claim", ["silent-samples", "pair-formula", "pair-bound", "posterior-mean", "constant-gap"])
def test_study(claim):
    result = study.run(claim, scale="ci", seed=3)
    check_result(result)
    assert study.figure(claim, result).axes
