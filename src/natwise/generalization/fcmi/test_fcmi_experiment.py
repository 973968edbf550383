"""Experiments: every kind of recipe, batches of networks against single ones, resuming after a kill, bad input."""

import functools
import runpy
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from natwise.generalization import SGLD, BatchedTrainer, SupersampleRuns, run_supersample_experiment, sample_supersample
from natwise.generalization.fcmi import study
from natwise.generalization.fcmi._batched import Networks
from natwise.testing import check_bad_input, check_result, check_resume, same_bits, unchanged

RNG = np.random.default_rng(0)
Y = np.arange(120) % 2
X = RNG.standard_normal((120, 4)) + 0.8 * Y[:, None]
NAMES = np.array(["cat", "dog"])[Y]
OPTIONS = {"n": 15, "n_splits": 8, "design": "antithetic"}


def network(n_classes=2):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n_classes))


def convolutions():
    layers = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(3, 2))


def nearest_mean(X_train, y_train, X_query, seed):
    means = np.stack([X_train[y_train == c].mean(axis=0) for c in NAMES[:2]])
    return NAMES[:2][((X_query[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]


trainer = functools.partial(BatchedTrainer, max_epochs=15, learning_rate=0.05)


@pytest.mark.parametrize(
    "recipe",
    [
        KNeighborsClassifier(1),
        make_pipeline(StandardScaler(), DecisionTreeClassifier()),
        nearest_mean,
        trainer(network),
        network,
    ],
    ids=["neighbour", "pipeline", "function", "networks", "factory"],
)
def test_every_kind_of_recipe(recipe):
    with unchanged(X, NAMES):
        result = run_supersample_experiment(recipe, X, NAMES, **OPTIONS)
    again = run_supersample_experiment(recipe, X, NAMES, **OPTIONS)
    assert same_bits(result.arrays["predictions"], again.arrays["predictions"])
    check_result(result)
    s, a = result.scalars, result.arrays
    assert s["gap"] <= s["tightest"] <= s["fcmi"]
    assert s["null"] == s["fcmi_null"] > 0
    np.testing.assert_array_equal(NAMES[a["indices"]], np.array(result.params["classes"])[a["y"]])
    assert SupersampleRuns(a["S"], a["predictions"], a["y"]).bounds().scalars["fcmi"] == s["fcmi"]
    if isinstance(recipe, KNeighborsClassifier):
        assert s["train_error"] == 0.0


def test_predictions_are_those_of_models_trained_by_hand():
    result = run_supersample_experiment(LogisticRegression(), X, Y, **OPTIONS)
    rows, S = result.arrays["indices"], result.arrays["S"]
    for k in (0, 5):
        train = rows[np.arange(15), S[k]]
        expected = LogisticRegression().fit(X[train], Y[train]).predict(X[rows.ravel()]).reshape(15, 2)
        np.testing.assert_array_equal(result.arrays["predictions"][k], expected)


def test_forms_of_data_and_workers_do_not_matter():
    recipe = LogisticRegression()
    expected = run_supersample_experiment(recipe, X, Y, **OPTIONS).arrays["predictions"]
    for features, labels in (
        (X.tolist(), Y.tolist()),
        (pd.DataFrame(X, columns=list("abcd")), pd.Series(NAMES)),
        (sparse.csr_array(X), Y.astype(bool)),
        (torch.tensor(X), torch.tensor(Y)),
    ):
        found = run_supersample_experiment(recipe, features, labels, **OPTIONS).arrays["predictions"]
        np.testing.assert_array_equal(found, expected)
    for backend, n_jobs in (("threading", 2), ("multiprocessing", 1)):  # the second, as Ray's, has no generators
        with joblib.parallel_config(backend, n_jobs=n_jobs):
            found = run_supersample_experiment(recipe, X, Y, **OPTIONS).arrays["predictions"]
        np.testing.assert_array_equal(found, expected)


def test_supersamples_seeds_and_free_random_states():
    two = run_supersample_experiment(KNeighborsClassifier(1), X, Y, n_supersamples=2, **OPTIONS)
    assert two.arrays["predictions"].shape == (2, 8, 15, 2)
    assert two.scalars["fcmi_std"] >= 0
    tree = DecisionTreeClassifier(max_features=1)
    fixed, varied = (run_supersample_experiment(tree, X, Y, deterministic=d, **OPTIONS) for d in (True, False))
    assert not same_bits(fixed.arrays["predictions"], varied.arrays["predictions"])
    given = DecisionTreeClassifier(max_features=1, random_state=3)
    kept = [
        run_supersample_experiment(given, X, Y, deterministic=d, **OPTIONS).arrays["predictions"] for d in (True, False)
    ]
    assert same_bits(*kept)


def test_a_half_of_one_class_predicts_that_class():
    labels = np.where(np.arange(120) < 2, "rare", "usual")
    result = run_supersample_experiment(LogisticRegression(), X, labels, n=60, n_splits=4, design="antithetic")
    assert set(np.unique(result.arrays["predictions"])) <= {0, 1}


@pytest.mark.parametrize("factory", [network, convolutions])
def test_batched_networks_equal_networks_trained_alone(factory):
    S = sample_supersample(20, 4, 0)
    train, inputs = 2 * np.arange(20) + S, X[:40].astype(np.float32)
    with unchanged(inputs):
        together = trainer(factory, batch_size=7, runs_at_once=4).fit_predict(inputs, Y[:40], train, [5] * 4)
    for size in (1, 3):
        apart = trainer(factory, batch_size=7, runs_at_once=size).fit_predict(inputs, Y[:40], train, [5] * 4)
        assert (apart != together).mean() < 0.02  # rounding may turn a tie
    assert trainer(convolutions).chunk_size(30) == 1
    assert trainer(network).chunk_size(30) == 30


def test_a_step_is_a_plain_step():
    torch.manual_seed(0)
    alone = [network() for _ in range(3)]
    nets = Networks(alone, torch.device("cpu"))
    batch, classes = torch.tensor(X[:15], dtype=torch.float32).view(3, 5, 4), torch.tensor(Y[:15]).view(3, 5)
    variance = nets.gradient_variance(batch, classes)
    nets.step(torch.optim.SGD(nets.parameters(), lr=0.1), batch, classes)
    for i, module in enumerate(alone):
        each = []
        for x, y in zip(batch[i], classes[i], strict=True):
            loss = nn.functional.cross_entropy(module(x[None]), y[None])
            each.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))]))
        gradients = torch.stack(each)
        assert variance[i] == pytest.approx(float((gradients - gradients.mean(0)).square().sum(1).mean()), rel=1e-5)
        before = torch.cat([p.detach().flatten() for p in module.parameters()])
        after = torch.cat([value[i].detach().flatten() for value in nets.weights.values()])
        torch.testing.assert_close(after, before - 0.1 * gradients.mean(0), rtol=0, atol=1e-6)


def test_langevin_noise_has_the_variance_of_the_bound():
    weight = torch.zeros(20_000, requires_grad=True)
    optimizer = SGLD([weight], lr=0.01, beta=50.0, random_state=0)
    with unchanged():
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    step = weight.detach()
    assert float(step.mean()) == pytest.approx(-0.01, abs=0.0005)
    assert float(step.var()) == pytest.approx(2 * 0.01 / 50, rel=0.05)
    plain = torch.zeros(3, requires_grad=True)
    optimizer = SGLD([plain], lr=0.01, beta=float("inf"))
    assert float(optimizer.step(lambda: (plain.sum().backward(), plain.sum().detach())[1])) == 0.0
    torch.testing.assert_close(plain.detach(), torch.full((3,), -0.01))
    check_bad_input(
        SGLD,
        [
            ({"beta": 0.0}, ValueError, "> 0"),
            ({"lr": -1.0}, ValueError, ">= 0"),
            ({"noise_scale": "x"}, TypeError, "number"),
        ],
        params=[plain],
    )


SCRIPT = """
import sys, time
import numpy as np
from natwise.generalization import run_supersample_experiment

def slow_mean(X, y, X_query, seed):
    time.sleep(0.05)
    return (X_query.mean(axis=1) > X.mean()).astype(int)

def measure(folder):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 3)), np.arange(60) % 2
    return run_supersample_experiment(slow_mean, X, y, 20, 12, checkpoint_dir=folder)

if __name__ == "__main__":
    measure(sys.argv[1]).save(sys.argv[2])
"""


@pytest.mark.slow  # three processes; the next test takes finished runs up in this one
def test_a_killed_experiment_goes_on(tmp_path):
    from natwise import Result

    script, runs, out = tmp_path / "run.py", tmp_path / "runs", tmp_path / "result.safetensors"
    script.write_text(SCRIPT)
    check_resume([sys.executable, str(script), str(runs), str(out)], runs, seconds=0.2)
    resumed = Result.load(out)
    undisturbed = runpy.run_path(str(script))["measure"](None)
    assert resumed.scalars == undisturbed.scalars
    assert same_bits(dict(resumed.arrays), dict(undisturbed.arrays))
    assert len(list(runs.glob("*.npz"))) == 12


def test_finished_runs_are_taken_up_and_those_of_others_refused(tmp_path):
    folder = tmp_path / "runs"
    options = {**OPTIONS, "checkpoint_dir": folder}
    first = run_supersample_experiment(KNeighborsClassifier(1), X, Y, **options)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "supersample-0-runs-3-3.npz").unlink()
    second = run_supersample_experiment(KNeighborsClassifier(1), X, Y, **options)
    assert same_bits(first.arrays["predictions"], second.arrays["predictions"])
    assert sum(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items()) == 1
    for recipe, features, seed in (
        (KNeighborsClassifier(2), X, 0),
        (KNeighborsClassifier(1), X + 1, 0),
        (KNeighborsClassifier(1), X, 1),
    ):
        with pytest.raises(ValueError, match="checkpoint_dir"):
            run_supersample_experiment(recipe, features, Y, random_state=seed, **options)
    (folder / "supersample-0-runs-0-0.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="supersample-0-runs-0-0"):
        run_supersample_experiment(KNeighborsClassifier(1), X, Y, **options)


def diverging():
    module = network()
    nn.init.constant_(module[2].weight, float("nan"))
    return module


def test_bad_input(tmp_path):
    wide = np.full(30, "bird")
    cases = [
        ({"estimator": 3}, TypeError, "classifier"),
        ({"estimator": KNeighborsClassifier}, TypeError, "instance"),
        ({"estimator": network()}, TypeError, "factory"),
        ({"estimator": lambda a, b: a}, TypeError, "it takes 2"),
        ({"estimator": lambda X, y, query, seed: wide}, ValueError, "bird"),
        ({"estimator": lambda X, y, query, seed: y}, ValueError, "a class per row"),
        ({"n": 61}, ValueError, "at most half"),
        ({"n": 1.5}, TypeError, "integer"),
        ({"n_splits": 1}, ValueError, ">= 2"),
        ({"n_splits": 7}, ValueError, "even"),
        ({"n_supersamples": 0}, ValueError, ">= 1"),
        ({"y": Y[:-1]}, ValueError, "shape"),
        ({"y": np.zeros(120)}, ValueError, "2 classes"),
        ({"y": X[:, 0]}, ValueError, "whole"),
        ({"design": "fair"}, ValueError, "one of"),
        ({"y": np.array([None, "cat"] * 60)}, TypeError, "one type"),
        ({"verbose": "a lot"}, TypeError, "integer"),
        ({"deterministic": "no"}, TypeError, "True or False"),
        ({"X": None}, ValueError, "a sample per row"),
        ({"checkpoint_dir": 3}, TypeError, "path"),
        ({"random_state": None, "checkpoint_dir": tmp_path}, ValueError, "checkpoint_dir"),
    ]
    check_bad_input(run_supersample_experiment, cases, estimator=KNeighborsClassifier(1), X=X, y=Y, **OPTIONS)
    trained = [
        ({"factory": network()}, TypeError, "callable"),
        ({"max_epochs": 0}, ValueError, ">= 1"),
        ({"batch_size": 2.5}, TypeError, "integer"),
        ({"learning_rate": -1.0}, ValueError, ">= 0"),
        ({"optimizer": "adam"}, TypeError, "callable"),
        ({"runs_at_once": 0}, ValueError, ">= 1"),
        ({"device": "tpu9"}, ValueError, "'cpu'"),
    ]
    check_bad_input(BatchedTrainer, trained, factory=network)
    train = np.arange(10)[None]
    examples = [
        ({"X": X[0]}, ValueError, "n_examples"),
        ({"y": Y[1:]}, ValueError, "(120)"),
        ({"y": Y - 1}, ValueError, "from 0, got -1"),
        ({"y": Y + 0.5}, ValueError, "whole numbers"),
        ({"train": train[0]}, ValueError, "(n_runs, n)"),
        ({"train": train + 120}, ValueError, "0 to 119, got 120 to 129"),
        ({"train": train[:, :0]}, ValueError, "(1, 0)"),
        ({"seeds": [0, 1]}, ValueError, "(1)"),
        ({"seeds": ["a"]}, TypeError, "numeric"),
        ({"seeds": None}, TypeError, "array"),
        ({"seeds": [-1]}, ValueError, ">= 0"),
    ]
    check_bad_input(trainer(network).fit_predict, examples, X=X, y=Y, train=train, seeds=[0])
    langevin = [
        ({"lr": -1.0}, ValueError, ">= 0"),
        ({"beta": 0}, ValueError, "> 0"),
        ({"beta": True}, TypeError, "number"),
        ({"noise_scale": "right"}, TypeError, "number"),
    ]
    check_bad_input(SGLD, langevin, params=[torch.zeros(2, requires_grad=True)])
    for factory, error, words in (
        (lambda: 3, TypeError, "torch.nn.Module"),
        (lambda: network(1), ValueError, "logits"),
        (lambda: torch.nn.Linear(99, 2), ValueError, "inputs of shape"),
        (diverging, ValueError, "learning_rate"),
    ):
        with pytest.raises(error, match=words):
            trainer(factory).fit_predict(X, Y, train, [0])


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["over-n", "plug-in-bias", "sgld"])
def test_study(claim):
    from natwise import registry

    card = next(card for card in registry.cards() if card.key == study.STUDY.key)
    result = study.run(claim, scale="ci", seed=0)
    row = next(row for row in card.claims if row.id == claim)
    assert row.holds(result.scalars[row.metric])
    assert study.figure(claim, result).axes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "scale", "gap"), [("successors", "ci", "gap"), ("mnist-over-n", "small", "gap_at_75")]
)
def test_study_of_images(claim, scale, gap, local_data, monkeypatch):
    local_data(study.MNIST)
    monkeypatch.setattr(study, "mnist_network", functools.partial(study.perceptron, 784))
    study._mnist_runs_of.cache_clear()
    scalars = (result := study.run(claim, scale=scale, seed=0)).scalars
    study._mnist_runs_of.cache_clear()
    assert scalars[gap] <= scalars[gap.replace("gap", "fcmi")]
    assert study.figure(claim, result).axes
