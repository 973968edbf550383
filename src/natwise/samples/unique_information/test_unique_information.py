"""Leave-one-out information against reference numbers, brute force and properties.

golden.npz: brute-force leave-one-out in float64 of a linearised tanh network 4-6-k (k = 1, 3; n = 16, m = 7): gradient
descent by an explicit loop over steps, gradient flow by an ODE solver, the limit by dense solves, under three
conventions of what stays fixed when a sample is removed. `weight_sq` and `fsi_sq` are squared norms: twice the nats.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from natwise.core.io import load_npz
from natwise.core.linearized import empirical_ntk
from natwise.samples.unique_information import (
    Smoothing,
    information_by_group,
    leave_one_out,
    leave_one_out_changes,
)
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))


def problem(k):
    """Kernels, initial predictions and targets of the reference problem, through our own kernel."""
    part = {key.split("/", 1)[1]: value for key, value in GOLDEN.items() if key.startswith(f"k{k}/")}
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, k)).double()
    for layer, parameter in zip((0, 0, 2, 2), ("weight", "bias", "weight", "bias"), strict=True):
        name = {0: "1", 2: "2"}[layer]
        value = torch.from_numpy(part[("W" if parameter == "weight" else "b") + name])
        getattr(net[layer], parameter).data.copy_(value)
    ntk, ntk_val = empirical_ntk(net, part["X"]), empirical_ntk(net, part["Xv"], part["X"])
    return part, json.loads(str(part["meta"])), (ntk, ntk_val, part["f0"], part["f0v"], part["Y"])


def settings(convention, meta, weight_decay):
    """The reference gives step size and decay of the sum loss; `mean` and `official` take those of the mean loss."""
    n = 1 if convention == "sum" else meta["n"]
    return {"lr": meta["eta"] * n, "weight_decay": weight_decay / n, "loss_reduction": convention}


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("convention", ["sum", "mean", "official"])
@pytest.mark.parametrize("solver", ["gd", "flow"])
def test_reference_numbers(k, convention, solver):
    part, meta, inputs = problem(k)
    for decay, t in itertools.product((0.0, 0.3), (10, 200, None)):
        if (t, solver) == (None, "flow"):
            continue
        key = f"{convention}/inf/lam{decay}" if t is None else f"{convention}/{solver}/lam{decay}/t{t}"
        how = settings(convention, meta, decay)
        result = leave_one_out(*inputs, t=t, dynamics=solver, **how)
        tolerance = 1e-8 if solver == "gd" else 1e-7
        assert relative(result.arrays["weight_information"], part[f"{key}/weight_sq"] / 2) < tolerance
        assert relative(result.arrays["functional_information"], part[f"{key}/fsi_sq"] / 2) < tolerance
        if f"{key}/dF" in part:
            ntk, ntk_val, init, _, targets = inputs
            changes = leave_one_out_changes(ntk, ntk_val, init, targets, t=t, dynamics=solver, **how)
            assert relative(changes.arrays["prediction_changes"], part[f"{key}/dF"]) < tolerance


@pytest.mark.parametrize("k", [1, 3])
def test_smoothing_by_sgd_and_langevin_noise(k):
    part, meta, inputs = problem(k)
    noise = {"learning_rate": meta["sgd_eta"], "batch_size": meta["sgd_b"]}
    for smoothing, name in (
        (Smoothing("sgd", ridge=meta["sgd_eps"], **noise), "SI_sgd"),
        (Smoothing("langevin", **noise), "SI_langevin_sigma1"),
    ):
        result = leave_one_out(*inputs, smoothing=smoothing, **settings("sum", meta, 0.3))
        assert relative(result.arrays["weight_information"], part[f"sum/inf/lam0.3/{name}"]) < 1e-8
        if name == "SI_sgd":
            trace = part["sum/inf/lam0.3/sgd_Lambda_trace"]
            assert result.scalars["gradient_covariance_trace"] == pytest.approx(float(trace), rel=1e-10)


def small_problem(seed=0, n=9, d=6, k=1, m=5):
    """A linear model: Jacobians, kernels, and whatever else `leave_one_out` takes."""
    rng = np.random.default_rng(seed)
    jacobian, jacobian_val = rng.normal(size=(n * k, d)), rng.normal(size=(m * k, d))
    init, init_val, targets = (rng.normal(size=(rows, k)) for rows in (n, m, n))
    return jacobian, jacobian_val, (jacobian @ jacobian.T, jacobian_val @ jacobian.T, init, init_val, targets)


def scores(inputs, **options):
    options = {"t": 30, "lr": 0.1, "weight_decay": 0.05} | options
    arrays = leave_one_out(*inputs, **options).arrays
    return arrays["functional_information"], arrays["weight_information"]


def test_smoothing_relations():
    _, _, inputs = small_problem(d=20)
    functional, weight = scores(inputs)
    assert np.allclose(scores(inputs, smoothing=Smoothing(sigma=3.0))[1], weight / 9)
    assert np.array_equal(scores(inputs, smoothing="fisher")[1], functional)
    # a ridge that dwarfs the gradient covariance is Langevin noise of that variance
    sgd = scores(inputs, smoothing=Smoothing("sgd", ridge=1e12))[1]
    langevin = scores(inputs, smoothing=Smoothing("langevin", sigma=1e6))[1]
    assert np.allclose(sgd, langevin, rtol=1e-8)
    assert np.isfinite(scores(inputs, smoothing="sgd")[1]).all()
    exact_fit = scores(inputs, t=None, weight_decay=0.0, smoothing="sgd")[1]
    assert (exact_fit > 1e20).all()  # no gradient noise is left at an exact fit


def test_symmetries():
    jacobian, jacobian_val, inputs = small_problem()
    ntk, ntk_val, init, init_val, targets = inputs
    functional, weight = scores(inputs)
    order = np.random.default_rng(1).permutation(9)
    permuted = scores((ntk[np.ix_(order, order)], ntk_val[:, order], init[order], init_val, targets[order]))
    assert np.allclose(permuted, (functional[order], weight[order]))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    rotated, rotated_val = jacobian @ rotation, jacobian_val @ rotation
    again = scores((rotated @ rotated.T, rotated_val @ rotated.T, init, init_val, targets))
    assert np.allclose(again, (functional, weight))
    c = 3.0  # outputs and targets times c, learning rate / c^2, decay * c^2
    scaled = scores(
        (c**2 * ntk, c**2 * ntk_val, c * init, c * init_val, c * targets), lr=0.1 / c**2, weight_decay=0.05 * c**2
    )
    assert np.allclose(scaled[0], c**2 * functional)
    assert np.array_equal(scores(inputs, t=0), np.zeros((2, 9)))
    late, limit = scores(inputs, t=100_000), scores(inputs, t=None)
    assert np.allclose(late, limit)
    slow = scores(inputs, t=300_000, lr=1e-5)
    assert np.allclose(slow, scores(inputs, t=300_000, lr=1e-5, dynamics="flow"), rtol=1e-3)


def test_duplicates_carry_no_unique_information():
    jacobian, jacobian_val, (_, _, init, init_val, targets) = small_problem(d=30)
    jacobian[1], targets[1], init[1] = jacobian[0], targets[0], init[0]
    inputs = (jacobian @ jacobian.T, jacobian_val @ jacobian.T, init, init_val, targets)
    with pytest.warns(UserWarning, match=r"singular \(rank 8 of 9\).*rcond"):
        functional, weight = scores(inputs, t=None, weight_decay=0.0)
    assert np.abs(functional[:2]).max() < 1e-20 < functional[2:].min()
    assert np.abs(weight[:2]).max() < 1e-20
    single = [part[1:] for part in (jacobian, init, targets)]
    alone = scores((single[0] @ single[0].T, jacobian_val @ single[0].T, single[1], init_val, single[2]), t=None)
    assert scores(inputs, t=None)[0][0] < alone[0][0]


def test_press_formula_and_left_out_predictions():
    jacobian, _, inputs = small_problem(d=30)
    ntk, _, init, _, targets = inputs
    inverse = np.linalg.inv(ntk + 0.05 * np.eye(9))
    dual = inverse @ (init - targets)[:, 0]
    result = leave_one_out(*inputs, weight_decay=0.05, loss_reduction="sum")
    error = result.arrays["left_out_predictions"] - targets
    assert np.allclose(error[:, 0], dual / np.diag(inverse))
    change = inverse * (dual / np.diag(inverse))
    assert np.allclose(result.arrays["weight_information"], ((jacobian.T @ change) ** 2).sum(0) / 2)


def test_groups_equal_training_without_them():
    jacobian, _, inputs = small_problem(k=2, n=8)
    _, _, init, _, targets = inputs
    groups = np.array(["b", "a", "a", "c", "b", "a", "c", "c"])
    for reduction in ("sum", "mean"):
        result = leave_one_out(*inputs, weight_decay=0.2, loss_reduction=reduction, groups=groups)
        assert result.rows == ("a", "b", "c")

        def weights(kept, reduction=reduction):
            rows = np.repeat(kept, 2)
            decay = 0.2 * (kept.sum() if reduction == "mean" else 1)
            part = jacobian[rows]
            return -np.linalg.solve(part.T @ part + decay * np.eye(6), part.T @ (init - targets).ravel()[rows])

        for i, name in enumerate("abc"):
            change = weights(groups != name) - weights(np.ones(8, dtype=bool))
            assert result.arrays["weight_information"][i] == pytest.approx(change @ change / 2)
            left_out = init.ravel() + jacobian @ weights(groups != name)
            rows = np.repeat(groups == name, 2)
            assert np.allclose(result.arrays["left_out_predictions"].ravel()[rows], left_out[rows])


def test_shared_kernel_is_independent_outputs():
    _, _, (ntk, ntk_val, *_) = small_problem()
    rng = np.random.default_rng(5)
    init, init_val, targets = (rng.normal(size=(rows, 3)) for rows in (9, 5, 9))
    joint = (np.kron(ntk, np.eye(3)), np.kron(ntk_val, np.eye(3)), init, init_val, targets)
    shared = (ntk, ntk_val, init, init_val, targets)
    one_by_one = [scores((ntk, ntk_val, init[:, o], init_val[:, o], targets[:, o]), t=None) for o in range(3)]
    assert np.allclose(scores(joint, t=None), np.sum(one_by_one, axis=0))
    assert np.allclose(scores(shared, t=None), scores(joint, t=None))
    for name, value in leave_one_out(*shared, t=9, lr=0.1).arrays.items():
        assert np.allclose(value, leave_one_out(*joint, t=9, lr=0.1).arrays[name]), name


def test_step_size_beyond_the_simple_bound():
    """A rate that is stable for every smaller kernel, although lr / (n - 1) is not for the full one."""
    jacobian, _, inputs = small_problem(n=4, d=9)
    jacobian = 1.0 + 0.1 * jacobian
    inputs = (jacobian @ jacobian.T, jacobian[:2] @ jacobian.T, *inputs[2:3], inputs[3][:2], inputs[4])
    largest = np.linalg.eigvalsh(inputs[0])[-1]
    lr = 0.9 * 2 * 4 / largest
    expected = []
    for i in range(4):
        weights = []
        for kept in (np.arange(4), np.delete(np.arange(4), i)):
            w, part, residual = np.zeros(9), jacobian[kept], (inputs[2] - inputs[4])[kept, 0]
            for _ in range(40):
                w -= lr / len(kept) * part.T @ (part @ w + residual)
            weights.append(w)
        expected.append(((weights[1] - weights[0]) ** 2).sum() / 2)
    assert np.allclose(scores(inputs, t=40, lr=lr, weight_decay=0.0)[1], expected, rtol=1e-7)


def test_validation_on_the_training_inputs():
    _, _, (ntk, _, init, _, targets) = small_problem(k=2)
    order = np.arange(18).reshape(9, 2)[::-1].ravel()
    assert np.allclose(scores((ntk, ntk, init, init, targets)), scores((ntk, ntk[order], init, init[::-1], targets)))


def test_information_by_group():
    result = information_by_group([1.0, 3.0, 8.0], ["x", "x", "y"])
    assert result.rows == ("x", "y")
    assert np.array_equal(result.arrays["mean"], [2.0, 8.0])
    assert np.allclose(result.arrays["ratio"], [0.5, 2.0])
    assert result.arrays["standard_error"][0] == pytest.approx(1.0)
    check_bad_input(
        information_by_group,
        [
            ({"groups": ["x"]}, ValueError, "one per sample"),
            ({"groups": ["x", None, "y"]}, ValueError, "missing"),
            ({"groups": np.array(["x", 1, "y"], dtype=object)}, TypeError, "of one kind"),
            ({"groups": [1.0, np.nan, 2.0]}, ValueError, "missing"),
            ({"groups": np.ma.array([1, 2, 3], mask=[0, 0, 1])}, ValueError, "masked"),
            ({"groups": np.array([1, 2, 3], "M8[D]")}, TypeError, "integers, booleans or text"),
            ({"groups": [[1], [1, 2], 3]}, ValueError, "regular"),
            ({"scores": [], "groups": []}, ValueError, "at least one"),
            ({"scores": np.eye(3)}, ValueError, "shape"),
        ],
        scores=[1.0, 3.0, 8.0],
        groups=["x", "x", "y"],
    )


def test_bad_input():
    _, _, (ntk, ntk_val, init, init_val, targets) = small_problem()
    names = ("ntk", "ntk_val", "init_preds", "val_init_preds", "targets")
    good = dict(zip(names, (ntk, ntk_val, init, init_val, targets), strict=True)) | {"t": 10, "lr": 0.1}
    _, _, wide = small_problem(k=3)
    three = dict(zip(names, wide, strict=True))
    skewed, indefinite, broken = ntk.copy(), ntk - 5 * np.eye(9), ntk.copy()
    skewed[0, 1] += 1
    broken[2, 2] = np.nan
    limit = 2 * 8 / np.linalg.eigvalsh(ntk)[-1]
    check_bad_input(
        leave_one_out,
        [
            ({"lr": 50.0}, ValueError, "lr must be below"),
            ({"lr": -1.0}, ValueError, "> 0"),
            ({"lr": None}, ValueError, "must be given"),
            ({"weight_decay": -0.1}, ValueError, ">= 0"),
            ({"t": -1}, ValueError, ">= 0"),
            ({"t": 2.5}, TypeError, "integer"),
            ({"t": -2.5, "dynamics": "flow"}, ValueError, ">= 0"),
            ({"dynamics": "sgd"}, ValueError, "'flow'"),
            ({"loss_reduction": "total"}, ValueError, "'mean'"),
            ({"smoothing": "laplace"}, ValueError, "'langevin'"),
            ({"smoothing": Smoothing(sigma=0.0)}, ValueError, "> 0"),
            ({"smoothing": "sgd", "t": None, "lr": None}, ValueError, "learning rate"),
            ({"ntk": skewed}, ValueError, "symmetric"),
            ({"ntk": indefinite}, ValueError, "positive semi-definite"),
            ({"ntk": broken}, ValueError, "finite"),
            ({"ntk": ntk[:5]}, ValueError, "square"),
            ({"ntk": None}, TypeError, "array"),
            ({"ntk": [[1.0], [1.0, 2.0]]}, ValueError, "regular"),
            ({"ntk": np.ma.array(ntk, mask=np.eye(9))}, ValueError, "masked"),
            ({"init_preds": init * 1e300}, ValueError, "within 1e+100"),
            ({"val_init_preds": 1.0}, ValueError, "predictions of shape ()"),
            ({"val_init_preds": []}, ValueError, "predictions of shape (0,)"),
            ({"ntk": ntk[:5, :5]}, ValueError, "sample-major"),
            ({"ntk_val": ntk_val[:, :4]}, ValueError, "shape"),
            ({"ntk_val": ntk_val[:3]}, ValueError, "validation input"),
            ({"val_init_preds": np.zeros((5, 2))}, ValueError, "validation input"),
            ({"init_preds": init[:4]}, ValueError, "same shape"),
            ({"groups": np.zeros(9)}, ValueError, "2 different"),
            ({"groups": np.arange(4)}, ValueError, "one per sample"),
            (three | {"targets": np.arange(9) % 3}, ValueError, "one-hot encode them: numpy.eye(3)[labels]"),
            ({"ntk": ntk[:1, :1], "init_preds": [1.0], "targets": [0.0]}, ValueError, "at least 2 samples"),
        ],
        **good,
    )
    changes = {name: good[name] for name in ("ntk", "init_preds", "targets", "t", "lr")}
    check_bad_input(
        leave_one_out_changes,
        [({"ntk_val": None}, TypeError, "array"), ({"ntk_val": ntk_val[:0]}, ValueError, "got 0 rows")],
        **changes,
    )
    with pytest.raises(ValueError, match=r"32,000,000,000,000 bytes.*outputs='independent'"):
        leave_one_out(**good | {"ntk": np.broadcast_to(0.0, (10**6, 10**6))})
    with pytest.raises(ValueError, match=r"largest kernel eigenvalue") as caught:
        leave_one_out(**good | {"lr": 50.0})
    said = float(str(caught.value).split("below ")[1].split(",")[0])
    assert limit < said  # on all 9 samples; stricter once one of them is left out
    leave_one_out(**good | {"lr": 0.999 * limit})
