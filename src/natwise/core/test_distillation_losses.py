import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from natwise.core.distillation import KINDS, chunked_soft_label_loss, soft_label_loss


def draw(seed=0, shape=(7, 5), scale=2.0):
    logits = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return logits[0].requires_grad_(), logits[1].requires_grad_()


def softmax(z):
    powers = [math.exp(v) for v in z]
    return [v / sum(powers) for v in powers]


def by_hand(kind, teacher, student, tau, own):
    """Return the loss of one row by the textbook."""
    p, q = softmax([v / tau for v in teacher]), softmax([v / own for v in student])
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": (kl(p, middle) + kl(q, middle)) / 2,
        "tvd": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tau", "own", "scaled"), [(1.0, None, True), (4.0, None, True), (2.0, 0.5, False)])
def test_values_by_hand(kind, tau, own, scaled):
    student, teacher = draw()
    options = {"kind": kind, "temperature": tau, "student_temperature": own, "scale_by_tau2": scaled}
    rows = soft_label_loss(student, teacher, reduction="none", **options)
    expected = [
        by_hand(kind, t, s, tau, own or tau) * (tau**2 if scaled else 1)
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    np.testing.assert_allclose(rows.tolist(), expected, rtol=1e-12)
    assert soft_label_loss(student, teacher, **options).item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert soft_label_loss(student, teacher, reduction="sum", **options).item() == pytest.approx(sum(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    student, teacher = draw()
    assert torch.autograd.gradcheck(lambda s: soft_label_loss(s, teacher, kind=kind, chunk_size=3), (student,))
    soft_label_loss(student, teacher, kind=kind).backward()
    assert teacher.grad is None


@given(chunk_size=st.integers(1, 30), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_chunks_change_nothing(chunk_size, kind, seed):
    student, teacher = draw(seed, (3, 4, 6))
    mask = torch.arange(12).reshape(3, 4) % 3 > 0
    whole = soft_label_loss(student, teacher, kind=kind, mask=mask)
    parts = soft_label_loss(student, teacher, kind=kind, mask=mask, chunk_size=chunk_size)
    rows = soft_label_loss(student, teacher, kind=kind, reduction="none")
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-15)
    assert whole.item() == pytest.approx(rows[mask].mean().item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(whole, student), torch.autograd.grad(parts, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    bounded = {"jsd": math.log(2), "tvd": 1.0}.get(kind, math.inf)
    assert -1e-12 <= rows.min().item() <= rows.max().item() <= bounded
    assert soft_label_loss(student, student, kind=kind).item() == pytest.approx(0, abs=1e-12)


def test_heads_give_what_logits_give_in_less_memory():
    width, classes = 3, 50
    heads = [torch.nn.Linear(width, classes, dtype=torch.float64) for _ in range(2)]
    hidden = draw(1, (20, width))
    seen = []

    def head(rows):
        seen.append(len(rows))
        return heads[0](rows)

    chunked = chunked_soft_label_loss(hidden[0], head, hidden[1], heads[1], chunk_size=4)
    plain = soft_label_loss(heads[0](hidden[0]), heads[1](hidden[1]))
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-12)
    inputs = [hidden[0], *heads[0].parameters()]
    for a, b in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert max(seen) == 4


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_scaling_keeps_the_gradient_at_high_temperature(kind):
    student, teacher = draw()

    def norm(tau):
        loss = soft_label_loss(student, teacher, kind=kind, temperature=tau)
        return torch.autograd.grad(loss, student)[0].norm().item()

    assert norm(1e3) == pytest.approx(norm(1e2), rel=0.05)


def test_half_precision_is_computed_in_single():
    student, teacher = (logits.detach().bfloat16() for logits in draw())
    loss = soft_label_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(soft_label_loss(student.double(), teacher.double()).item(), rel=1e-5)


def test_bad_input():
    student, teacher = (logits.detach() for logits in draw())
    wrong = {
        "temperature": [0.0, -1.0, math.inf, None],
        "student_temperature": [0.0],
        "kind": ["kl"],
        "reduction": ["max"],
        "chunk_size": [0],
        "mask": [torch.ones(6, dtype=torch.bool), torch.zeros(7, dtype=torch.bool), torch.ones(7)],
        "student_logits": [student[:, :4], student[0], student.long(), student * math.nan, student.numpy()],
        "teacher_logits": [teacher[:6], teacher + math.inf],
    }
    for name, values in wrong.items():
        for value in values:
            arguments = {"student_logits": student, "teacher_logits": teacher, name: value}
            with pytest.raises((TypeError, ValueError), match=name.removesuffix("_logits")):
                soft_label_loss(**arguments)
