import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from natwise.result import Result
from natwise.samples.unique_information import SampleInformation, leave_one_out, linearization_check, study
from natwise.testing import check_bad_input, check_estimator_contract, check_result


def separable(n=60, d=4, n_classes=2, seed=0):
    """Gaussian classes with one wrong label: the first."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    X = rng.normal(size=(n, d)) + 4 * np.eye(d)[labels]
    given = labels.copy()
    given[0] = (given[0] + 1) % n_classes
    return X, given


def network(d=4, k=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(d, 32), torch.nn.ReLU(), torch.nn.Linear(32, k)).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) / parameter.shape[-1] ** 0.5)
    return module


def test_contract_of_scikit_learn():
    X, y = separable(30)
    check_estimator_contract(SampleInformation(t=50), X, y)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("outputs", ["joint", "independent"])
def test_wrong_labels_stand_out(n_classes, outputs):
    X, y = separable(n_classes=n_classes)
    fitted = SampleInformation(outputs=outputs, random_state=0).fit(X, y)
    assert fitted.outputs_ == outputs
    assert fitted.functional_information_.argmax() == 0
    assert fitted.weight_information_.argmax() == 0
    k = 1 if n_classes == 2 else 3
    assert fitted.left_out_predictions_.shape == fitted.targets_.shape == (60, k)


def test_uses_the_given_network_and_leaves_it_alone():
    X, y = separable(n_classes=3)
    module = network(k=3)
    before = [parameter.clone() for parameter in module.parameters()]
    onehot = np.eye(3)[y]
    fitted = SampleInformation(module, t=20, weight_decay=0.1).fit(X, onehot, X[:7])
    with torch.no_grad():
        initial = module(torch.from_numpy(X)).numpy()
    direct = leave_one_out(
        fitted.ntk_, fitted.ntk_val_, initial, initial[:7], onehot, t=20, lr=fitted.lr_, weight_decay=0.1
    )
    assert np.allclose(fitted.functional_information_, direct.arrays["functional_information"])
    assert np.allclose(fitted.val_predictions_, direct.arrays["val_predictions"])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    tensors = SampleInformation(module, t=20, weight_decay=0.1).fit(
        torch.from_numpy(X), torch.from_numpy(onehot), torch.from_numpy(X[:7])
    )
    assert np.array_equal(tensors.weight_information_, fitted.weight_information_)


def test_last_layer_makes_independent_outputs_exact():
    X, y = separable(n_classes=3)
    onehot = np.eye(3)[y]
    joint, independent = (
        SampleInformation(network(k=3), t=40, method="last_layer", outputs=outputs).fit(X, onehot)
        for outputs in ("joint", "independent")
    )
    assert np.allclose(joint.functional_information_, independent.functional_information_)
    assert np.allclose(joint.left_out_predictions_, independent.left_out_predictions_)


def test_summary_keeps_one_of_each_group_of_copies():
    """Scores at once find every copy redundant and keep none; iterating keeps one of each."""
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(6, 4)) * 3
    X = np.concatenate([np.repeat(distinct[:3], 4, axis=0), distinct[3:]])
    y = np.concatenate([np.repeat([0.0, 1.0, 0.0], 4), [1.0, 0.0, 1.0]])
    fitted = SampleInformation(network(), t=500).fit(X, y)
    kept = fitted.summarize(6)
    assert sorted(np.unique(X[kept], axis=0).tolist()) == sorted(np.unique(distinct, axis=0).tolist())
    assert len(np.unique(X[fitted.summarize(6, recompute=False)], axis=0)) < 6
    assert np.array_equal(fitted.summarize(1.0), np.arange(15))
    assert len(fitted.summarize(0.4)) == 6
    rank = fitted.redundancy_rank()
    assert np.array_equal(np.sort(rank), np.arange(15))


def test_linear_models_are_linearised_exactly():
    X, y = separable(20)
    module = torch.nn.Linear(4, 1).double()
    for reduction, lr in (("mean", 0.05), ("sum", 0.002)):
        check = linearization_check(
            module, X, y, X[:5], t=60, lr=lr, weight_decay=0.03, loss_reduction=reduction, n_removals=6, random_state=0
        )
        for kind in ("functional", "weight"):
            real = check.arrays[f"retrained_{kind}_information"]
            assert np.abs(check.arrays[f"{kind}_information"] - real).max() < 1e-8 * real.max()
        assert check.scalars["pearson_functional"] == pytest.approx(1.0)
        check_result(check)


def test_poor_linearisation_is_said():
    X, y = separable(24, seed=3)
    narrow = torch.nn.Sequential(
        torch.nn.Linear(4, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(narrow.parameters()):
            parameter.copy_(0.3 * torch.cos(torch.arange(parameter.numel()) * (i + 1.0)).reshape(parameter.shape))
    with pytest.warns(UserWarning, match="predicts real retraining poorly"):
        linearization_check(narrow, X, y, X, t=300, lr=0.9, n_removals=8, random_state=0)


def test_bad_input():
    X, y = separable(20, n_classes=3)
    onehot = np.eye(3)[y]
    dropout = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout())
    good = network(k=3)

    def fit(module=good, X=X, y=onehot, X_val=None, **options):
        return SampleInformation(module, **options).fit(X, y, X_val)

    check_bad_input(
        fit,
        [
            ({"y": y}, ValueError, "one-hot"),
            ({"y": onehot[:4]}, ValueError, "same length"),
            ({"y": None}, ValueError, "requires y"),
            ({"y": np.full((20, 3), np.nan)}, ValueError, "finite"),
            ({"module": dropout}, ValueError, "training mode"),
            ({"module": network(d=3, k=3)}, ValueError, "fit the module"),
            ({"outputs": "margin"}, ValueError, "'independent'"),
            ({"X_val": X[:, :2]}, ValueError, "(n_val, 4), got (20, 2)"),
            ({"X_val": X[:0]}, ValueError, "at least one sample"),
            ({"X_val": X * np.nan}, ValueError, "finite"),
            ({"X_val": X * 1j}, TypeError, "numeric"),
            ({"module": None, "y": y / np.inf * np.nan}, ValueError, "finite"),
            ({"module": None, "y": y * 1j}, TypeError, "numeric"),
            ({"module": None, "y": [None, *y[1:]]}, ValueError, "missing"),
            ({"lr": 1e6}, ValueError, "lr must be below"),
        ],
    )
    with pytest.raises(ValueError, match="without a module"):
        SampleInformation().fit(X[:, :, None], y)
    fitted = fit(t=10)
    check_bad_input(
        fitted.summarize,
        [
            ({"keep": 0}, ValueError, ">= 1"),
            ({"keep": 21}, ValueError, "<= 20"),
            ({"keep": 1.5}, ValueError, "<= 1"),
            ({"keep": 5, "step": 0.0}, ValueError, "> 0"),
            ({"keep": 5, "recompute": "no"}, TypeError, "True or False"),
        ],
    )
    with pytest.raises(ValueError, match="n_removals must be"):
        linearization_check(network(k=3), X, onehot, X, t=2, lr=0.01, n_removals=1)


def test_study_of_planted_labels():
    result = study.run("digits-mislabeled", scale="ci", seed=3)
    assert isinstance(result, Result)
    assert result.scalars["auroc"] > 0.95
    assert result.scalars["auroc"] == pytest.approx(roc_auc_score(result.arrays["flagged"], result.arrays["score"]))
    assert study.figure("digits-mislabeled", result).axes[0].get_xlabel() == "functional information (nats)"
    with pytest.raises(ValueError, match="Did you mean 'digits-mislabeled'"):
        study.run("digits-mislabelled", scale="ci", seed=0)


def test_study_on_local_data(local_data):
    local_data("images/mnist.npz")
    assert study.run("mnist-mislabeled", scale="small", seed=0).scalars["auroc"] > 0.95
