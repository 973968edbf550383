import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from natwise.core.linearized import empirical_ntk
from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.supervision import CheckpointTeacher, OnlineDistiller, complexity_path, supervision_complexity
from natwise.supervision.distillation._distiller import nesterov_sgd
from natwise.testing import same_bits, unchanged

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
QUICK = {"max_epochs": 4, "batch_size": 16, "random_state": 0}


def network(seed, width=8, n_classes=3, norm=False):
    with Streams(seed).torch_global("init"):
        layers = [nn.Linear(4, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, n_classes))


def weights(module):
    return [value.numpy().copy() for value in module.state_dict().values()]


def cross_entropy(model, batch, step):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


TEACHER = network(1, norm=True).eval()


@pytest.mark.parametrize(("tau", "own", "scaled"), [(1.0, None, True), (4.0, None, True), (4.0, 1.0, False)])
def test_one_checkpoint_is_plain_distillation_bit_for_bit(tau, own, scaled):
    student = network(2, norm=True)
    options = {"student_temperature": own, "scale_by_tau2": scaled, **QUICK}
    with unchanged(X, weights(student), weights(TEACHER)):
        online = OnlineDistiller(student, [TEACHER], tau, **options).fit(X)

    def offline(model, batch, step):
        with torch.no_grad():
            target = torch.log_softmax(TEACHER(batch[0]) / tau, dim=1)
        loss = (target.exp() * (target - torch.log_softmax(model(batch[0]) / (own or tau), dim=1))).sum(1)
        return (loss * tau**2 if scaled else loss).sum() / len(loss)

    plain = copy.deepcopy(student)
    Trainer(learning_rate=0.05, optimizer=nesterov_sgd, **QUICK).fit(plain, offline, (torch.from_numpy(X),))
    assert same_bits(weights(online.student_), weights(plain))
    repeated = OnlineDistiller(student, CheckpointTeacher([TEACHER] * 3, steps=[1, 2, 9]), tau, **options).fit(X)
    assert same_bits(weights(repeated.student_), weights(plain))
    assert not any(parameter.grad is not None for parameter in TEACHER.parameters())


def test_next_saved_checkpoint_teaches():
    teacher = CheckpointTeacher([TEACHER] * 3, steps=[3, 5, 10])
    steps = [0, 2, 3, 4, 5, 9, 10, 11, 99]
    assert [teacher.index_at(step, 100) for step in steps] == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    even = CheckpointTeacher([TEACHER] * 4)
    assert np.bincount([even.index_at(step, 20) for step in range(20)]).tolist() == [5, 5, 5, 5]
    assert [CheckpointTeacher([TEACHER] * 5).index_at(step, 2) for step in (0, 1)] == [2, 4]


def test_checkpoints_follow_one_another_in_training():
    """Each stage equals distillation from its checkpoint: with one epoch per teacher only the first sees teacher 0."""
    teachers = [network(seed) for seed in (3, 4)]
    student = network(5)
    whole = OnlineDistiller(student, teachers, **{**QUICK, "max_epochs": 2}).fit(X)
    first = OnlineDistiller(student, teachers[:1], **{**QUICK, "max_epochs": 2}).fit(X)
    assert whole.history_.losses[0] == first.history_.losses[0]
    assert whole.history_.losses[1] != first.history_.losses[1]


def test_saved_states_teach_like_modules():
    data = torch.from_numpy(X), torch.from_numpy(LABELS)
    trainer = Trainer(max_epochs=4, batch_size=16, learning_rate=0.05, random_state=0)
    alone, recorded = network(6, norm=True), network(6, norm=True)
    trainer.fit(alone, cross_entropy, data)
    teacher = CheckpointTeacher.record(recorded, trainer, cross_entropy, data, every=2, start=True)
    assert len(teacher) == 3
    assert same_bits(weights(alone), weights(recorded))
    assert same_bits(weights(teacher.load(2)), weights(alone))
    assert same_bits(weights(teacher.load(0)), weights(network(6, norm=True)))
    modules = [teacher.load(index) for index in range(3)]
    results = [OnlineDistiller(network(7), given, **QUICK).fit(X) for given in (teacher, modules)]
    assert same_bits(*(weights(result.student_) for result in results))
    assert not teacher.load(1).training
    assert all(not parameter.requires_grad for parameter in teacher.load(1).parameters())


def test_side_by_side_trains_the_teacher_as_if_alone():
    teacher, student = network(8), network(9)
    model = OnlineDistiller(student, teacher, 2.0, **QUICK).fit(X, LABELS)
    alone = copy.deepcopy(teacher)
    data = torch.from_numpy(X), torch.from_numpy(LABELS)
    Trainer(learning_rate=0.05, optimizer=nesterov_sgd, **QUICK).fit(alone, cross_entropy, data)
    for a, b in zip(weights(model.teacher_), weights(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not same_bits(weights(model.student_), weights(student))
    with pytest.raises(ValueError, match="y must be given"):
        OnlineDistiller(student, teacher, **QUICK).fit(X)
    with pytest.raises(ValueError, match="y must hold class numbers"):
        OnlineDistiller(student, teacher, **QUICK).fit(X, LABELS + 1)


def test_resumes_to_the_same_bits(tmp_path):
    teachers, seen = [network(seed) for seed in (3, 4)], []

    def interrupt(batch):
        seen.append(len(batch))
        if len(seen) == 7:
            raise InterruptedError
        return batch

    options = {**QUICK, "checkpoint": tmp_path / "run.pt"}
    student = network(5, norm=True)
    trainer_step = OnlineDistiller(student, teachers, augment=interrupt, **options)
    with pytest.raises(InterruptedError):
        trainer_step.fit(X)
    resumed = OnlineDistiller(student, teachers, **options).fit(X)
    plain = OnlineDistiller(student, teachers, **QUICK).fit(X)
    assert same_bits(weights(resumed.student_), weights(plain.student_))
    again = OnlineDistiller(student, teachers, **options).fit(X)
    assert same_bits(weights(again.student_), weights(plain.student_))


def test_outputs():
    model = OnlineDistiller(network(2, width=16), [TEACHER], max_epochs=60, batch_size=16, random_state=0)
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert clone(OnlineDistiller("student", "teacher")).student == "student"
    assert model.fit(X) is model
    with torch.no_grad():
        wanted = TEACHER(torch.from_numpy(X)).argmax(1).numpy()
    assert model.score(X, wanted) > 0.9
    assert model.predict(X).dtype.kind == "i"
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    assert (model.predict_proba(X).argmax(1) == model.predict(X)).all()
    assert model.classes_.tolist() == [0, 1, 2]


def test_complexity_path_is_the_complexity_of_each_state():
    data = torch.from_numpy(X), torch.from_numpy(LABELS)
    trainer = Trainer(max_epochs=2, batch_size=16, learning_rate=0.05, random_state=0)
    student = CheckpointTeacher.record(network(6), trainer, cross_entropy, data, start=True)
    labels = np.eye(3)[LABELS[:9]]
    moving = np.stack([labels, 0 * labels, 0.5 * labels])
    result = complexity_path(student, X[:9], {"labels": labels, "moving": moving}, jitter=1e-6)
    start = student.load(0)(torch.from_numpy(X[:9])).double().softmax(1).numpy()
    for t in range(3):
        kernel = empirical_ntk(student.load(t).requires_grad_(True), X[:9], dtype=torch.float64)
        for name, targets in {"labels": labels, "moving": moving[t]}.items():
            expected = supervision_complexity(kernel, targets, start, jitter=1e-6)
            assert result.arrays[name][t] == pytest.approx(expected, rel=1e-9)
    assert result.rows == (0, 1, 2)
    with pytest.raises(ValueError, match="labels"):
        complexity_path(student, X[:9], {"labels": labels.T})
    for arguments, message in [
        ((TEACHER, X[:9], {"labels": labels}), "student must be a CheckpointTeacher"),
        ((student, X[:9, :1], {"labels": labels}), "student must take inputs of shape"),
        ((student, X[:9], labels), "targets must be a mapping"),
        ((student, X[:9], {}), "targets must be a mapping"),
        ((student, X[:9], {"trace": labels}), "targets must have text other than effective_rank and trace"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            complexity_path(*arguments)


TRAINING = network(1, norm=True)
STATE = network(1).state_dict()
BAD_TEACHERS = [
    (([],), "must hold a checkpoint"),
    (([TRAINING],), "evaluation mode"),
    ((["teacher"],), "must be a torch.nn.Module"),
    ((None,), "must be a list"),
    (([TEACHER] * 2, [5, 3]), "strictly increasing"),
    (([TEACHER] * 2, [3, 3]), "strictly increasing"),
    (([TEACHER] * 2, [3]), "must have 2 entries"),
    (([TEACHER], [-1]), ">= 0"),
    (([STATE],), "must be a torch.nn.Module"),
    (([STATE], None, network(1, width=9)), "must be a state of module"),
    (([TEACHER], None, network(1)), "must be a state dict"),
    (([STATE], None, "module"), "module must be"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_TEACHERS)
def test_bad_teachers(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CheckpointTeacher(*arguments)


BAD_FITS = [
    ({"temperature": 0.0}, X, "temperature must be > 0"),
    ({"student_temperature": -1.0}, X, "student_temperature must be > 0"),
    ({"teacher_checkpoints": []}, X, "must hold a checkpoint"),
    ({"teacher_checkpoints": [TRAINING]}, X, "evaluation mode"),
    ({"teacher_checkpoints": [TEACHER, network(1, n_classes=4)]}, X, r"\[1\] must have the student's 3 classes"),
    ({"student": "net"}, X, "student must be"),
    ({"student": network(1, n_classes=1)}, X, "student must give logits"),
    ({"loss": "mse"}, X, "loss must be"),
    ({"scale_by_tau2": "yes"}, X, "scale_by_tau2 must be"),
    ({"augment": 3}, X, "augment must be callable"),
    ({"max_epochs": 0}, X, "max_epochs must be"),
    ({"batch_size": 0}, X, "batch_size must be >= 1"),
    ({}, X[:, :1], "student must take inputs of shape"),
    ({}, X[:0], "X must have shape"),
    ({}, X[:, 0], "X must have shape"),
    ({}, X * np.nan, "X must be finite"),
]


@pytest.mark.parametrize(("options", "inputs", "message"), BAD_FITS)
def test_bad_fits(options, inputs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        OnlineDistiller(**{"student": network(2), "teacher_checkpoints": [TEACHER], **QUICK, **options}).fit(inputs)
