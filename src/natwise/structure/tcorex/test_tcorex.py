"""Against the original: `golden.npz` holds inputs and outputs of the original implementation of T-CorEx.

Keys: ``forward_*`` (objectives, correlations and gradients with all random draws recorded), ``utils_*`` (differences of
precision matrices by brute force, periods), ``{sudden,smooth}_train`` and the means and second moments of 200 test
samples per period. Limits of the likelihood are what the original reached on these data in 200 iterations per stage.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from natwise.core.io import load_npz
from natwise.structure.tcorex import TCorEx, make_periods, select_smoothness
from natwise.structure.tcorex._changes import PrecisionDifference
from natwise.structure.tcorex._objective import Residuals, TemporalPenalty
from natwise.structure.tcorex._periods import Standardization, distance_weights

GOLDEN = load_npz(Path(__file__).parent / "golden.npz")
N_PERIODS, N_TRAIN, N_FEATURES = 4, 16, 48
TIMES = np.repeat(np.arange(N_PERIODS), N_TRAIN)
FORWARD = {  # gamma, penalty, weighted objective, eps
    "g05_l1_eps0.0": (0.5, TemporalPenalty(l1=0.3, smoothing=0.0), False, 0.0),
    "g05_l1_eps0.36": (0.5, TemporalPenalty(l1=0.3, smoothing=0.0), False, 0.36),
    "g001_l2_eps0.0": (0.001, TemporalPenalty(l2=0.7), False, 0.0),
    "g08_w_eps0.36": (0.8, TemporalPenalty(l1=0.1, smoothing=0.0), True, 0.36),
    "MI_eps0.36": (0.5, TemporalPenalty(l1=0.2, on="mutual_info", smoothing=0.0), False, 0.36),
}


class ReplayedNoise:
    """The moments that the original sees: every expectation is a mean over samples with the recorded noise."""

    def __init__(self, case):
        gamma, _, weighted, eps = FORWARD[case]
        golden = {key.removeprefix(f"forward_{case}_"): GOLDEN[key] for key in GOLDEN if key.startswith("forward_")}
        samples = [GOLDEN[f"forward_x{t}"] for t in range(N_PERIODS)]
        counts = np.array([len(x) for x in samples])
        self.weights = distance_weights(counts, gamma)
        standardization = Standardization.estimate(np.concatenate(samples), self.weights)
        np.testing.assert_allclose(standardization.mean, golden["theta_mean"], atol=1e-6)
        np.testing.assert_allclose(standardization.spread, golden["theta_std"], rtol=1e-6)
        noise = [torch.from_numpy(golden[f"noise{k:02d}"]).double() for k in range(3 * N_PERIODS)]
        self.samples = [
            torch.from_numpy(np.sqrt(1 - eps**2) * standardization.apply(x, np.full(len(x), t))) + eps * noise[t]
            for t, x in enumerate(samples)
        ]
        self.own_noise, self.pooled_noise = noise[N_PERIODS : 2 * N_PERIODS], noise[2 * N_PERIODS :]
        self.weighted, self.golden = weighted, golden

    def moments(self, W):
        """Return log scales, images, own images, gram and own variance of all periods, as functions of W."""
        parts = [self._period(t, w) for t, w in enumerate(W)]
        return [torch.stack(part) for part in zip(*parts, strict=True)]

    def _period(self, t, w):
        kept = torch.from_numpy(self.weights[t] > 0)
        alpha = torch.from_numpy(self.weights[t])[kept]
        alpha = alpha / alpha.sum()
        window = torch.cat(self.samples)[kept]
        z = window @ w.T + self.pooled_noise[t]
        scale = torch.sqrt(alpha @ z**2)
        own, z_own, beta = (window, z, alpha)
        if not self.weighted:
            own = self.samples[t]
            z_own, beta = own @ w.T + self.own_noise[t], torch.full((len(own),), 1 / len(own), dtype=torch.float64)
        images = (alpha[:, None] * z / scale).T @ window
        weighted_own = (beta[:, None] * z_own / scale).T
        return torch.log(scale), images, weighted_own @ own, weighted_own @ z_own / scale, beta @ own**2


@pytest.mark.parametrize("case", FORWARD)
def test_forward_and_gradient_with_replayed_noise(case):
    replayed = ReplayedNoise(case)
    golden, penalty = replayed.golden, FORWARD[case][1]
    W = torch.from_numpy(GOLDEN["forward_W"]).requires_grad_()
    log_scale, *images, own_variance = replayed.moments(W)
    with torch.no_grad():  # the original takes the variables' second moments for one
        copies = [image.clone() for image in images]
        residuals = Residuals(*copies, torch.ones_like(own_variance), own_variance)
        bounds = residuals.entropy + log_scale.sum(1)
        through_weights = torch.zeros_like(W)
        if penalty.on == "weights":
            cost = penalty(W, through_weights)
        else:
            cost = residuals.penalize(penalty)
        through_images, through_own, through_gram = residuals.gradients()
    gradient = torch.autograd.grad(
        [log_scale, *images],
        W,
        [torch.ones_like(log_scale), through_images, through_own, through_gram / 2],
    )[0]
    size = W.shape[0] * W.shape[2]
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(images[0].detach(), golden["R"], **tolerance)
    np.testing.assert_allclose(bounds, golden["objs"], **tolerance)
    np.testing.assert_allclose(cost / size, golden["reg_obj"], **tolerance)
    np.testing.assert_allclose((bounds.sum() + cost) / size, golden["total_obj"], **tolerance)
    np.testing.assert_allclose((gradient + through_weights) / size, golden["grad_W"], rtol=1e-4, atol=1e-5)


def test_differences_of_precision_matrices():
    A = GOLDEN["utils_A"]
    models = [(a, 1 - (a**2).sum(axis=0)) for a in A]
    for k in range(3):
        change = PrecisionDifference(models[k], models[k + 1])
        assert change.frobenius() == pytest.approx(GOLDEN["utils_brute_frob_inv"][k], rel=1e-9)
        assert change.spectral() == pytest.approx(GOLDEN["utils_brute_spec_inv"][k], rel=1e-9)
        np.testing.assert_allclose(change.row_norms(), GOLDEN["utils_brute_row_inv"][k], rtol=1e-9)


@pytest.mark.parametrize("stride", ["one", "half", "full"])
def test_periods(stride):
    np.testing.assert_array_equal(make_periods(23, 6, stride), GOLDEN[f"utils_buckets_{stride}_map"])
    number = {"one": 1, "half": 3, "full": 6}[stride]
    np.testing.assert_array_equal(make_periods(23, 6, number), make_periods(23, 6, stride))


def held_out(name, covariances, location=None):
    """Return the negative log-likelihood per sample of the test samples, mean zero unless given."""
    moments = GOLDEN[f"{name}_test_moments"].astype(float)
    if location is not None:
        cross = np.einsum("ti,tj->tij", GOLDEN[f"{name}_test_means"], location)
        moments = moments - cross - cross.mT + np.einsum("ti,tj->tij", location, location)
    distance = [np.trace(np.linalg.solve(c, s)) for c, s in zip(covariances, moments, strict=True)]
    return 0.5 * (np.mean(distance) + np.linalg.slogdet(2 * np.pi * covariances)[1].mean())


@pytest.mark.parametrize(
    ("name", "l1", "gamma", "limit"),
    [
        ("sudden", 0.3, 0.4, 1.005 * 89.61),
        ("smooth", 0.3, 0.4, 1.005 * 94.40),
        ("sudden", 0.0, 1e-9, 81.7),
        ("smooth", 0.0, 1e-9, 96.7),
    ],
)
def test_likelihood_is_no_worse_than_the_original(name, l1, gamma, limit):
    X = GOLDEN[f"{name}_train"].reshape(-1, N_FEATURES)
    model = TCorEx(6, l1=l1, gamma=gamma, random_state=0).fit(X, TIMES)
    assert held_out(name, model.covariances_) <= limit
    assert held_out(name, model.covariances_, model.location_) <= limit
    if name == "sudden" and l1 > 0:
        again = TCorEx(6, l1=l1, gamma=gamma, random_state=0).fit(X, times=TIMES)
        np.testing.assert_array_equal(again.covariances_, model.covariances_)
        for norm in ("frobenius", "spectral"):
            assert model.change_scores(norm).argmax() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("sudden", 81.7), ("smooth", 94.4)])
def test_the_selected_setting_is_at_least_as_good(name, limit):
    X = GOLDEN[f"{name}_train"].reshape(-1, N_FEATURES)
    choice = select_smoothness(
        X, TIMES, 6, l1=(0.0, 0.03, 0.1, 0.3), gamma=(0.0, 0.1, 0.2, 0.4), random_state=0
    ).scalars
    model = TCorEx(6, l1=choice["l1"], gamma=choice["gamma"], random_state=0).fit(X, TIMES)
    assert held_out(name, model.covariances_) <= limit


@parametrize_with_checks([TCorEx()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([TCorEx(missing_values=np.nan, l1=0.1, tol=1e-3)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract_with_missing_values(estimator, check):
    check(estimator)
