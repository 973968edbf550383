"""The loss against its definition, the schedule, the scores and the stored teacher."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from torch.nn.functional import cross_entropy

from natwise.lm import (
    SaltSchedule,
    TeacherCache,
    linear_salt_loss,
    salt_loss,
    select_sequences,
    sequence_scores,
)
from natwise.lm.salt._loss import TopKTargets, mixed_cross_entropy
from natwise.testing import check_bad_input

# reference numbers of an independent float64 computation: per-token losses for weights and temperatures, scores
# with numpy.median, and the weights that minimise the expected risk of (1 - w) p_hat + w q
GOLDEN = np.load(Path(__file__).parent / "golden.npz")
STUDENT, TEACHER, LABELS = (torch.from_numpy(GOLDEN[k]) for k in ("student_logits", "teacher_logits", "targets"))
WEIGHTS, RHOS = (0.0, 0.3, 0.667, 1.0), (0.25, 1.0, 2.0)


def slow_loss(student, teacher, labels, weight, rho):
    """The definition, token by token."""
    own = torch.log_softmax(student, -1)
    soft = torch.softmax(rho * teacher, -1)
    truth = own.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    losses = -(1 - weight) * truth - weight * (soft * own).sum(-1)
    return torch.where(labels != -100, losses, 0.0)


def problem(seed=0, n=3, t=5, v=7, masked=True):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(n, t, v, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(v, (n, t), generator=generator)
    if masked:
        labels[0, :2] = -100
    return student, teacher, labels


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_reference_numbers(weight, rho, chunk_size):
    losses = salt_loss(STUDENT, TEACHER, LABELS, weight, rho, reduction="none", chunk_size=chunk_size)
    assert_allclose(losses, GOLDEN[f"loss_w{weight}_rho{rho}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_reference_scores(k):
    assert_allclose(sequence_scores(TEACHER, LABELS, k), GOLDEN[f"score_k{k}"], rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    weight=st.floats(0.0, 1.0),
    rho=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    chunk_size=st.integers(1, 20),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_loss_and_gradient_equal_the_definition(seed, weight, rho, chunk_size, reduction):
    student, teacher, labels = problem(seed)
    results = []
    for function in ("ours", "slow"):
        x = student.clone().requires_grad_()
        if function == "ours":
            loss = salt_loss(x, teacher, labels, weight, rho, reduction=reduction, chunk_size=chunk_size)
        else:
            loss = slow_loss(x, teacher, labels, weight, rho).sum()
            loss = loss if reduction == "sum" else loss / (labels != -100).sum()
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    for ours, slow in zip(*results, strict=True):
        assert_allclose(ours, slow, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    student, teacher, labels = problem(n=1, t=3, v=4)
    student.requires_grad_()
    for reduction in ("mean", "sum", "none"):
        torch.autograd.gradcheck(
            lambda x, r=reduction: salt_loss(x, teacher, labels, 0.4, 0.5, reduction=r, chunk_size=2), student
        )


def test_weight_zero_is_cross_entropy_bit_for_bit():
    student, _, labels = problem()
    student = student.float().requires_grad_()
    ours, theirs = salt_loss(student, None, labels, 0.0), cross_entropy(student.flatten(0, 1), labels.flatten())
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_other_kinds_of_input(weight):
    """Small integers, arrays and half precision; rows that do not count may hold anything."""
    student, teacher, labels = problem()
    base, scores = salt_loss(student, teacher, labels, weight), sequence_scores(student, labels, 3)
    assert torch.equal(salt_loss(student, teacher, labels.to(torch.int16), weight), base)
    arrays = student.numpy(), teacher.numpy(), labels.numpy()
    assert torch.equal(salt_loss(*arrays, weight), base)
    assert_allclose(sequence_scores(arrays[0], arrays[2], 3), scores)
    halved = salt_loss(student.bfloat16(), teacher.half(), labels, weight)
    assert halved.dtype == torch.float32
    assert_allclose(halved, salt_loss(student.bfloat16().double(), teacher.half(), labels, weight), rtol=1e-6)
    hidden = student.masked_fill((labels == -100)[..., None], torch.nan).requires_grad_(weight > 0)
    loss = salt_loss(hidden, teacher, labels, weight)
    assert_allclose(loss.detach(), base)
    if weight:
        gradient = torch.autograd.grad(loss, hidden)[0]
        assert torch.isfinite(gradient).all()
        assert not gradient[0, :2].any()


def test_limits():
    student, teacher, labels = problem(masked=False)
    own = torch.log_softmax(student, -1)
    uniform = salt_loss(student, teacher, labels, 1.0, 0.0, reduction="none")
    assert_allclose(uniform, -own.mean(-1))
    for rho in (1e6, 1e308):
        sharp = salt_loss(student, teacher, labels, 1.0, rho, reduction="none")
        assert_allclose(sharp, -own.gather(-1, teacher.argmax(-1, keepdim=True))[..., 0])
    same = student.clone().requires_grad_()
    loss = salt_loss(same, student, labels, 1.0)
    assert_allclose(loss.detach(), -(own.exp() * own).sum(-1).mean())  # the student's entropy
    assert torch.autograd.grad(loss, same)[0].abs().max() < 1e-16


def test_shifts_of_the_logits_and_affine_in_the_weight():
    student, teacher, labels = problem()
    shift = torch.randn(3, 5, 1, dtype=torch.float64)
    base = salt_loss(student, teacher, labels, 0.3, 0.7)
    assert_allclose(salt_loss(student + shift, teacher - 2 * shift, labels, 0.3, 0.7), base, rtol=1e-12)
    ends = [salt_loss(student, teacher, labels, w, 0.7) for w in (0.0, 1.0)]
    assert_allclose(0.7 * ends[0] + 0.3 * ends[1], base, rtol=1e-12)


def test_the_mixture_is_what_is_learned():
    """Few samples, one position: the minimiser is (1 - w) p_hat + w q, and the best weight is known in closed form."""
    p, q = (torch.from_numpy(GOLDEN[f"mixture_{name}"]) for name in "pq")
    counts, weight = torch.tensor([3, 1, 1, 0]), 0.4
    labels = torch.repeat_interleave(torch.arange(4), counts)
    mixture = (1 - weight) * counts.double() / 5 + weight * q
    logits = mixture.log().requires_grad_()  # the loss is convex: where its gradient is zero is its minimum
    loss = salt_loss(logits.expand(5, 4), q.log().expand(5, 4), labels, weight)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-15
    variance, bias = (1 - (p**2).sum()) / torch.from_numpy(GOLDEN["mixture_n"]), ((q - p) ** 2).sum()
    assert_allclose(variance / (variance + bias), GOLDEN["mixture_weight"], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_from_hidden_states(dtype, weight):
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(2, 6, d, generator=generator).to(dtype) for d in (5, 4))
    matrix, teacher_matrix = (torch.randn(11, d, generator=generator).to(dtype) for d in (5, 4))
    labels = torch.randint(11, (2, 6), generator=generator)
    labels[1, 3:] = -100
    results = []
    for fused in (True, False):
        inputs = [hidden.clone().requires_grad_(), matrix.clone().requires_grad_()]
        if fused:
            loss = linear_salt_loss(*inputs, taught, teacher_matrix, labels, weight, 0.5, chunk_size=3)
        else:
            loss = salt_loss(inputs[0] @ inputs[1].T, taught @ teacher_matrix.T, labels, weight, 0.5)
        results.append((loss.detach(), *torch.autograd.grad(2 * loss, inputs)))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for ours, slow in zip(*results, strict=True):
        scale = float(slow.abs().max())
        assert_allclose(ours.float(), slow.float(), rtol=0, atol=tolerance * scale)


def test_hidden_states_alone_may_need_a_gradient():
    hidden, matrix, labels = torch.randn(3, 2, requires_grad=True), torch.randn(4, 2), torch.tensor([0, 1, 2])
    linear_salt_loss(hidden, matrix, torch.randn(3, 2), torch.randn(4, 2), labels, 0.5).backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_targets_teach_the_bucket_of_the_others(k):
    student, teacher, labels = problem()
    student, teacher, labels = student.flatten(0, 1).requires_grad_(), teacher.flatten(0, 1), labels.flatten()
    soft = torch.softmax(teacher, -1)
    top = soft.topk(k)
    loss = mixed_cross_entropy(student, TopKTargets(*top), labels, 0.6, "none", 4)
    own = torch.log_softmax(student, -1)
    others = torch.ones_like(own, dtype=torch.bool).scatter(-1, top.indices, value=False)
    expected = -(top.values * own.gather(-1, top.indices)).sum(-1)
    if k < 7:
        expected = expected - (soft * others).sum(-1) * torch.logsumexp(own.masked_fill(~others, -torch.inf), -1)
    expected = 0.6 * expected - 0.4 * own.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    expected = torch.where(labels != -100, expected, 0.0)
    assert_allclose(loss.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (loss, expected)]
    assert_allclose(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("step", [0.6] * 4 + [0.0] * 4),
        ("linear", [0.6, 0.45, 0.3, 0.15] + [0.0] * 4),
        ("linear_ratio", [0.6, 0.6, 0.6, 0.3] + [0.0] * 4),
    ],
)
def test_schedules(kind, expected):
    schedule = SaltSchedule(total_steps=8, kd_steps=4, weight=0.6, kind=kind)
    assert_allclose([schedule(step) for step in range(8)], expected)


def test_scores():
    logits, labels = problem(masked=False)[::2]
    order = torch.tensor([2, 0, 1])
    assert torch.equal(sequence_scores(logits[order], labels[order], 3), sequence_scores(logits, labels, 3)[order])
    losses = -torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
    assert_allclose(sequence_scores(logits, labels, 7), np.median(losses, axis=1))
    shorter = labels.clone()
    shorter[:, 3:] = -100
    assert_allclose(sequence_scores(logits, shorter, 3), sequence_scores(logits[:, :3], labels[:, :3], 3))
    np.testing.assert_array_equal(select_sequences([0.1, 3.0, 0.0, 3.0, 2.0], 3), [1, 3, 4])
    np.testing.assert_array_equal(select_sequences([0.1, 3.0, 0.0, 3.0], 0.25), [1])


@pytest.mark.parametrize("k", [3, 7])
def test_rounded_top_k_targets_are_distributions(k):
    """Half precision makes the stored probabilities sum to more or less than 1; a shift must not show it."""
    student, teacher, labels = (part.flatten(0, 1) for part in problem(t=50, masked=False))
    top = torch.softmax(4 * teacher, -1).topk(k)
    targets = TopKTargets(top.values.half(), top.indices.int())
    losses = [mixed_cross_entropy(student + shift, targets, labels, 0.6, "none", 64) for shift in (0.0, 1000.0)]
    assert_allclose(*losses, rtol=0, atol=1e-9)


class Bigram(torch.nn.Module):
    """A teacher that remembers how often it was asked."""

    asked: ClassVar[list] = []

    def __init__(self, v=6):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(v, v, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids):
        self.asked.append(len(input_ids))
        return type("Output", (), {"logits": self.table[input_ids]})


def test_cache_gives_what_the_teacher_said(tmp_path, monkeypatch):
    monkeypatch.setattr("natwise.lm.salt._cache.SEQUENCES_PER_FILE", 4)
    teacher, ids = Bigram(), torch.randint(6, (10, 5), generator=torch.Generator().manual_seed(1))
    cache = TeacherCache.build(teacher, ids, tmp_path, k=3, inverse_temperature=0.5, batch_size=3)
    assert teacher.training
    assert (cache.k, cache.inverse_temperature, cache.shape) == (3, 0.5, (10, 5))
    rows = torch.tensor([7, 0])
    expected = torch.softmax(0.5 * teacher.table[ids[rows][:, :-1].flatten()].detach(), -1).topk(3)
    targets = cache.targets(rows)
    assert_allclose(targets.probabilities.float(), expected.values, atol=1e-3)
    assert torch.equal(targets.tokens.long(), expected.indices)
    asked = len(Bigram.asked)
    (tmp_path / "part-00001.safetensors").unlink()
    TeacherCache.build(teacher, ids, tmp_path, k=3, inverse_temperature=0.5, batch_size=3)
    assert len(Bigram.asked) == asked + 2  # only the file that was missing
    with pytest.raises(ValueError, match="other sequences or settings"):
        TeacherCache.build(teacher, ids, tmp_path, k=2)
    (tmp_path / "part-00000.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="part-00000"):
        TeacherCache(tmp_path).targets(rows)


NAN = STUDENT.clone()
NAN[0, 0, 0] = torch.nan
INFINITE = STUDENT.clone()
INFINITE[0, 0, 0] = -torch.inf
HIDDEN = torch.ones(9, 4)

BAD_LOSS = [
    ({"teacher_logits": TEACHER[..., :-1]}, ValueError, "(3, 9, 12)"),
    ({"teacher_logits": None}, TypeError, "None"),
    ({"teacher_logits": NAN}, ValueError, "NaN"),
    ({"teacher_logits": INFINITE}, ValueError, "teacher_logits must be finite"),
    ({"teacher_logits": TEACHER[..., :-1], "weight": 0.0}, ValueError, "(3, 9, 12)"),
    ({"student_logits": NAN}, ValueError, "student_logits must be finite"),
    ({"student_logits": NAN, "weight": 0.0}, ValueError, "NaN"),
    ({"student_logits": LABELS}, TypeError, "int64"),
    ({"weight": 1.5}, ValueError, "1.5"),
    ({"weight": "half"}, TypeError, "half"),
    ({"inverse_temperature": -1.0}, ValueError, "-1"),
    ({"labels": torch.full_like(LABELS, -100)}, ValueError, "-100"),
    ({"labels": LABELS + 13}, ValueError, "[0, 13)"),
    ({"labels": LABELS[:, :-1]}, ValueError, "(3, 8)"),
    ({"labels": LABELS.double()}, TypeError, "float64"),
    ({"labels": LABELS > 3}, TypeError, "bool"),
    ({"labels": LABELS.to(torch.complex64)}, TypeError, "complex64"),
    ({"labels": np.ma.masked_less(LABELS.numpy(), 3)}, TypeError, "MaskedArray"),
    ({"student_logits": np.ma.masked_less(STUDENT.numpy(), 0)}, TypeError, "MaskedArray"),
    ({"reduction": "median"}, ValueError, "median"),
    ({"chunk_size": 0}, ValueError, "0"),
]
BAD_LINEAR = [
    ({"student_weight": torch.ones(5, 3)}, ValueError, "(5, 3)"),
    ({"student_weight": torch.ones(13, 4).double()}, TypeError, "float64"),
    ({"teacher_weight": torch.ones(13, 4).long()}, TypeError, "int64"),
    ({"teacher_weight": torch.ones(12, 4)}, ValueError, "12"),
    ({"reduction": "none"}, ValueError, "none"),
    ({"student_hidden": HIDDEN[:5]}, ValueError, "(5, 4)"),
    ({"teacher_hidden": torch.full((9, 4), torch.inf)}, ValueError, "infinity"),
]
BAD_SCORES = [
    ({"k": 0}, ValueError, "0"),
    ({"k": 14}, ValueError, "14"),
    ({"logits": NAN}, ValueError, "NaN"),
    ({"logits": STUDENT[0]}, ValueError, "(9, 13)"),
    ({"logits": LABELS}, TypeError, "logits"),
    ({"labels": torch.full_like(LABELS, -100)}, ValueError, "-100"),
]
BAD_SCHEDULE = [
    ({"kd_steps": 11}, ValueError, "11"),
    ({"kd_steps": -1}, ValueError, "-1"),
    ({"total_steps": 0}, ValueError, "0"),
    ({"weight": -0.1}, ValueError, "-0.1"),
    ({"kind": "cosine"}, ValueError, "cosine"),
]


def test_bad_input(tmp_path):
    good = {"student_logits": STUDENT, "teacher_logits": TEACHER, "labels": LABELS, "weight": 0.5}
    check_bad_input(salt_loss, BAD_LOSS, **good)
    matrix = torch.ones(13, 4)
    hidden = {"student_hidden": HIDDEN, "student_weight": matrix, "teacher_hidden": HIDDEN, "teacher_weight": matrix}
    check_bad_input(linear_salt_loss, BAD_LINEAR, **hidden, labels=LABELS[0], weight=0.5)
    check_bad_input(sequence_scores, BAD_SCORES, logits=STUDENT, labels=LABELS, k=3)
    check_bad_input(SaltSchedule, BAD_SCHEDULE, total_steps=10, kd_steps=2)
    wrong = [({"keep": 3}, ValueError, "3"), ({"keep": 1.5}, ValueError, "1.5"), ({"keep": "all"}, TypeError, "all")]
    check_bad_input(select_sequences, [*wrong, ({"scores": []}, ValueError, "none")], scores=[1.0, 2.0], keep=0.5)
    check_bad_input(
        TeacherCache, [({"folder": tmp_path / "none"}, ValueError, "none"), ({"folder": 1}, TypeError, "1")]
    )
    wrong = [
        ({"k": 7}, ValueError, "6"),
        ({"k": 0}, ValueError, "0"),
        ({"input_ids": STUDENT}, TypeError, "int"),
        ({"input_ids": LABELS[:0]}, ValueError, "(0, 9)"),
        ({"input_ids": LABELS - 13}, ValueError, "0.."),
        ({"teacher": "gpt"}, TypeError, "module"),
        ({"folder": None}, TypeError, "path"),
    ]
    good = {"teacher": Bigram(), "input_ids": LABELS % 6, "folder": tmp_path / "cache", "k": 2}
    check_bad_input(TeacherCache.build, wrong, **good)
    wrong = [
        ({"sequences": [0]}, TypeError, "tensor"),
        ({"sequences": torch.tensor([0.5])}, TypeError, "integers"),
        ({"sequences": torch.tensor(0)}, TypeError, "(n,)"),
    ]
    check_bad_input(TeacherCache.build(**good).targets, wrong)
