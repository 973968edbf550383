"""LIMIT's losses against reference numbers from the original implementation, an explicit loop, and identities.

`golden.npz` holds steps of the original LIMIT class (float64, networks Linear-tanh-Linear), values and gradients of
the original noisy-label losses, and Fano inversions by bisection.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import cross_entropy, softmax

from natwise.core.io import load_npz
from natwise.supervision import GradientHead, LIMITLoss, LIMITPenaltyLoss, check_separate_networks
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
STEPS = [f"step{i}/" for i in range(sum(name.endswith("/setting") for name in GOLDEN))]


def draw(seed=0, n=6, k=4, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n, k, generator=generator, dtype=torch.float64) * scale
    a, r = (part.clone().requires_grad_() for part in logits)
    return a, r, torch.randint(k, (n,), generator=generator)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)


def step_of(prefix):
    """Rebuild the two networks of a reference step; return parameters, logits, labels and options."""
    parts = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in GOLDEN.items() if k.startswith(prefix)}
    parameters = {k.removeprefix("params/"): v.clone().requires_grad_() for k, v in parts.items() if "params/" in k}

    def logits(name):
        w1, b1, w2, b2 = (parameters[f"{name}.{part}"] for part in ("0.weight", "0.bias", "2.weight", "2.bias"))
        return torch.tanh(parts["x"] @ w1.T + b1) @ w2.T + b2

    laplace, grad_l2 = parts["setting"].tolist()
    options = {"q_dist": "laplace" if laplace else "gaussian", "grad_l2": grad_l2}
    return parts, parameters, logits("classifier"), logits("q_network"), options


@pytest.mark.parametrize("prefix", STEPS)
def test_a_step_of_the_original(prefix):
    parts, parameters, a, r, options = step_of(prefix)
    y = parts["y"].long()
    output = LIMITLoss(reduction="sum", **options)(a, r, y)
    expected_q = parts["losses/info_penalty"] + parts.get("losses/pred_grad_l2", 0.0)
    torch.testing.assert_close(output.q, expected_q, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.total, output.classifier + output.q, rtol=0, atol=0)
    (at_logits,) = gradients(output.classifier, a)[:1]
    torch.testing.assert_close(at_logits, parts["grad_pred"], rtol=0, atol=1e-12)
    for name, gradient in zip(parameters, gradients(output.total, *parameters.values()), strict=True):
        torch.testing.assert_close(gradient, parts[f"grads/{name}"], rtol=0, atol=1e-9, msg=name)
    mean = LIMITLoss(reduction="mean", **options)(a, r, y)
    torch.testing.assert_close(mean.classifier * len(y), output.classifier)
    torch.testing.assert_close(mean.q, output.q)


@pytest.mark.parametrize("q_dist", ["gaussian", "laplace", "ce", "dot"])
@pytest.mark.parametrize("grad_l2", [0.0, 3.0])
def test_against_a_loop_over_samples(q_dist, grad_l2):
    a, r, y = draw()
    p, t = (softmax(logits.detach(), dim=1).numpy() for logits in (a, r))
    total = []
    for i, label in enumerate(y.tolist()):
        actual, predicted = p[i].copy(), p[i] - t[i]
        actual[label] -= 1
        distance = {
            "gaussian": np.sum((predicted - actual) ** 2),
            "laplace": np.sum(abs(predicted - actual)),
            "ce": -np.log(t[i, label]),
            "dot": -predicted @ actual,
        }[q_dist]
        total.append(distance + grad_l2 * predicted @ predicted)
    output = LIMITLoss(q_dist, grad_l2)(a, r, y)
    np.testing.assert_allclose(output.q.item(), np.mean(total), rtol=1e-13)
    np.testing.assert_allclose(gradients(output.total, a)[0], (p - t) / len(y), atol=1e-15)


@pytest.mark.parametrize("form", ["cross_entropy", "mae"])
@pytest.mark.parametrize("q_dist", ["gaussian", "laplace"])
@pytest.mark.parametrize("sample", [False, True])
def test_no_gradient_crosses_over(form, q_dist, sample):
    a, r, y = draw()
    output = LIMITLoss(q_dist, 2.0, sample, form=form, random_state=0)(a, r, y)
    for loss, stranger in ((output.q, a), (output.classifier, r)):
        gradient = gradients(loss, a, r)[0 if stranger is a else 1]
        assert gradient is None or not gradient.any()
    other = LIMITLoss(q_dist, 2.0, sample, form=form, random_state=0)(a, r, (y + 1) % 4)
    assert torch.equal(gradients(other.total, a)[0], gradients(output.total, a)[0])  # labels move q alone


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(2, 6), scale=st.floats(0.0, 20.0))
def test_identities(seed, k, scale):
    a, r, y = draw(seed, k=k, scale=scale)
    t = softmax(r, dim=1)
    brier = (torch.eye(k, dtype=t.dtype)[y] - t).square().sum(dim=1).mean()
    mae = 2 * (1 - t[torch.arange(len(y)), y]).mean()
    for q_dist, expected in (("gaussian", brier), ("laplace", mae)):  # q's loss does not depend on the classifier
        torch.testing.assert_close(LIMITLoss(q_dist)(a, r, y).q, expected, rtol=0, atol=1e-12)
    distilled = cross_entropy(a, t.detach())  # LIMIT is distillation of q
    torch.testing.assert_close(gradients(LIMITLoss()(a, r, y).total, a)[0], gradients(distilled, a)[0])
    sure = torch.full((len(y), k), -1000.0, dtype=t.dtype).scatter(1, y[:, None], 1000.0)  # a perfect q
    plain = gradients(cross_entropy(a, y), a)[0]
    torch.testing.assert_close(gradients(LIMITLoss()(a, sure, y).total, a)[0], plain, rtol=0, atol=1e-15)
    still = gradients(LIMITLoss()(a, a.detach().clone(), y).total, a)[0]  # q = p: the classifier rests
    assert still.abs().max() < 1e-15


@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
def test_the_penalty_makes_q_imitate_a_smoothed_label(beta):
    a, _, y = draw()
    best = (torch.eye(4, dtype=a.dtype)[y] + beta * softmax(a.detach(), dim=1)) / (1 + beta)
    r = best.log().requires_grad_()
    assert gradients(LIMITLoss("gaussian", beta)(a, r, y).q, r)[0].abs().max() < 1e-15


@pytest.mark.parametrize("loss", [LIMITLoss(), LIMITLoss("gaussian", 2.0), LIMITLoss("ce"), LIMITLoss("laplace", 0.5)])
def test_gradients_by_finite_differences(loss):
    a, r, y = draw(n=3)
    assert torch.autograd.gradcheck(lambda r: loss(a.detach(), r, y).q, r)
    assert torch.autograd.gradcheck(lambda a: loss(a, r.detach(), y).classifier, a)


def test_the_mae_form_predicts_the_gradient_of_one_minus_p():
    a, _, y = draw()
    sure = torch.full_like(a, -1000.0).scatter(1, y[:, None], 1000.0)
    expected = gradients((1 - softmax(a, dim=1)[torch.arange(len(y)), y]).mean(), a)[0]
    output = LIMITLoss(form="mae")(a, sure, y)
    torch.testing.assert_close(gradients(output.classifier, a)[0], expected)
    assert output.q.item() < 1e-20


def test_a_learned_head_is_trained_by_the_loss():
    a, r, y = draw()
    loss = LIMITLoss(form=GradientHead(4).double())
    output = loss(a, r, y)
    output.total.backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())
    predicted = loss.form(softmax(a, dim=1), softmax(r, dim=1)).detach()
    torch.testing.assert_close(a.grad, predicted / len(y))


@pytest.mark.parametrize(("q_dist", "std"), [("gaussian", 1 / 10), ("laplace", 2**0.5 / 50)])
def test_draws_have_the_stated_spread(q_dist, std):
    a, r, y = draw(n=20_000)
    loss = LIMITLoss(q_dist, sample=True, lamb=50.0, random_state=1)
    noise = (gradients(loss(a, r, y).total, a)[0] - gradients(LIMITLoss(q_dist)(a, r, y).total, a)[0]) * len(y)
    assert abs(noise.mean()) < 0.02 * std
    np.testing.assert_allclose(noise.std(), std, rtol=0.02)
    kurtosis = (noise / noise.std()).pow(4).mean()
    np.testing.assert_allclose(kurtosis, 3 if q_dist == "gaussian" else 6, rtol=0.1)
    again = LIMITLoss(q_dist, sample=True, lamb=50.0, random_state=1)(a, r, y).total
    assert again == LIMITLoss(q_dist, sample=True, lamb=50.0, random_state=1)(a, r, y).total


def test_the_penalised_variant_is_the_distance_of_last_layer_gradients():
    a, r, y = draw()
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, t, label = softmax(a, dim=1), softmax(r, dim=1), torch.eye(4, dtype=a.dtype)[y]
    expected = 0.0
    for i in range(6):
        actual, predicted = torch.outer(p[i] - label[i], z[i]), torch.outer(p[i] - t[i], z[i])
        expected += 0.03 * (actual - predicted).square().sum() + 0.1 * predicted.square().sum()
    expected = expected / 6 + cross_entropy(a, y)
    loss = LIMITPenaltyLoss(0.03, 0.1)(a, z, r, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(LIMITPenaltyLoss(0.03, 0.1, "sum")(a, z, r, y), 6 * loss)
    assert all(gradient.any() for gradient in gradients(loss, a, r))  # here labels reach the classifier
    a, r = a.detach(), r.detach()
    cases = [({"features": z[:3]}, ValueError, "6 rows"), ({"q_logits": r[:3]}, ValueError, "6 rows")]
    check_bad_input(LIMITPenaltyLoss().forward, cases, classifier_logits=a, features=z, q_logits=r, y=y)


def partly_shared():
    whole = torch.randn(8, 4)
    first, second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    first.weight, second.weight = torch.nn.Parameter(whole[:4]), torch.nn.Parameter(whole[4:])
    return first, second


@pytest.mark.parametrize("case", ["same", "layer", "memory", "buffer"])
def test_networks_that_share_are_refused(case):
    first = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    second = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    check_separate_networks(first, second)
    if case == "same":
        second = first
    elif case == "layer":
        second[0] = first[0]
    elif case == "buffer":
        second[1].running_mean = first[1].running_mean
    else:
        first, second = partly_shared()
    with pytest.raises(ValueError, match="q_network must share no parameter with classifier"):
        check_separate_networks(first, second)


def test_bad_input():
    a, r, y = (part.detach() for part in draw())
    y[:2] = torch.tensor([0, 3])
    calls = [
        ({"q_logits": r[:, :3]}, ValueError, "4 columns"),
        ({"q_logits": r[:4]}, ValueError, "6 rows"),
        ({"q_logits": a}, ValueError, "another network"),
        ({"classifier_logits": a * float("nan")}, ValueError, "finite"),
        ({"q_logits": r.clone().fill_(float("inf"))}, ValueError, "finite"),
        ({"classifier_logits": a[:, 0]}, ValueError, "shape"),
        ({"classifier_logits": a.numpy()}, TypeError, "float tensor"),
        ({"classifier_logits": y}, TypeError, "float tensor"),
        ({"y": y.double()}, TypeError, "integers"),
        ({"y": y.numpy()}, TypeError, "integer tensor"),
        ({"y": torch.eye(4)[y].long()}, ValueError, "one integer per sample"),
        ({"y": y + 1}, ValueError, "within 0 and 3"),
        ({"y": y - 4}, ValueError, "within 0 and 3"),
    ]
    check_bad_input(LIMITLoss().forward, calls, classifier_logits=a, q_logits=r, y=y)
    options = [
        ({"q_dist": "Gaussian"}, ValueError, "Did you mean 'gaussian'"),
        ({"grad_l2": -1.0}, ValueError, ">= 0"),
        ({"grad_l2": float("nan")}, ValueError, "finite"),
        ({"lamb": 0.0}, ValueError, "> 0"),
        ({"sample": True, "q_dist": "ce"}, ValueError, "to sample"),
        ({"sample": "no"}, TypeError, "True or False"),
        ({"reduction": "none"}, ValueError, "'mean', 'sum'"),
        ({"form": "hinge"}, ValueError, "'cross_entropy', 'mae'"),
    ]
    check_bad_input(LIMITLoss, options)
