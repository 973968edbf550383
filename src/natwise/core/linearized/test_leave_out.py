import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise.core.linearized import Dynamics, LeaveOut, Spectrum, TrainingRule
from natwise.core.linearized._rational import approximate


def train(jacobian, residual, rule, n_removed=0):
    """Weights (relative to the start) after an explicit loop of gradient steps on the rows given."""
    dynamics = rule.dynamics(len(residual) + n_removed, n_removed)
    weights = np.zeros(jacobian.shape[1])
    for _ in range(rule.t):
        gradient = jacobian.T @ (jacobian @ weights + residual) + dynamics.weight_decay * weights
        weights -= dynamics.step_size * gradient
    return weights


def leave_out_weights(jacobian, residual, rule, groups):
    """The same change of the weights through `LeaveOut`."""
    spectrum = Spectrum.of(jacobian @ jacobian.T)
    after = rule.dynamics(len(residual), len(groups[0]))
    leave_out = LeaveOut(spectrum, residual[:, None], rule.dynamics(len(residual)), after)
    return (jacobian.T @ (spectrum.vectors @ leave_out.changes(groups)[0])).T


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(4, 9),
    d=st.integers(1, 12),
    t=st.sampled_from([0, 1, 2, 3, 5, 17, 120]),
    reduction=st.sampled_from(["mean", "sum"]),
    size=st.integers(1, 3),
    rate=st.floats(0.01, 0.99),
    decay=st.sampled_from([0.0, 1e-3, 0.7]),
)
def test_equals_training_without_the_group(seed, n, d, t, reduction, size, rate, decay):
    rng = np.random.default_rng(seed)
    jacobian, residual = rng.normal(size=(n, d)), rng.normal(size=n)
    largest = np.linalg.eigvalsh(jacobian @ jacobian.T)[-1]
    unit = TrainingRule(t, 1.0, decay, reduction=reduction)
    limit = unit.largest_stable_lr(largest, n, size)
    rule = TrainingRule(t, rate * limit, decay, reduction=reduction)
    groups = [rng.permutation(n)[:size] for _ in range(2)]
    full = train(jacobian, residual, rule)
    found = leave_out_weights(jacobian, residual, rule, groups)
    for rows, change in zip(groups, found, strict=True):
        kept = np.setdiff1d(np.arange(n), rows)
        expected = train(jacobian[kept], residual[kept], rule, size) - full
        assert np.abs(change - expected).max() <= 1e-9 * max(np.abs(full).max(), 1e-12)


@pytest.mark.parametrize("d", [3, 7, 12])
@pytest.mark.parametrize("size", [1, 2])
def test_converged_least_squares_of_any_rank(d, size):
    rng = np.random.default_rng(d)
    jacobian, residual = rng.normal(size=(8, d)), rng.normal(size=8)
    jacobian[1] = jacobian[0]  # a duplicate, so that the kernel is singular for every d
    rule = TrainingRule(None, 0.0, 0.0)
    groups = [np.arange(start, start + size) for start in range(0, 8, 2)]
    full = -np.linalg.pinv(jacobian) @ residual
    for rows, change in zip(groups, leave_out_weights(jacobian, residual, rule, groups), strict=True):
        kept = np.setdiff1d(np.arange(8), rows)
        expected = -np.linalg.pinv(jacobian[kept]) @ residual[kept] - full
        assert np.allclose(change, expected, atol=1e-10)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("t", [1, 2, 3, 10, 50, 2000, 20_000])
def test_rational_approximation(t, flow):
    for top in (0.1, 1.0, 1.9):
        dynamics = Dynamics(t, top / 44.0, 0.0, flow)
        rational, error = approximate(dynamics.phi, 0.0, 44.0)
        x = np.concatenate([np.geomspace(1e-9, 44.0, 999), np.linspace(0.0, 44.0, 999)])
        assert error < 1e-9
        assert np.abs(rational(x) / dynamics.phi(x) - 1).max() < 1e-9
        assert len(rational.poles) <= 90


def test_phi_limits():
    curvature = np.array([0.0, 1e-18, 1e-9, 0.3, 1.0, 2.0])
    slow = Dynamics(10**6, 1e-6, 0.0).phi(curvature)
    assert np.allclose(slow, Dynamics(10**6, 1e-6, 0.0, flow=True).phi(curvature), rtol=1e-5)  # gd tends to flow
    assert slow[:2] == pytest.approx(1.0, rel=1e-12)
    late = Dynamics(10**5, 0.9, 0.0).phi(curvature[3:])
    assert np.allclose(late, Dynamics(None, 0.0, 0.0).phi(curvature[3:]))
    assert np.array_equal(Dynamics(0, 0.5, 0.0).phi(curvature), np.zeros(6))
    assert np.allclose(Dynamics(3, 1.0, 0.0).phi(np.array([1.5])), (1 - (-0.5) ** 3) / 1.5)
