"""Networks against slow loops; losses, leaks, training, command line, study."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from natwise.datasets import mimic3
from natwise.datasets.clinical import write_mimic3_tables
from natwise.testing import check_bad_input
from natwise.timeseries import BaselineSettings, ChannelWiseLSTM, Discretizer, LSTMClassifier, MultitaskLSTM, train_task
from natwise.timeseries.mimic import study
from natwise.timeseries.mimic._models import channel_columns
from natwise.timeseries.mimic._recurrent import LSTMLayer, inside_mask

pytest.importorskip("polars")
TASKS = ("in_hospital_mortality", "decompensation", "length_of_stay", "phenotyping", "multitask")
SMALL = BaselineSettings(hidden=4, max_epochs=1, dropout=0.1)


def slow_lstm(x, kernel, recurrent, bias):
    """Keras 2.1's equations, one step and one gate at a time; gates stand as input, forget, output, cell."""
    hidden = len(recurrent)
    output, cell, outputs = np.zeros(hidden), np.zeros(hidden), []
    for row in x:
        gates = [
            row @ kernel[:, g * hidden : (g + 1) * hidden]
            + output @ recurrent[:, g * hidden : (g + 1) * hidden]
            + bias[g * hidden : (g + 1) * hidden]
            for g in range(4)
        ]
        enter, forget, leave = (np.clip(0.2 * gate + 0.5, 0, 1) for gate in gates[:3])
        cell = forget * cell + enter * np.tanh(gates[3])
        output = leave * np.tanh(cell)
        outputs.append(output)
    return np.array(outputs)


def test_layer_is_the_slow_lstm_and_skips_padding():
    torch.manual_seed(0)
    columns = [[0, 1, 2], [2, 4]]
    layer = LSTMLayer(columns, 3, bidirectional=True).double().eval()
    with torch.no_grad():
        layer.bias.add_(torch.randn_like(layer.bias))
    lengths = [6, 4]
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    x[1, 4:] = 1e6  # padding must not matter
    outputs = layer(x, inside_mask(torch.tensor(lengths), 6)).detach().numpy()
    weights = [
        [w.detach().numpy() for w in triple] for triple in zip(layer.kernels, layer.recurrent, layer.bias, strict=True)
    ]
    for stay, length in enumerate(lengths):
        real = x[stay, :length].numpy()
        for i, chosen in enumerate(columns):
            forwards = slow_lstm(real[:, chosen], *weights[i])
            backwards = slow_lstm(real[::-1, chosen], *weights[2 + i])[::-1]
            np.testing.assert_allclose(outputs[stay, :length, 3 * i : 3 * i + 3], forwards, atol=1e-12)
            np.testing.assert_allclose(outputs[stay, :length, 6 + 3 * i : 9 + 3 * i], backwards, atol=1e-12)
            last = np.broadcast_to(forwards[-1], (6 - length, 3))
            np.testing.assert_allclose(outputs[stay, length:, 3 * i : 3 * i + 3], last, atol=1e-12)


def test_initial_weights_are_those_of_keras():
    layer = LSTMLayer([range(76)], 16)
    assert layer.bias[0].tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
    assert layer.kernels[0].abs().max() <= np.sqrt(6 / (76 + 64))
    square = layer.recurrent[0] @ layer.recurrent[0].T
    torch.testing.assert_close(square, torch.eye(16), atol=1e-5, rtol=0)


def test_dropout_drops_an_input_at_all_steps():
    layer = LSTMLayer([range(3)], 2, dropout=0.5)
    x, inside = torch.randn(8, 5, 3), inside_mask(torch.arange(8) % 5 + 1, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = layer.train()(x, inside)
        torch.manual_seed(0)
        mask = torch.nn.functional.dropout(torch.ones(8, 1, 3), 0.5)
    assert 0 < (mask == 0).sum() < 24
    torch.testing.assert_close(found, layer.eval()(x * mask, inside))


@pytest.mark.parametrize(
    "network",
    [
        LSTMClassifier(hidden=6, depth=2, every_step=True),
        ChannelWiseLSTM(hidden=2, size_coef=2, every_step=True),
        MultitaskLSTM(hidden=4),
        MultitaskLSTM(hidden=2, channels=channel_columns(), size_coef=2),
    ],
)
def test_one_pass_answers_every_prefix_and_never_looks_ahead(network):
    network.eval()
    x = torch.randn(3, 9, 76)
    with torch.no_grad():
        whole = network(x, torch.tensor([9, 9, 9]))
        for t in (1, 5, 9):
            prefix = network(x[:, :t], torch.tensor([t, t, t]))
            pairs = zip(whole.values(), prefix.values(), strict=True) if isinstance(whole, dict) else [(whole, prefix)]
            for a, b in pairs:
                torch.testing.assert_close(a[:, t - 1], b[:, -1])


def test_networks_have_the_published_shapes():
    x, lengths = torch.randn(2, 5, 76), torch.tensor([5, 3])
    assert LSTMClassifier()(x, lengths).shape == (2, 1)
    assert LSTMClassifier(n_outputs=25)(x, lengths).shape == (2, 25)
    channel_wise = ChannelWiseLSTM(n_outputs=10)
    assert channel_wise(x, lengths).shape == (2, 10)
    assert [layer.n_outputs for layer in channel_wise.encoder.layers] == [17 * 8, 32]
    assert sorted(column for columns in channel_columns() for column in columns) == list(range(76))
    outputs = MultitaskLSTM(hidden=4)(x, lengths)
    assert {name: tuple(value.shape[2:]) for name, value in outputs.items()} == {
        "in_hospital_mortality": (1,), "decompensation": (1,), "length_of_stay": (10,), "phenotyping": (25,)
    }  # fmt: skip


def test_bad_networks():
    cases = [
        ({"hidden": 3}, ValueError, "even"),
        ({"hidden": 0}, ValueError, ">= 2"),
        ({"depth": 0}, ValueError, ">= 1"),
    ]
    check_bad_input(
        LSTMClassifier, [*cases, ({"dropout": 1.5}, ValueError, "<= 1"), ({"n_outputs": 0}, ValueError, ">= 1")]
    )
    channels = [
        ({"channels": []}, ValueError, "at least one"),
        ({"channels": [[0], []]}, ValueError, "at least one"),
        ({"channels": [["a"]]}, TypeError, "integer"),
        ({"channels": 3}, TypeError, "list of lists"),
    ]
    check_bad_input(ChannelWiseLSTM, [*cases, *channels, ({"size_coef": 0}, ValueError, ">= 1")])
    settings = [
        ({"depth": 0}, ValueError, ">= 1"),
        ({"batch_size": 1.5}, TypeError, "integer"),
        ({"replication": "x"}, TypeError, "number"),
        ({"deep_supervision": "no"}, TypeError, "True or False"),
        ({"task_weights": (1.0, 2.0)}, ValueError, "shape"),
        ({"task_weights": (-1.0, 1.0, 1.0, 1.0)}, ValueError, ">= 0"),
    ]
    check_bad_input(BaselineSettings, settings)


def test_bad_batches():
    x, lengths = torch.zeros(2, 5, 4), torch.tensor([5, 3])
    cases = [
        ({"x": x.numpy()}, TypeError, "float tensor"),
        ({"x": x.int()}, TypeError, "float tensor"),
        ({"x": x[0]}, ValueError, "(batch, steps, 4)"),
        ({"x": x[..., :3]}, ValueError, "(batch, steps, 4)"),
        ({"x": x * np.nan}, ValueError, "finite"),
        ({"lengths": [5, 3]}, TypeError, "integer tensor"),
        ({"lengths": lengths.float()}, TypeError, "integer tensor"),
        ({"lengths": lengths[:1]}, ValueError, "(2,)"),
        ({"lengths": lengths * 0}, ValueError, "within 1 and the 5 steps"),
        ({"lengths": lengths + 1}, ValueError, "within 1 and the 5 steps"),
    ]
    check_bad_input(LSTMClassifier(4, 4).forward, cases, x=x, lengths=lengths)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A build of few patients with short stays."""
    from natwise.timeseries import MimicBenchmark

    folder = tmp_path_factory.mktemp("small")
    write_mimic3_tables(folder / "tables", 30, seed=3, hours=50, unmapped=0.0)
    MimicBenchmark(folder / "tables").build(folder / "out", export=False)
    return folder / "out"


@pytest.mark.parametrize("task", TASKS)
def test_targets_stand_where_they_can_be_known(task, small):
    import polars as pl

    from natwise.timeseries.mimic._samples import load_task

    data = load_task(small, task, Discretizer())
    samples = pl.read_parquet(small / f"tasks/{task}.parquet")
    assert sum(len(part) for part in data.values()) == samples.select("SUBJECT_ID", "EPISODE").n_unique()
    for part in data.values():
        for name, x, target in zip(part.names, part.x, part.targets, strict=True):
            subject, episode = name.split("_episode")
            mine = samples.filter(SUBJECT_ID=int(subject), EPISODE=int(episode))
            prefix = "decompensation/" if task == "multitask" else ""
            if f"{prefix}hourly_mask" in target:
                steps = np.flatnonzero(target[f"{prefix}hourly_mask"])
                hours = (
                    mine["HOURS"].to_numpy() if task != "multitask" else np.flatnonzero(mine["DECOMPENSATION_MASK"][0])
                )
                labels = mine["LABEL"] if task != "multitask" else mine["DECOMPENSATION_LABEL"][0].gather(hours)
                np.testing.assert_array_equal(steps + 1, hours)
                np.testing.assert_allclose(target[f"{prefix}hourly_y"][steps], labels, rtol=1e-6)
            if task == "in_hospital_mortality":
                assert x.shape == (48, 76)


@pytest.mark.parametrize(("task", "model"), [(task, model) for task in TASKS for model in ("lstm", "channel_wise")])
def test_every_baseline_trains(task, model, small):
    settings = replace(SMALL, deep_supervision=task != "in_hospital_mortality" or model == "lstm", size_coef=2)
    result = train_task(small, task, model=model, settings=settings)
    assert np.isfinite(result.scalars["train/loss"])
    assert result.scalars["epochs"] == 1
    for name, value in result.arrays.items():
        assert np.isfinite(value).all(), name
    assert any(name.startswith("test/") for name in result.scalars)
    if (task, model) == ("multitask", "lstm"):
        again = train_task(small, task, model=model, settings=settings)
        assert all(np.array_equal(again.arrays[name], value) for name, value in result.arrays.items())


@pytest.mark.parametrize("task", TASKS[:4])
def test_logistic_regression_trains(task, small):
    result = train_task(small, task, model="logistic_regression")
    assert np.isfinite(result.arrays[f"{task}/y_score"]).all()


def test_losses_are_the_published_ones():
    from natwise.timeseries.mimic._training import _task_loss

    settings = BaselineSettings(replication=0.3)
    logits, y = torch.randn(2, 4, 1), torch.tensor([[1.0], [0.0]])
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits[..., 0], y.expand(2, 4), reduction="none")
    batch = {"y": y, "lengths": torch.tensor([4, 2])}
    mean = (each[0].sum() + each[1, :2].sum()) / 6
    torch.testing.assert_close(
        _task_loss("in_hospital_mortality", logits, batch, settings), 0.7 * each[:, -1].mean() + 0.3 * mean
    )
    hourly = {"hourly_y": torch.tensor([[30.0, 300.0]]), "hourly_mask": torch.tensor([[0.0, 1.0]])}
    logits = torch.randn(1, 2, 10)
    expected = torch.nn.functional.cross_entropy(logits[:, 1], torch.tensor([8]))
    torch.testing.assert_close(_task_loss("length_of_stay", logits, hourly, settings), expected)


def test_bad_training(small, tmp_path):
    check_bad_input(
        train_task,
        [
            ({"task": "readmission"}, ValueError, "phenotyping"),
            ({"model": "gru"}, ValueError, "lstm"),
            ({"device": "abacus"}, ValueError, "cuda"),
            ({"settings": {"hidden": 4}}, TypeError, "BaselineSettings"),
            ({"task": "multitask", "model": "logistic_regression"}, ValueError, "decompensation"),
        ],
        folder=small,
        task="phenotyping",
    )
    with pytest.raises(FileNotFoundError, match="holds no built phenotyping"):
        train_task(tmp_path, "phenotyping")


@pytest.mark.slow
def test_command_line(tables, tmp_path):
    def natwise(*arguments):
        command = [sys.executable, "-m", "natwise", "mimic", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out = tmp_path / "out"
    run = natwise("build", tables, out, "--tasks", "in_hospital_mortality", "--no-export")
    assert run.returncode == 0, run.stderr
    assert "n_in_hospital_mortality_train" in run.stdout
    run = natwise("train", "in_hospital_mortality", "--data", out, "--epochs", "1", "--hidden", "4")
    assert run.returncode == 0, run.stderr
    assert "test/auroc" in run.stdout
    assert (out / "training/in_hospital_mortality-lstm.safetensors").is_file()
    for arguments in (("build", tmp_path / "none", out), ("train", "phenotyping", "--data", out), ("train", "x")):
        run = natwise(*arguments)
        assert run.returncode == 2
        assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim", ["original-pipeline", "logistic-regression", "deep-supervision", "deep-supervision-auroc"]
)
def test_claims(claim):
    from natwise import registry

    result = study.run(claim, scale="ci", seed=0)
    expected = next(entry for entry in registry.card("timeseries.mimic").claims if entry.id == claim)
    assert expected.holds(result.scalars[expected.metric])
    assert isinstance(study.figure(claim, result), Figure)


def test_synthetic_tables_are_the_same_for_the_same_seed(tmp_path):
    manifests = [write_mimic3_tables(tmp_path / name, 3, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    texts = [(tmp_path / name / "CHARTEVENTS.csv").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert manifests[0] == manifests[1]
    known = set(mimic3.subjects("train").tolist()) | set(mimic3.subjects("test").tolist())
    ids = {int(line.split(",")[1]) for line in (tmp_path / "a/PATIENTS.csv").read_text().splitlines()[1:]}
    assert ids <= known
    check_bad_input(
        write_mimic3_tables,
        [
            ({"n_patients": 1}, ValueError, ">= 2"),
            ({"unmapped": 1.0}, ValueError, "< 1"),
            ({"seed": -1}, ValueError, ">= 0"),
        ],
        folder=tmp_path / "d",
    )
