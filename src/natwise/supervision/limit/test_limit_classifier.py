"""The scikit-learn classifiers: contract, robustness on planted noise, options, and what they refuse."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from natwise.core.random import Streams
from natwise.supervision import (
    ConfusionMatrixLoss,
    CoTeachingLoss,
    ELRLoss,
    GCELoss,
    LIMITClassifier,
    LIMITLoss,
    RobustClassifier,
    UniformNoise,
    corrupt_labels,
    memorized_label_information,
    transition_entropy,
)
from natwise.supervision.limit import study
from natwise.supervision.limit._networks import Perceptron, Standardize, default_network, fresh_copy
from natwise.testing import check_bad_input, check_estimator_contract, check_result, unchanged

QUICK = {"max_epochs": 6, "lr": 0.01, "batch_size": 64, "random_state": 0}
TINY = nn.Linear(4, 3)


def blobs(n=300, noise=0.4, seed=0):
    X, y = make_blobs(n, n_features=4, centers=3, cluster_std=1.5, random_state=seed)
    given, flags = corrupt_labels(y, UniformNoise(noise).transition_matrix(3), seed)
    return X, y, given, flags


@parametrize_with_checks([LIMITClassifier(max_epochs=3, batch_size=32, lr=0.02)])
def test_sklearn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [LIMITClassifier(), RobustClassifier()])
def test_contract(estimator):
    X, _, given, _ = blobs()
    check_estimator_contract(estimator, X, given)


def test_wrong_labels_are_found_and_not_learned():
    X, y, given, flags = blobs(600)
    names = np.array(["a", "b", "c"])
    model = LIMITClassifier(max_epochs=15, lr=0.01, random_state=0).fit(X, names[given])
    assert model.score(X, names[y]) > 0.9
    quality = model.label_quality(X, names[given])
    assert quality.shape == (600,)
    assert roc_auc_score(~flags, quality) > 0.9
    np.testing.assert_array_equal(model.classes_, names)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    with pytest.raises(ValueError, match="classes seen in fit, got \\['d'\\]"):
        model.label_quality(X[:2], ["a", "d"])


def test_it_memorises_less_than_cross_entropy():
    X, y = load_digits(return_X_y=True)
    noise = UniformNoise(0.6).transition_matrix(10)
    given, _ = corrupt_labels(y, noise, 0)
    options = {
        "max_epochs": 20,
        "batch_size": 64,
        "lr": 1e-2,
        "record_train_error": True,
        "random_state": 0,
        "patience": None,
    }
    entropy, memorised = transition_entropy(noise), {}
    for name, model in {
        "ce": RobustClassifier(loss=GCELoss(1e-6), **options),
        "limit": LIMITClassifier(grad_l2=10.0, **options),
    }.items():
        error = model.fit(X[:300], given[:300]).history_["train_error"]
        assert len(error) == len(model.history_["loss"]) == 20
        memorised[name] = memorized_label_information(error, entropy, 10)[-1]
    assert memorised["ce"] > 1.5
    assert memorised["limit"] < 0.5 * memorised["ce"]


@pytest.mark.parametrize("options", [{}, {"q_dist": "gaussian"}, {"sample": True}, {"q_dist": "ce"}])
def test_same_seed_same_bits(options):
    X, _, given, _ = blobs()
    with unchanged(X, given):
        first, second = (LIMITClassifier(**QUICK, **options).fit(X, given).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_given_networks_are_copied_and_start_from_their_weights():
    X, _, given, _ = blobs()
    classifier, q = nn.Linear(4, 3), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    q[0].running_mean += 7
    before = [p.clone() for p in (*classifier.parameters(), *q.parameters())]
    model = LIMITClassifier(classifier, q, **{**QUICK, "lr": 1e-12, "max_epochs": 1}).fit(X, given)
    assert all(torch.equal(a, b) for a, b in zip(before, (*classifier.parameters(), *q.parameters()), strict=True))
    torch.testing.assert_close(model.classifier_.weight, classifier.weight, rtol=0, atol=1e-9)
    assert (model.q_network_[0].running_mean > 2).all()  # the statistics came along
    assert not model.q_network_.training


def test_warm_up_trains_q_alone():
    X, _, given, _ = blobs()
    options = {**QUICK, "max_epochs": 2, "validation_fraction": 0.0}
    model = LIMITClassifier(TINY, nn.Linear(4, 3), warm_up_epochs=2, **options).fit(X, given)
    assert torch.equal(model.classifier_.weight, TINY.weight)
    assert len(model.history_["loss"]) == 2
    assert "validation_accuracy" not in model.history_
    assert model.best_epoch_ == 1
    model.set_params(warm_up_epochs=1).fit(X, given)
    assert not torch.equal(model.classifier_.weight, TINY.weight)


def test_warm_start_moves_weights_and_batch_norm_statistics():
    X, y, _, _ = blobs(noise=0.0)
    with Streams(1).torch_global("weights"):
        network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    options = {**QUICK, "max_epochs": 6, "validation_fraction": 0.3}
    cold = LIMITClassifier(network, grad_l2=0.0, **options).fit(X, y)
    warm = LIMITClassifier(network, grad_l2=0.0, q_warm_start=True, **options).fit(X, y)
    assert warm.history_["loss"][0] < 0.9 * cold.history_["loss"][0]
    mean = torch.as_tensor(X.mean(axis=0), dtype=torch.float32)
    drift = [(model.q_network_[0].running_mean - mean).norm() for model in (warm, cold)]
    assert drift[0] < drift[1]


def test_choice_of_the_penalty_by_noisy_validation():
    X, _, given, _ = blobs()
    model = LIMITClassifier(grad_l2=[0.5, 1e6], **QUICK).fit(X, given)  # nothing is learned with the second
    assert model.grad_l2_ == 0.5
    assert model.candidate_scores_[0] > model.candidate_scores_[1]
    assert model.history_["validation_accuracy"].max() == model.candidate_scores_[0]
    assert model.history_["validation_accuracy"].argmax() == model.best_epoch_


def test_validation_data_of_ones_own():
    X, y, given, _ = blobs()
    model = LIMITClassifier(**QUICK).fit(X[:200], given[:200], validation=(X[200:], y[200:]), validation_labels="clean")
    assert model.validation_labels_ == "clean"
    assert model.history_["validation_accuracy"].max() == model.score(X[200:], y[200:])


@pytest.mark.parametrize(
    "loss", [None, ELRLoss(300, 3), CoTeachingLoss(0.4, ramp=5), ConfusionMatrixLoss(3)], ids=lambda loss: str(loss)
)
def test_any_loss_of_the_room(loss):
    X, y, given, _ = blobs(noise=0.2)
    model = RobustClassifier(loss=loss, **QUICK).fit(X, given)
    assert model.score(X, y) > 0.85
    assert model.network_ is not model.network
    if isinstance(loss, ConfusionMatrixLoss):
        assert not torch.equal(model.loss_.confusion_logits, loss.confusion_logits)  # trained, on a copy
    if isinstance(loss, ELRLoss):
        assert model.loss_.targets.any(dim=1).sum() == 240  # the rows trained on, at their places in X


@pytest.mark.parametrize("shape", [(28, 28), (3, 32, 32), (8, 8)])
def test_images(shape):
    rng = np.random.default_rng(0)
    y = np.arange(33) % 2
    X = (rng.random((33, *shape)) * 50 + 100 * y.reshape(-1, *[1] * len(shape))).astype(np.uint8)
    model = LIMITClassifier(max_epochs=3, batch_size=8, validation_fraction=0.0, random_state=0).fit(X, y)
    assert model.predict_proba(X).shape == (33, 2)
    assert isinstance(model.classifier_, Perceptron) == (shape == (8, 8))
    torch.testing.assert_close(model.predict_proba(X[:3]), model.predict_proba(X)[:3], rtol=1e-5, atol=1e-6)


def test_default_networks():
    X = np.random.default_rng(0).normal(5, 2, size=(50, 3)).astype(np.float32)
    X[:, 2] = 7
    scaled = Standardize(X)(torch.from_numpy(X))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled[:, 2], torch.zeros(50), rtol=0, atol=1e-5)
    network = default_network(X, 4)
    other = fresh_copy(network)
    torch.testing.assert_close(other.standardize.mean, network.standardize.mean)
    assert not torch.equal(other.output.weight, network.output.weight)
    x = torch.from_numpy(X)
    torch.testing.assert_close(network(x), network.eval()(x).float())
    torch.testing.assert_close(network(x[:1]), network(x)[:1], rtol=0, atol=1e-14)


def shared():
    layer = nn.Linear(4, 3)
    return {"classifier": nn.Sequential(layer), "q_network": nn.Sequential(nn.ReLU(), layer)}


X, Y = np.arange(48.0).reshape(12, 4), np.arange(12) % 3
BAD_OPTIONS = [
    ({"classifier": nn.Linear(4, 2)}, ValueError, "(n, 3)"),
    ({"classifier": nn.Linear(5, 3)}, ValueError, "features of shape (4,)"),
    ({"classifier": "resnet"}, TypeError, "torch.nn.Module"),
    ({"q_network": nn.Linear(4, 4)}, ValueError, "(n, 3)"),
    (shared(), ValueError, "share no parameter"),
    ({"q_dist": "normal"}, ValueError, "'gaussian', 'laplace'"),
    ({"grad_l2": -1.0}, ValueError, ">= 0"),
    ({"grad_l2": "auto"}, TypeError, "number"),
    ({"grad_l2": []}, ValueError, "list of numbers"),
    ({"grad_l2": [1.0, 2.0], "validation_fraction": 0.0}, ValueError, "validation"),
    ({"lamb": 0.0}, ValueError, "> 0"),
    ({"lr": 0.0}, ValueError, "> 0"),
    ({"max_epochs": 0}, ValueError, ">= 1"),
    ({"warm_up_epochs": -1}, ValueError, ">= 0"),
    ({"batch_size": 2.5}, TypeError, "integer"),
    ({"patience": 0}, ValueError, ">= 1"),
    ({"validation_fraction": 1.0}, ValueError, "<= 0.9"),
    ({"device": "gpu"}, ValueError, "device"),
    ({"q_warm_start": "no"}, TypeError, "True or False"),
    ({"record_train_error": 1}, TypeError, "True or False"),
    ({"classifier": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), "batch_size": 1}, ValueError, ">= 2"),
]
BAD_LOSSES = [({"loss": "mae"}, TypeError, "Module"), ({"loss": LIMITLoss()}, TypeError, "of one network")]


def test_bad_options():
    check_bad_input(lambda **options: LIMITClassifier(**options).fit(X, Y), BAD_OPTIONS, max_epochs=1)
    check_bad_input(lambda loss: RobustClassifier(loss=loss).fit(X, Y), BAD_LOSSES)


def test_bad_data():
    cases = [
        ({"y": Y[:5]}, ValueError, "inconsistent"),
        ({"y": np.zeros(12)}, ValueError, "two classes"),
        ({"y": np.linspace(0, 1, 12)}, ValueError, "continuous"),
        ({"X": X * np.nan}, ValueError, "NaN"),
        ({"validation": (X, Y)}, ValueError, "'noisy', 'clean'"),
        ({"validation_labels": "noisy"}, ValueError, "without validation"),
        ({"validation": (X, Y + 5), "validation_labels": "noisy"}, ValueError, "classes seen in fit"),
    ]
    for changes, kind, text in cases:
        with pytest.raises(kind, match=text):
            LIMITClassifier(max_epochs=1).fit(**{"X": X, "y": Y, **changes})


def test_the_study_of_the_fano_floor():
    result = study.run("fano-floor", scale="ci", seed=0)
    check_result(result)
    assert abs(result.scalars["floor_at_one_bit"] - 0.406) <= 1e-3
    assert study.figure("fano-floor", result).axes[0].get_xlabel().endswith("(nats per sample)")


@pytest.mark.slow
def test_the_study_of_digits():
    result = study.run("digits-memorisation", scale="ci", seed=0)
    check_result(result)
    assert result.scalars["limit_l_memorised"] < result.scalars["ce_memorised"]
    assert len(study.figure("digits-memorisation", result).axes) == 2


@pytest.mark.slow
def test_human_labels(local_data):
    local_data(study.CIFAR)
    result = study.run("cifar10n-memorisation", scale="small", seed=0)
    assert 0.3 < result.scalars["ce_test"] < 0.7
