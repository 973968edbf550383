"""Supervision complexity and its bound against reference numbers, closed forms and slow formulas.

`golden.npz` holds A) an RBF kernel of 30 samples and B) a block kernel of 12 samples and 3 classes (sample-major),
with complexities and bound terms from an independent float64 script: there is no original code.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise.core.io import load_npz
from natwise.supervision import (
    FactoredKernel,
    distillation_bound,
    fidelity,
    kernel_alignment,
    soft_targets,
    supervision_complexity,
)
from natwise.supervision.distillation import study
from natwise.testing import unchanged

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
EXACT = {"rel": 1e-9, "abs": 1e-12}


def ref(name):
    return pytest.approx(float(GOLDEN[f"ref/{name}"]), **EXACT)


def kernel_of(seed, n, k=1):
    factor = np.random.default_rng(seed).normal(size=(n * k, n * k + 2))
    return factor @ factor.T


def test_reference_one_output():
    kernel, labels, teacher, start = (GOLDEN[f"A_{name}"] for name in ("K", "y", "teacher", "f0"))
    with unchanged(kernel, labels, start):
        assert supervision_complexity(kernel, labels, adjusted=False) == ref("A/raw_labels")
        assert supervision_complexity(kernel, labels, start) == ref("A/adjusted_labels")
    assert supervision_complexity(kernel, teacher, adjusted=False) == ref("A/raw_teacher")
    assert supervision_complexity(kernel, teacher, start) == ref("A/adjusted_teacher")


def test_reference_several_outputs_share_one_factorisation():
    kernel, labels, logits, start = (GOLDEN[f"B_{name}"] for name in ("K", "Y", "logits", "f0"))
    factored = FactoredKernel(kernel)
    assert supervision_complexity(factored, labels, adjusted=False) == ref("B/raw_labels")
    assert supervision_complexity(factored, labels, start) == ref("B/adjusted_labels")
    taus = (0.5, 1, 2, 4, 8)
    found = supervision_complexity(factored, np.stack([soft_targets(logits, tau) for tau in taus]), start)
    assert found.tolist() == [ref(f"B/adjusted_tau{tau}") for tau in taus]
    assert (np.diff(found) < 0).all()


def test_reference_bound_and_the_lemma_behind_it():
    kernel, teacher = GOLDEN["A_K"], GOLDEN["A_teacher"]
    ridge = float(GOLDEN["ref/A/krr/lam"]) * len(kernel)
    weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), teacher)
    norm = weights @ kernel @ weights
    assert norm == ref("A/krr/fnorm_sq")
    result = distillation_bound(kernel, teacher, kernel @ weights, gamma=0.5)
    terms = {
        "complexity": "krr/complexity",
        "margin_term": "bound/emp_ramp",
        "complexity_term": "bound/complexity_term",
        "confidence_stratified": "bound/conf_term_safe",
        "confidence_paper": "bound/conf_term_paper",
        "paper_radii": "bound/conf_paper_M0",
    }
    assert {name: result.scalars[name] for name in terms} == {name: ref(f"A/{key}") for name, key in terms.items()}
    assert norm <= result.scalars["complexity"]
    for union in ("stratified", "paper"):
        scalars = distillation_bound(kernel, teacher, kernel @ weights, 0.5, union=union).scalars
        total = scalars["margin_term"] + scalars["complexity_term"] + scalars[f"confidence_{union}"]
        assert scalars["bound"] == pytest.approx(total)


def test_bound_of_several_outputs():
    kernel, targets = kernel_of(0, 6, 3), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    predictions = 0.9 * targets
    predictions[0] = [0.5, 0.4, 0.0]
    scalars = distillation_bound(kernel, targets, predictions, 0.3, kappa=100.0).scalars
    complexity = supervision_complexity(kernel, targets, adjusted=False)
    assert scalars["margin_term"] == pytest.approx(1 / 6)  # the margin of 0.1 alone
    expected = 12 * (math.sqrt(complexity) + 1) * math.sqrt(np.trace(kernel)) / (0.3 * 6)
    assert scalars["complexity_term"] == pytest.approx(expected)
    assert scalars["paper_radii"] == math.ceil(0.3 * math.sqrt(6) / (12 * 10))


def test_bound_says_what_it_does_not_cover():
    kernel, targets = kernel_of(1, 8), np.array([1.0, -1] * 4)
    wild = distillation_bound(kernel, targets, 3 * targets, 0.5)
    assert "not covered" in wild.warnings[0]
    assert "constant diagonal" in " ".join(distillation_bound(kernel, targets, targets, 0.5, union="paper").warnings)
    assert distillation_bound(np.eye(8) * 1e9, targets, targets, 0.5).scalars["bound"] > 1


@given(st.integers(0, 999), st.integers(1, 7), st.integers(1, 3), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_identities(seed, n, k, scale):
    rng = np.random.default_rng(seed)
    kernel, targets, start = kernel_of(seed, n, k), rng.normal(size=(n, k)), rng.normal(size=(n, k))
    close = {"rel": 1e-6}
    raw = supervision_complexity(kernel, targets, start, adjusted=False)
    adjusted = supervision_complexity(kernel, targets, start)
    residual = (targets - start).ravel()
    assert raw == pytest.approx(residual @ np.linalg.inv(kernel) @ residual, **close)
    assert adjusted == pytest.approx(math.sqrt(raw * np.trace(kernel)) / n, **close)
    assert adjusted >= np.linalg.norm(residual) / n * (1 - 1e-6)
    assert supervision_complexity(scale * kernel, targets, start) == pytest.approx(adjusted, **close)
    assert supervision_complexity(scale * kernel, targets, start, adjusted=False) == pytest.approx(raw / scale, **close)
    assert supervision_complexity(kernel, scale * targets, scale * start) == pytest.approx(scale * adjusted, **close)
    basis = np.linalg.qr(rng.normal(size=(n * k, n * k)))[0]
    turned = basis @ kernel @ basis.T
    turned = (turned + turned.T) / 2
    assert supervision_complexity(turned, basis @ residual, adjusted=False) == pytest.approx(raw, **close)
    identity = supervision_complexity(scale * np.eye(n * k), targets)
    assert identity == pytest.approx(np.linalg.norm(targets) * math.sqrt(n * k) / n)
    block = np.block([[kernel, np.zeros_like(kernel)], [np.zeros_like(kernel), scale * np.eye(n * k)]])
    both = supervision_complexity(block, np.concatenate([residual, residual]), adjusted=False)
    assert both == pytest.approx(raw + residual @ residual / scale, **close)
    if n > 1:
        fewer = supervision_complexity(kernel[:-k, :-k], (targets - start)[:-1], adjusted=False)
        assert fewer <= raw * (1 + 1e-6)


def test_hot_targets_are_uniform():
    logits, start = GOLDEN["B_logits"], np.full((12, 3), 1 / 3)
    assert supervision_complexity(GOLDEN["B_K"], soft_targets(logits, 1e9), start) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(soft_targets([[0.0, 2.0]], 0.5).sum(), 1)
    np.testing.assert_allclose(soft_targets([[1000.0, -1000.0]], 1.0), [[1.0, 0.0]])


@pytest.mark.parametrize("jitter", [0.0, 1e-8, 1e-3])
def test_singular_kernels_give_infinity_and_no_number_made_by_jitter(jitter):
    factor = np.random.default_rng(0).normal(size=(9, 4))
    kernel, inside = factor @ factor.T, factor @ [1.0, 2.0, 0.0, -1.0]
    factored = FactoredKernel(kernel, jitter)
    assert factored.rank == 4
    assert factored.jitter == pytest.approx(jitter * np.trace(kernel) / 9)
    norm = inside @ np.linalg.pinv(kernel + factored.jitter * np.eye(9), hermitian=True, rtol=1e-10) @ inside
    assert supervision_complexity(factored, inside, adjusted=False) == pytest.approx(norm, rel=1e-6)
    outside = inside + np.eye(9)[0]
    assert supervision_complexity(kernel, outside, jitter=jitter) == math.inf
    assert supervision_complexity(factored, outside, outside) == 0
    scalars = distillation_bound(factored, outside, inside, 1.0).scalars
    assert scalars["complexity_term"] == scalars["bound"] == math.inf


def test_jitter_of_a_full_kernel_is_what_it_says():
    kernel, y = kernel_of(2, 6), np.ones(6)
    expected = y @ np.linalg.inv(kernel + 0.1 * np.trace(kernel) / 6 * np.eye(6)) @ y
    assert supervision_complexity(kernel, y, adjusted=False, jitter=0.1) == pytest.approx(expected)


def test_alignment_and_fidelity():
    a, b = kernel_of(3, 5), kernel_of(4, 5)
    middle = np.eye(5) - 1 / 5
    for one, two, centered in ((a, b, False), (middle @ a @ middle, middle @ b @ middle, True)):
        expected = np.trace(one @ two) / math.sqrt(np.trace(one @ one) * np.trace(two @ two))
        assert kernel_alignment(a, b, centered=centered) == pytest.approx(expected)
        assert kernel_alignment(a, 3 * a, centered=centered) == pytest.approx(1)
    scores = np.array([[1.0, 2, 0], [3, 0, 1], [0, 0, 5], [1, 0, 0]])
    assert fidelity(scores, [1, 0, 2, 2]) == 0.75
    assert fidelity(scores, 2 * scores) == 1.0


EYE, Y = np.eye(6), np.arange(6.0) - 2.5
ASYMMETRIC, INDEFINITE = EYE + np.eye(6, k=1), EYE - 2 * np.ones((6, 6))
BAD = [
    (supervision_complexity, (np.ones((3, 4)), Y), "kernel must be a square"),
    (supervision_complexity, (ASYMMETRIC, Y), "kernel must be symmetric"),
    (supervision_complexity, (INDEFINITE, Y), "kernel must be positive semi-definite"),
    (supervision_complexity, (0 * EYE, Y), "kernel must be positive semi-definite"),
    (supervision_complexity, (EYE * np.nan, Y), "kernel must be finite"),
    (supervision_complexity, ("kernel", Y), "kernel must be numeric"),
    (supervision_complexity, (EYE, Y[:5]), "targets must have"),
    (supervision_complexity, (EYE, np.ones((6, 3))), "np.kron"),
    (supervision_complexity, (EYE, np.ones((3, 2)), np.ones((2, 3))), "init_preds must have shape"),
    (supervision_complexity, (EYE, Y, Y[:5]), "init_preds must have shape"),
    (supervision_complexity, (EYE, Y * np.inf), "targets must be finite"),
    (supervision_complexity, (EYE, 1.0), "targets must have shape"),
    (supervision_complexity, (EYE, Y * 1e300), "within 1e\\+100"),
    (supervision_complexity, (EYE, Y, None, "no"), "adjusted must be True or False"),
    (supervision_complexity, (EYE, Y, None, True, -1e-9), "jitter must be >= 0"),
    (supervision_complexity, (FactoredKernel(EYE), Y, None, True, 0.1), "jitter must be 0"),
    (distillation_bound, (EYE, Y, Y, 0.0), "gamma must be > 0"),
    (distillation_bound, (EYE, Y, Y, 1.0, 0.0), "delta must be > 0"),
    (distillation_bound, (EYE, Y, Y, 1.0, 1.0), "delta must be"),
    (distillation_bound, (EYE, Y, Y[:5], 1.0), "predictions must have shape"),
    (distillation_bound, (EYE, 0 * Y, Y, 1.0), "targets must have a sign"),
    (distillation_bound, (EYE, np.ones((2, 3, 2)), Y, 1.0), "targets must have shape"),
    (soft_targets, ([[0.2, 0.8]], 2.0), "logits must not be probabilities"),
    (soft_targets, ([[1.0, 2.0]], 0.0), "temperature must be > 0"),
    (soft_targets, ([[1.0]], 1.0), "logits must have shape"),
    (kernel_alignment, (EYE, np.eye(5)), "same size"),
    (kernel_alignment, (EYE, 0 * EYE), "b must be non-zero"),
    (fidelity, (np.ones((6, 3)), np.ones((6, 2))), "same number of classes"),
    (fidelity, (np.ones(6), np.ones(5)), "same length"),
    (fidelity, ([0.5, 1.0], [0, 1]), "a must hold whole numbers"),
    (fidelity, (np.ones((6, 1)), np.ones(6)), "a must have shape"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_bad_input(function, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        function(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="union"):
        distillation_bound(EYE, Y, Y, 1.0, union="none")
    with pytest.raises(ValueError, match="kappa"):
        distillation_bound(2 * EYE, Y, Y, 1.0, kappa=1.0)
    with pytest.raises(TypeError, match="centered must be True or False"):
        kernel_alignment(EYE, EYE, centered="no")
    with pytest.raises(ValueError, match="centring"):
        kernel_alignment(EYE, np.ones((6, 6)), centered=True)


@pytest.mark.parametrize("claim", ["random-label-law"])
def test_study_and_figure(claim):
    result = study.run(claim, scale="ci", seed=0, data_dir=None)
    assert result.scalars["ratio"] == pytest.approx(1, abs=0.03)
    assert study.figure(claim, result).axes[0].get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["bound-holds", "complexity-order", "temperature-order"])
def test_claims_hold(claim):
    result = study.run(claim, scale="ci", seed=0, data_dir=None)
    if claim == "bound-holds":
        assert result.scalars["share_covered"] == 1
    else:
        assert result.scalars["smallest_relative_step"] >= -1e-9
    assert study.figure(claim, result).axes[0].get_ylabel()
