"""The losses for wrong labels against reference numbers from the original code, explicit formulas and properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from natwise.core.io import load_npz
from natwise.supervision import (
    BootstrapLoss,
    ConfusionMatrixLoss,
    CoTeachingLoss,
    DMILoss,
    ELRLoss,
    ForwardCorrectionLoss,
    GCELoss,
    LabelSmoothingLoss,
    MAELoss,
    MSELoss,
    NoisyGradientLoss,
    SymmetricCELoss,
    UniformNoise,
)
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
T = GOLDEN["zoo/T"]
ORIGINAL = {
    "ce": LabelSmoothingLoss(0.0),
    "mse": MSELoss(),
    "mae": MAELoss(),
    "gce0.7": GCELoss(0.7),
    "gce1.0": GCELoss(1.0),
    "dmi": DMILoss(),
    "fw": ForwardCorrectionLoss(T),
}


def batch(n=8, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.arange(n) % k


@pytest.mark.parametrize("name", ORIGINAL)
def test_values_and_gradients_of_the_original(name):
    logits = torch.from_numpy(GOLDEN["zoo/logits"]).requires_grad_()
    y = torch.from_numpy(GOLDEN["zoo/y"])
    if name == "dmi" and len(y.unique()) < logits.shape[1]:
        pytest.fail("the reference batch lacks a class")
    loss = ORIGINAL[name](logits, y)
    loss.backward()
    np.testing.assert_allclose(loss.item(), GOLDEN[f"zoo/{name}/value"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(logits.grad, GOLDEN[f"zoo/{name}/grad"], rtol=0, atol=1e-10)


def by_hand(p, y):
    """Per-sample losses from their definitions, one sample: p (k,) probabilities, y its label."""
    k = len(p)
    label = np.eye(k)[y]
    sure = np.eye(k)[p.argmax()]
    smooth = 0.8 * label + 0.2 / k
    confusion = np.exp(np.eye(k)) / np.exp(np.eye(k)).sum(axis=1, keepdims=True)
    return {
        MAELoss(): abs(label - p).sum(),
        MSELoss(): ((label - p) ** 2).sum(),
        GCELoss(0.3): (1 - p[y] ** 0.3) / 0.3,
        SymmetricCELoss(0.5, 2.0): -0.5 * math.log(p[y]) - 2 * (p * np.where(label == 1, 0.0, -4.0)).sum(),
        LabelSmoothingLoss(0.2): -(smooth * np.log(p)).sum(),
        BootstrapLoss(): -((0.95 * label + 0.05 * p) * np.log(p)).sum(),
        BootstrapLoss("hard"): -((0.8 * label + 0.2 * sure) * np.log(p)).sum(),
        ForwardCorrectionLoss(UniformNoise(0.4).transition_matrix(k)): -math.log(
            (p @ UniformNoise(0.4).transition_matrix(k))[y]
        ),
        ConfusionMatrixLoss(k): -math.log((p @ confusion)[y]) - 0.01 * (p * np.log(p)).sum(),
    }


def test_definitions():
    logits, y = batch()
    p = softmax(logits, dim=1).detach().numpy()
    for i in range(len(y)):
        for loss, expected in by_hand(p[i], int(y[i])).items():
            got = loss(logits[i : i + 1], y[i : i + 1]).item()
            np.testing.assert_allclose(
                got, expected, rtol=1e-6 if "Confusion" in str(loss) else 1e-12, err_msg=str(loss)
            )


REDUCED = [MAELoss, MSELoss, GCELoss, SymmetricCELoss, LabelSmoothingLoss, BootstrapLoss]


@pytest.mark.parametrize("kind", REDUCED)
def test_gradients_and_reductions(kind):
    logits, y = batch()
    assert torch.autograd.gradcheck(lambda logits: kind()(logits, y), logits)
    torch.testing.assert_close(kind(reduction="sum")(logits, y), len(y) * kind()(logits, y))
    extreme = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = kind()(extreme, torch.tensor([1, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(extreme.grad).all()


def test_limits_of_generalised_cross_entropy():
    logits, y = batch()
    torch.testing.assert_close(GCELoss(1e-6)(logits, y), cross_entropy(logits, y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(2 * GCELoss(1.0)(logits, y), MAELoss()(logits, y))


def test_bounded_losses_sum_to_a_constant_over_labels():
    """The symmetry that makes MAE robust to uniform noise; the reverse part of SCE has it too."""
    logits, _ = batch()
    for loss, constant in ((MAELoss(), 2 * 3), (SymmetricCELoss(0.0), 4 * 3)):
        total = sum(loss(logits, torch.full((8,), label)) for label in range(4))
        np.testing.assert_allclose(total.item(), constant)


def test_known_noise_makes_forward_correction_consistent():
    """With labels in the exact noisy proportions the true probabilities have no gradient."""
    noise = UniformNoise(0.3).transition_matrix(3)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = p.log().requires_grad_()
    given = torch.from_numpy(p.numpy() @ noise)
    loss = ForwardCorrectionLoss(noise, "sum")
    total = sum(given[label] * loss(logits[None], torch.tensor([label])) for label in range(3))
    total.backward()
    assert logits.grad.abs().max() < 1e-12


def test_noise_adds_a_constant_to_dmi():
    logits, y = batch(n=40)
    joint = torch.eye(4, dtype=torch.float64)[y]
    noise = torch.from_numpy(UniformNoise(0.3).transition_matrix(4))
    p = softmax(logits, dim=1)
    expected = -torch.linalg.det((joint @ noise).T @ p).abs().log() + torch.linalg.det(noise).abs().log()
    torch.testing.assert_close(DMILoss()(logits, y), expected, rtol=1e-3, atol=1e-3)
    assert DMILoss(normalize=True)(logits, y) > DMILoss()(logits, y)
    with pytest.warns(UserWarning, match="1 of 4 classes are missing"):
        loss = DMILoss()(logits[:3], y[:3])
    assert loss.item() == pytest.approx(-math.log(1e-3))


def test_early_learning_targets():
    logits, y = batch(n=3)
    index = torch.tensor([4, 0, 2])
    loss = ELRLoss(5, 4, weight=2.0)
    targets = np.zeros((5, 4))
    p = softmax(logits, dim=1).detach().numpy().clip(1e-4, 1 - 1e-4)
    for _ in range(3):
        targets[index] = 0.7 * targets[index] + 0.3 * p / p.sum(axis=1, keepdims=True)
        expected = cross_entropy(logits, y).item() + 2 * np.log(1 - (targets[index] * p).sum(axis=1)).mean()
        np.testing.assert_allclose(loss(logits, y, index).item(), expected, rtol=1e-6)
    kept = loss.targets.clone()
    loss.eval()(logits, y, index)
    assert torch.equal(loss.targets, kept)
    assert not kept[[1, 3]].any()
    bad = [({"index": index[:2]}, ValueError, "(3,)"), ({"index": index + 1}, ValueError, "0 and 4")]
    check_bad_input(loss.forward, bad, logits=logits, y=y, index=index)


def test_co_teaching_drops_what_the_peer_finds_hard():
    first, y = batch(n=10)
    second, _ = batch(n=10, seed=1)
    loss = CoTeachingLoss(0.4, ramp=2)
    for kept in (10, 8, 6, 6):
        losses = [cross_entropy(logits, y, reduction="none") for logits in (first, second)]
        easy = [values.argsort()[:kept] for values in losses]
        expected = losses[0][easy[1]].mean() + losses[1][easy[0]].mean()
        torch.testing.assert_close(loss(first, second, y), expected)
    assert loss.calls == 4
    loss.eval()(first, second, y)
    assert loss.calls == 4


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_noisy_gradient(distribution):
    logits, y = batch(n=20_000)
    (noisy,) = torch.autograd.grad(NoisyGradientLoss(0.3, distribution, random_state=0)(logits, y), logits)
    (plain,) = torch.autograd.grad(cross_entropy(logits, y), logits)
    np.testing.assert_allclose((noisy - plain).std() * len(y), 0.3, rtol=0.02)


def test_the_confusion_matrix_learns_the_noise():
    noise = UniformNoise(0.3).transition_matrix(3)
    logits = 50 * torch.eye(3).repeat(100, 1)
    y = torch.from_numpy(np.concatenate([np.repeat(np.arange(3), np.round(100 * row).astype(int)) for row in noise]))
    true = torch.arange(3).repeat_interleave(100)
    loss = ConfusionMatrixLoss(3)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        value = loss(logits[true], y)
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(softmax(loss.confusion_logits.detach(), dim=1), noise, atol=1e-3)


def test_bad_input():
    logits, y = (part.detach() for part in batch())
    for loss in (*ORIGINAL.values(), SymmetricCELoss(), BootstrapLoss()):
        cases = [
            ({"logits": logits * float("nan")}, ValueError, "finite"),
            ({"logits": logits[:0], "y": y[:0]}, ValueError, "n >= 1"),
            ({"logits": logits.to_sparse()}, TypeError, "dense"),
            ({"y": y.float()}, TypeError, "integers"),
            ({"y": y + 1}, ValueError, "within 0 and 3"),
        ]
        check_bad_input(loss.forward, cases, logits=logits, y=y)
    options = [
        (GCELoss, {"q": 0.0}, ValueError, ">= 1e-06"),
        (GCELoss, {"q": 1.5}, ValueError, "<= 1.0"),
        (LabelSmoothingLoss, {"smoothing": 2.0}, ValueError, "<= 1"),
        (BootstrapLoss, {"kind": "sof"}, ValueError, "'soft'"),
        (SymmetricCELoss, {"log_zero": 1.0}, ValueError, "<= 0"),
        (ForwardCorrectionLoss, {"transition": np.ones((2, 2))}, ValueError, "sum to 1"),
        (ForwardCorrectionLoss, {"transition": np.ones((2, 3)) / 3}, ValueError, "square"),
        (NoisyGradientLoss, {"std": -1.0}, ValueError, ">= 0"),
        (CoTeachingLoss, {"noise_rate": 1.0}, ValueError, "<= 0.999"),
        (MAELoss, {"reduction": "none"}, ValueError, "'mean'"),
        (DMILoss, {"normalize": "no"}, TypeError, "True or False"),
    ]
    for kind, *case in options:
        check_bad_input(kind, [tuple(case)])
    with pytest.raises(ValueError, match="3 columns"):
        ForwardCorrectionLoss(np.eye(3))(logits, y)


@pytest.mark.parametrize("loss", [BootstrapLoss(), ConfusionMatrixLoss(2)], ids=str)
def test_confident_logits_stay_numbers(loss):
    assert not loss(torch.tensor([[3e38, -3e38], [0.0, 1.0]]), torch.tensor([0, 1])).isnan()


def test_determinant_of_half_precision_logits():
    logits, y = (part.detach() for part in batch())
    assert DMILoss()(logits.bfloat16(), y).item() == pytest.approx(DMILoss()(logits, y).item(), rel=0.02)
