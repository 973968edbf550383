import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.functional import mse_loss

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.testing import check_bad_input, same_bits, unchanged

X = torch.randn(13, 3, generator=Streams(0).torch("x"))
Y = X.sum(1, keepdim=True)
QUICK = Trainer(max_epochs=4, batch_size=5, learning_rate=0.05, random_state=0)


def network(dropout=0.4):
    with Streams(1).torch_global("init"):
        return torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1)
        )


def squared_error(model, batch, step):
    return mse_loss(model(batch[0]), batch[1])


def held_out(model):
    return mse_loss(model(X), Y).item()


class SmoothedTarget(torch.nn.Module):
    """A loss with a state: its target moves with the predictions, as in early-learning regularisation."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.fail_at = fail_at

    def forward(self, model, batch, step):
        if step == self.fail_at:
            raise InterruptedError
        prediction = model(batch[0])
        self.mean = 0.9 * self.mean + 0.1 * prediction.detach().mean()
        return mse_loss(prediction, batch[1]) + (prediction - self.mean).square().mean()


def test_equals_a_plain_loop():
    """Same weights as torch's textbook loop over the same rows, bit for bit."""
    trainer = dataclasses.replace(QUICK, schedule=lambda step, n_steps: 1 - step / n_steps, max_grad_norm=0.5)
    model, plain = network(dropout=0.0), network(dropout=0.0)
    history = trainer.fit(model, squared_error, (X, Y.numpy()))
    streams = Streams(Streams(0).seed("training"))
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    losses = np.zeros(4)
    for step in range(12):
        epoch, position = divmod(step, 3)
        rows = np.array_split(streams.child("order").numpy(epoch).permutation(13), 3)[position]
        loss = mse_loss(plain(X[rows]), Y[rows])
        losses[epoch] += loss.item() * len(rows) / 13
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 12)
        optimizer.step()
    assert same_bits(dict(model.state_dict()), dict(plain.state_dict()))
    np.testing.assert_allclose(history.losses, losses, rtol=1e-12)
    assert (history.n_steps, history.stopped, history.scores) == (12, "max_epochs", ())
    assert not model.training


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_resume_is_exact_from_every_step(tmp_path, optimizer):
    trainer = dataclasses.replace(QUICK, optimizer=optimizer, checkpoint_every=0.0, patience=2)

    def run(path, fail_at=None):
        model, loss = network(), SmoothedTarget(fail_at)
        history = trainer.fit(model, loss, (X, Y), validate=held_out, checkpoint=path)
        return history, dict(model.state_dict()), loss.mean

    undisturbed = run(None)
    for step in range(1, undisturbed[0].n_steps):
        with pytest.raises(InterruptedError):
            run(tmp_path / f"{step}.pt", fail_at=step)
        assert same_bits(run(tmp_path / f"{step}.pt"), undisturbed)
    assert same_bits(run(tmp_path / "1.pt")[:2], undisturbed[:2])  # finished: only read


def test_random_state_none_resumes_its_own_order(tmp_path):
    trainer = dataclasses.replace(QUICK, random_state=None)
    first, second = network(), network()
    trainer.fit(first, squared_error, (X, Y), checkpoint=tmp_path / "c.pt")
    history = trainer.fit(second, squared_error, (X, Y), checkpoint=tmp_path / "c.pt")
    assert same_bits(first.state_dict(), second.state_dict())
    assert history.n_steps == 12


def test_early_stopping_keeps_the_best_weights():
    scores = iter([3.0, 1.0, 2.0, 1.0, 5.0])
    seen = []

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    model = network()
    trainer = dataclasses.replace(QUICK, max_epochs=50, patience=3)
    history = trainer.fit(model, squared_error, (X, Y), validate=validate)
    assert (history.scores, history.best_epoch, history.stopped) == ((3.0, 1.0, 2.0, 1.0, 5.0), 1, "patience")
    assert same_bits(dict(model.state_dict()), seen[1])


def test_time_limit_is_kept_and_resumed(tmp_path):
    limited = dataclasses.replace(QUICK, max_seconds=1e-9)
    model, undisturbed = network(), network()
    assert limited.fit(model, squared_error, (X, Y), checkpoint=tmp_path / "c.pt").stopped == "max_seconds"
    history = QUICK.fit(model, squared_error, (X, Y), checkpoint=tmp_path / "c.pt")
    assert history == QUICK.fit(undisturbed, squared_error, (X, Y))
    assert same_bits(model.state_dict(), undisturbed.state_dict())


def test_kinds_of_data_agree():
    """Arrays, a dict of them, a dataset of ragged samples: the same rows in the same order."""
    models = [network() for _ in range(3)]
    QUICK.fit(models[0], squared_error, (X, Y))
    QUICK.fit(
        models[1],
        lambda model, batch, step: mse_loss(model(batch["x"]), batch["y"]),
        {"x": X.numpy(), "y": Y},
    )
    samples = [(list(x), y) for x, y in zip(X, Y, strict=True)]
    QUICK.fit(
        models[2],
        squared_error,
        samples,
        collate=lambda s: (torch.stack([torch.stack(x) for x, _ in s]), torch.stack([y for _, y in s])),
    )
    for model in models[1:]:
        assert same_bits(model.state_dict(), models[0].state_dict())


def test_data_drawn_by_a_function():
    draws = []

    def draw(batch_size, rng):
        x = rng.standard_normal((batch_size, 3), dtype=np.float32)
        draws.append(x)
        return x, x.sum(1, keepdims=True)

    trainer = dataclasses.replace(QUICK, steps_per_epoch=3, batch_size=16)
    models = [network(), network()]
    for model in models:
        history = trainer.fit(model, squared_error, draw)
    assert len(history.losses) == 4
    assert same_bits(draws[:12], draws[12:])
    assert len({x.tobytes() for x in draws}) == 12
    assert same_bits(models[0].state_dict(), models[1].state_dict())


def test_the_process_is_left_as_it_was():
    mine = Accelerator(cpu=True)
    kept = dict(AcceleratorState._shared_state)
    environment = dict(os.environ)
    try:
        for mixed_precision in ("bf16", "no"):
            model = network()
            names = set(vars(model))
            with unchanged((X, Y)):
                dataclasses.replace(QUICK, mixed_precision=mixed_precision).fit(model, squared_error, (X, Y))
            assert set(vars(model)) == names
            assert model(X).dtype == torch.float32
        assert AcceleratorState._shared_state == kept
        assert mine.mixed_precision == "no"
        assert dict(os.environ) == environment
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_seeds_differ_and_old_gradients_do_not_count():
    models = [network() for _ in range(3)]
    squared_error(models[1], (X, Y), 0).backward()
    models[1].load_state_dict(models[0].state_dict())
    for model, seed in zip(models, (0, 0, 1), strict=True):
        dataclasses.replace(QUICK, random_state=seed).fit(model, squared_error, (X, Y))
    assert same_bits(models[0].state_dict(), models[1].state_dict())
    assert not same_bits(models[0].state_dict(), models[2].state_dict())


@pytest.mark.parametrize("content", [{}, {"state": {}}, {"state": {"seed": 1, "what": 2}}, [1]])
def test_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "c.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"c\.pt is no (checkpoint of this run|readable file)") as caught:
        QUICK.fit(network(), squared_error, (X, Y), checkpoint=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "model", "text"),
    [
        ({"random_state": 1}, network(), "seed"),
        ({"batch_size": 4}, network(), "batch_size 5, this run has 4"),
        ({}, torch.nn.Linear(3, 1), "Missing key"),
        ({"optimizer": torch.optim.SGD}, network(), "optimizer Adam, this run has SGD"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, model, text):
    QUICK.fit(network(), squared_error, (X, Y), checkpoint=tmp_path / "c.pt")
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(QUICK, **change).fit(model, squared_error, (X, Y), checkpoint=tmp_path / "c.pt")


FIT_CASES = [
    ({"model": "net"}, TypeError, "model must be a torch.nn.Module, got str"),
    ({"model": torch.nn.ReLU()}, ValueError, "model must have a parameter"),
    ({"loss": 3}, TypeError, "loss must be callable, got 3"),
    ({"loss": lambda model, batch, step: 1.0}, TypeError, "loss must return a scalar tensor"),
    ({"loss": lambda model, batch, step: model(batch[0])}, TypeError, "loss must return a scalar tensor"),
    ({"loss": lambda model, batch, step: Y.sum()}, TypeError, "loss must return a scalar tensor"),
    ({"loss": lambda model, batch, step: model(batch[0]).sum() * math.nan}, ValueError, "loss is nan at step 0"),
    ({"data": (X, Y[:5])}, ValueError, "data must hold arrays of the same length, got lengths [5, 13]"),
    ({"data": (X[:0], Y[:0])}, ValueError, "data must hold at least one sample"),
    ({"data": {}}, ValueError, "data must hold at least one sample"),
    ({"data": 5}, TypeError, "data must hold arrays, be a dataset or draw batches, got int"),
    ({"validate": lambda model: math.nan}, ValueError, "validate must return a finite score, got nan"),
]
SETTING_CASES = [
    ({"max_epochs": 0}, ValueError, "max_epochs must be >= 1"),
    ({"max_epochs": 1.5}, TypeError, "max_epochs must be an integer"),
    ({"batch_size": -1}, ValueError, "batch_size must be >= 1"),
    ({"learning_rate": -0.1}, ValueError, "learning_rate must be >= 0"),
    ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite"),
    ({"optimizer": "adam"}, TypeError, "optimizer must be callable"),
    ({"steps_per_epoch": 3}, ValueError, "steps_per_epoch must be None when data has a length"),
    ({"patience": 0}, ValueError, "patience must be >= 1"),
    ({"patience": 2}, ValueError, "patience must be None without validate"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be > 0"),
    ({"max_seconds": -1}, ValueError, "max_seconds must be > 0"),
    ({"checkpoint_every": -1}, ValueError, "checkpoint_every must be >= 0"),
    ({"device": "gpu"}, ValueError, "device must be like 'cpu'"),
    ({"device": "cuda:99"}, ValueError, "device must be a device of this machine"),
    ({"mixed_precision": "bf_16"}, ValueError, "Did you mean 'bf16'"),
    ({"mixed_precision": "fp16"}, ValueError, "mixed_precision='fp16' must be trained on a GPU"),
    ({"random_state": "x"}, TypeError, "random_state must be an int"),
]


def test_bad_input():
    def fit(model=None, loss=squared_error, data=(X, Y), validate=None, **settings):
        trainer = dataclasses.replace(QUICK, **settings)
        trainer.fit(network() if model is None else model, loss, data, validate=validate)

    check_bad_input(fit, FIT_CASES + SETTING_CASES)
    check_bad_input(
        fit, [({"data": lambda n, rng: (X, Y)}, ValueError, "steps_per_epoch must be given when data is a function")]
    )
