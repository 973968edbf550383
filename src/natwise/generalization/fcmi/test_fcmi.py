"""f-CMI and its successors against reference numbers, exact enumeration, a plain loop, and what they must obey.

`golden.npz` holds tables of predictions with every bound by an independent implementation (exact searches, divergences
over all cells), among them a real MNIST run, exact enumerations of three small problems, and the original's SGLD bound.
"""

import functools
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise.core.io import load_npz
from natwise.generalization import (
    SupersampleRuns,
    fcmi_bound,
    fcmi_squared_bound,
    pair_squared_bound,
    sample_supersample,
)
from natwise.generalization.fcmi._readings import NEED_INTERPOLATION, bounds_on
from natwise.testing import check_bad_input, check_result, same_bits, unchanged

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
CASES = ("case0", "case1", "case2", "mnist")
REFERENCE = {
    "train_error": "train_error",
    "test_error": "test_error",
    "gap": "gap",
    "fcmi": "fcmi_sqrt",
    "ecmi": "ecmi_sqrt",
    "ld_cmi": "ld_sqrt",
    "single_loss": "single_plus",
    "single_loss_other": "single_minus",
    "fast_rate_closed": "closed_form",
    "interpolation": "interp_ld",
    "interpolation_single": "interp_single",
    "oracle_mi": "oracle_mi",
    "oracle_free_mi": "oracle_mi2",
    "hellinger": "hellinger",
    "jsd": "jsd",
    "chi2": "chi2",
}
OPTIMISED = {
    "kl": "kl_risk_fcmi",
    "kl_ecmi": "kl_risk_ecmi",
    "fast_rate": "weighted_single",
    "variance": "weighted_single",
    "sharpness": "weighted_single",
    "linear": "lg_risk_fcmi",
    "linear_ecmi": "lg_risk_ecmi",
}


def runs_of(case):
    return SupersampleRuns(*(GOLDEN[f"{case}/{name}"] for name in ("S", "pred", "y")))


def random_runs(seed=0, n=20, n_splits=30, n_classes=2, **options):
    rng = np.random.default_rng(seed)
    S = sample_supersample(n, n_splits, seed, "antithetic")
    return SupersampleRuns(
        S, rng.integers(n_classes, size=(n_splits, n, 2)), rng.integers(n_classes, size=(n, 2)), **options
    )


def enumerated(q, coin, n=2):
    """Return all runs on all supersamples of a majority rule per value of x, and the supersamples' probabilities."""
    examples = [(x, label) for x in range(len(q)) for label in (0, 1)]
    probability = np.array([(q[x] if label else 1 - q[x]) / len(q) for x, label in examples])
    draws = np.array(list(itertools.product(range(len(examples)), repeat=2 * n)))
    weight = probability[draws].prod(axis=1)
    draws, weight = draws[weight > 0], weight[weight > 0]
    x, label = np.array(examples)[draws].reshape(-1, n, 2, 2).transpose(3, 0, 1, 2)
    S, predictions = [], []
    for split in itertools.product((0, 1), repeat=n):
        for unseen in (0, 1) if coin else (0,):
            taken = np.arange(n), np.array(split)
            seen = x[:, taken[0], taken[1], None, None] == x[:, None]
            ones = (seen & (label[:, taken[0], taken[1], None, None] == 1)).sum(axis=1)
            predictions.append(np.where(seen.sum(axis=1) == 0, unseen, 2 * ones > seen.sum(axis=1)))
            S.append(split)
    S = np.broadcast_to(S, (len(weight), len(S), n))
    return SupersampleRuns(S, np.stack(predictions, axis=1).astype(int), label), weight


@pytest.mark.parametrize("case", CASES)
def test_reference_numbers(case):
    runs = runs_of(case)
    result = runs.bounds()
    for name, reference in REFERENCE.items():
        assert result.scalars[name] == pytest.approx(GOLDEN[f"{case}/reference/{reference}"], rel=0, abs=1e-9), name
    for name, reference in OPTIMISED.items():
        assert result.scalars[name] == pytest.approx(GOLDEN[f"{case}/reference/{reference}"], rel=0, abs=1e-6), name
    check_result(result)
    assert result.params["reading"] == "guarantee"
    if case == "mnist":
        null = runs.permutation_null(50, random_state=0).scalars
        assert null["fcmi"] == pytest.approx(GOLDEN["mnist/reference/fcmi_sqrt_permutation_null"], abs=0.01)
        assert null["fcmi_p_value"] == pytest.approx(1 / 51)
        return
    targets = {
        "prediction": "mi_nats_per_example",
        "loss_difference": "mi_ld",
        "loss": "mi_Lplus",
        "loss_pair": "mi_losspair",
    }
    for target, key in targets.items():
        np.testing.assert_allclose(runs.information(target), GOLDEN[f"{case}/{key}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_divergence_bounds_are_above_the_gap_and_above_each_other_in_order(case):
    s = runs_of(case).bounds().scalars
    assert s["gap"] <= min(s[name] for name in ("hellinger", "jsd", "chi2", "oracle_mi", "oracle_free_mi", "mi_tv"))
    assert s["hellinger"] <= s["hellinger_tv"] <= s["hellinger_tv_loose"]
    assert s["gap"] <= s["tightest"] <= s["fcmi"]
    assert s["ld_cmi"] <= s["ecmi"] + 1e-12
    assert s["ecmi"] <= s["fcmi"] + 1e-12
    assert s["fast_rate"] <= s["fast_rate_closed"] + 1e-12


@pytest.mark.parametrize(
    ("name", "q", "coin"),
    [
        ("K2_n2_noise.2_det", (0.2, 0.8), False),
        pytest.param("K3_n2_random_labels_coin", (0.5, 0.5, 0.5), True, marks=pytest.mark.slow),
        pytest.param("K4_n2_clean", (0.0, 1.0, 0.0, 1.0), False, marks=pytest.mark.slow),
    ],
)
def test_exact_enumeration(name, q, coin):
    exact = {key.rpartition("/")[2]: v for key, v in GOLDEN.items() if key.startswith(f"exact/{name}/")}
    runs, weight = enumerated(q, coin)
    mean = {bound: float(weight @ values) for bound, values in runs._read("plugin").items()}
    keys = {"gap": "gap", "m1": "fcmi", "mn": "fcmi_full", "t3": "fcmi_conditional", "e1": "ecmi", "ld1": "ld_cmi"}
    for key, bound in keys.items():
        assert mean[bound] == pytest.approx(exact[key], rel=0, abs=1e-10), key
    assert mean["gap"] <= mean["ld_cmi"] <= mean["ecmi"] <= mean["fcmi"] <= mean["fcmi_full"]
    assert mean["fcmi"] <= mean["fcmi_conditional"]
    full = float(weight @ runs.full_information())
    assert full == pytest.approx(exact["mi_mn"], rel=0, abs=1e-10)
    assert fcmi_squared_bound(full, 2) == pytest.approx(exact["T2_bound"], rel=0, abs=1e-9)
    assert fcmi_squared_bound(full, 2, "sharp") == pytest.approx(exact["T2_sharper"], rel=0, abs=1e-9)
    pairs, information = runs.pair_information("prediction")
    assert pairs.tolist() == [[0, 1]]  # n = 2: the pair is everything
    assert float(weight @ np.sqrt(information).mean(axis=1)) == pytest.approx(exact["mn"], abs=1e-10)
    assert pair_squared_bound(information, 2, population=True) >= exact["gap2pop"]


def naive_information(s, codes):
    total = 0.0
    for a, b in itertools.product(set(s.tolist()), set(codes.tolist())):
        p = np.mean((s == a) & (codes == b))
        total += p * np.log(p / (np.mean(s == a) * np.mean(codes == b))) if p else 0.0
    return total


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(4, 20))
def test_information_equals_a_loop_and_obeys_its_laws(seed, n_classes, n_splits):
    runs = random_runs(seed, n=6, n_splits=2 * n_splits, n_classes=n_classes)
    codes = n_classes * runs.predictions[0, ..., 0] + runs.predictions[0, ..., 1]
    slow = [naive_information(runs.S[0, :, i], codes[:, i]) for i in range(runs.n)]
    information = runs.information()
    np.testing.assert_allclose(information, slow, atol=1e-12)
    pair, difference = runs.information("loss_pair"), runs.information("loss_difference")
    assert (difference <= pair + 1e-12).all()
    assert (pair <= information + 1e-12).all()
    assert information.max() <= np.log(2) + 1e-12
    flipped = SupersampleRuns(1 - runs.S[0], runs.predictions[0][..., ::-1], runs.y[0][:, ::-1])
    np.testing.assert_allclose(flipped.information(), information, atol=1e-12)  # columns have no order
    assert flipped.bounds().scalars["gap"] == pytest.approx(runs.bounds().scalars["gap"])
    s, on = runs.bounds().scalars, bounds_on(runs.bounds().scalars)
    skip = {*NEED_INTERPOLATION, "single_loss", "single_loss_other"}
    for name in on.keys() - skip:  # balanced splits: the bounds hold for the empirical distribution itself
        assert s[name] - (s["train_error"] if on[name] == "test error" else 0) >= s["gap"] - 1e-9, name


def test_perfect_memory_and_no_information():
    S = sample_supersample(50, 20, 0, "antithetic")
    y = np.random.default_rng(0).integers(2, size=(50, 2))
    memory = np.where(S[:, :, None] == [0, 1], y, 1 - y)
    s = SupersampleRuns(S, memory, y).bounds().scalars
    assert s["gap"] == 1.0
    assert s["fcmi"] == pytest.approx(np.sqrt(2 * np.log(2)))
    assert s["tightest"] == pytest.approx(1.0)
    constant = SupersampleRuns(S, np.zeros_like(memory), y).bounds()
    assert constant.scalars["fcmi"] == constant.scalars["gap"] == constant.scalars["hellinger"] == 0.0
    assert constant.scalars["kl"] == pytest.approx(constant.scalars["train_error"])


def test_plug_in_reads_a_bound_where_there_is_none_and_the_estimates_do_not():
    runs = random_runs(n=1000)
    reading = {name: runs.bounds(name) for name in ("plugin", "miller_madow", "permutation")}
    assert reading["plugin"].scalars["fcmi"] == pytest.approx(0.30, abs=0.02)
    assert reading["permutation"].params["reading"] == "estimate"
    assert reading["permutation"].scalars["fcmi"] < reading["miller_madow"].scalars["fcmi"] < 0.2
    assert "hellinger" not in reading["permutation"].scalars
    assert abs(runs.information(estimator="permutation").mean()) < 0.003
    null = runs.permutation_null(20, random_state=0).scalars
    assert null["fcmi_p_value"] > 0.05
    assert abs(null["fcmi_excess"]) < 0.02


def test_several_supersamples_average():
    parts = [runs_of("case0"), random_runs(n=12)]
    both = SupersampleRuns(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("S", "predictions", "y")))
    result, apart = both.bounds(), [part.bounds() for part in parts]
    for name in ("gap", "fcmi", "kl", "fast_rate", "chi2"):
        values = [one.scalars[name] for one in apart]
        assert result.scalars[name] == pytest.approx(np.mean(values))
        assert result.scalars[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert both.information().shape == (2, 12)
    np.testing.assert_allclose(both.information()[1], parts[1].information())
    assert result.scalars["ld_cmi_pooled"] <= result.scalars["ld_cmi"] + 1e-9
    assert not result.params["tightest"].startswith("single")


def test_pairs_of_pairs_and_the_whole():
    runs = random_runs(n=6, n_splits=400)
    pairs, information = runs.pair_information()
    assert pairs.shape == (15, 2)
    single = runs.information("loss_pair")
    assert (information >= single[pairs].max(axis=1) - 1e-12).all()
    chosen, part = runs.pair_information(n_pairs=4, random_state=0)
    np.testing.assert_array_equal(part, information[[pairs.tolist().index(p) for p in chosen.tolist()]])
    assert runs.full_information() <= np.log(400) + 1e-12
    with pytest.raises(ValueError, match="differs in pair"):
        runs_of("case0").conditional_information()


def test_resampling():
    runs = runs_of("case2")
    with unchanged(runs.S, runs.predictions, runs.y):
        found = runs.bootstrap(50, random_state=0)
    assert same_bits(found.arrays["fcmi"], runs.bootstrap(50, random_state=0).arrays["fcmi"])
    s = found.scalars
    assert s["gap_low"] < s["gap"] < s["gap_high"]
    assert 0.005 < s["gap_se"] < 0.05
    check_result(found)
    check_result(runs.permutation_null(3, random_state=0))
    S = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    complete = SupersampleRuns(S, S[:, :, None] ^ [0, 1], np.zeros((2, 2), int))
    assert complete.bounds().scalars["fcmi_full"] == pytest.approx(np.sqrt(2 * np.log(2)))
    assert "fcmi_full" not in complete.permutation_null(2, random_state=0).scalars  # shuffling breaks the set


def test_other_losses_and_other_forms_of_input():
    import pandas as pd
    import torch

    S, predictions, y = (GOLDEN[f"case2/{name}"].astype(int) for name in ("S", "pred", "y"))
    expected = runs_of("case2").bounds()
    wrong = (predictions != y).astype(float)
    for runs in (
        SupersampleRuns(S.tolist(), predictions.astype(float), pd.DataFrame(y)),
        SupersampleRuns(torch.tensor(S), torch.tensor(predictions), torch.tensor(y)),
        SupersampleRuns(S, predictions + 4, y + 4),
        SupersampleRuns(S, predictions - 1, np.broadcast_to(y - 1.0, predictions.shape)),
        SupersampleRuns(S, predictions, y, losses=wrong),
        SupersampleRuns.from_scores(S, np.eye(2)[predictions], y),
    ):
        assert runs.bounds().scalars == pytest.approx(expected.scalars, abs=1e-12)
    half = SupersampleRuns(S, predictions, y, losses=wrong / 2).bounds().scalars
    assert half["gap"] == pytest.approx(expected.scalars["gap"] / 2)
    assert half["ecmi"] == pytest.approx(expected.scalars["ecmi"])
    assert half["hellinger"] >= half["gap"]
    many = SupersampleRuns(S, predictions, y, losses=np.round(np.random.default_rng(0).random((*S.shape, 2)), 1))
    flipped = (
        SupersampleRuns(1 - S, predictions[..., ::-1], y[:, ::-1], losses=many.losses[0][..., ::-1]).bounds().scalars
    )
    assert flipped["single_loss"] == pytest.approx(many.bounds().scalars["single_loss_other"])
    assert flipped["fast_rate"] == pytest.approx(many.bounds().scalars["fast_rate"])


def test_splits():
    S = sample_supersample(1000, 40, 0)
    assert S.shape == (40, 1000)
    assert abs(S.mean() - 0.5) < 0.02
    np.testing.assert_array_equal(S, sample_supersample(1000, 40, 0))
    balanced = sample_supersample(7, 10, 1, design="antithetic")
    assert (balanced.sum(axis=0) == 5).all()
    assert (balanced[::2] + balanced[1::2] == 1).all()


def test_constant_splits_are_counted():
    S = np.array([[0, 1], [0, 0], [0, 1]])
    with pytest.warns(UserWarning, match="1 of 2 pairs"):
        runs = SupersampleRuns(S, np.zeros((3, 2, 2), int), np.zeros((2, 2), int))
    assert runs.n_constant == 1
    assert any("same way" in text for text in runs.bounds().warnings)
    assert all(np.isfinite(value) for value in runs.bounds().scalars.values())


def test_bad_splits_and_runs():
    S, P, y = sample_supersample(4, 6, 0, "antithetic"), np.zeros((6, 4, 2), int), np.zeros((4, 2), int)
    labels = np.zeros((6, 4, 2), int)
    labels[3, 1, 0] = 1
    cases = [
        ({"S": S + 1}, ValueError, "0 and 1"),
        ({"S": S[0]}, ValueError, "shape"),
        ({"S": S[:1], "predictions": P[:1]}, ValueError, "at least 2 splits"),
        ({"S": S * 0.5}, ValueError, "whole numbers"),
        ({"S": "splits"}, TypeError, "numeric"),
        ({"S": P}, ValueError, "one value per pair"),
        ({"S": np.zeros((0, 6, 4)), "predictions": P[None][:0], "y": y[None][:0]}, ValueError, "not empty"),
        ({"predictions": P[..., 0]}, ValueError, "(6, 4, 2)"),
        ({"predictions": P + 0.3}, ValueError, "from_scores"),
        ({"predictions": np.full((6, 4, 2, 3), 1 / 3)}, ValueError, "from_scores"),
        ({"predictions": np.full((6, 4, 2), np.nan)}, ValueError, "finite"),
        ({"predictions": np.full((6, 4, 2), "a")}, TypeError, "numeric"),
        ({"predictions": P + np.arange(2) * 2**40}, ValueError, "classes"),
        ({"y": y[:3]}, ValueError, "(4, 2)"),
        ({"y": y + 0.5}, ValueError, "whole numbers"),
        ({"y": labels}, ValueError, "same in every run"),
        ({"losses": P + 2.0}, ValueError, "[0, 1]"),
        ({"losses": P[0]}, ValueError, "(6, 4, 2)"),
    ]
    check_bad_input(SupersampleRuns, cases, S=S, predictions=P, y=y)
    splits = [
        ({"n": 0}, ValueError, ">= 1"),
        ({"n": 2.0}, TypeError, "integer"),
        ({"n_splits": 1}, ValueError, ">= 2"),
        ({"design": "antitetic"}, ValueError, "Did you mean 'antithetic'"),
        ({"design": "antithetic", "n_splits": 5}, ValueError, "even"),
        ({"random_state": -1}, ValueError, ">= 0"),
    ]
    check_bad_input(sample_supersample, splits, n=3)
    runs = SupersampleRuns(S, P, y)
    for call, cases in (
        (runs.information, [({"target": "weights"}, ValueError, "one of"), ({"estimator": "x"}, ValueError, "one of")]),
        (runs.bounds, [({"estimator": "bayes"}, ValueError, "one of")]),
        (runs.permutation_null, [({"n_permutations": 0}, ValueError, ">= 1")]),
        (runs.bootstrap, [({"n_resamples": 1}, ValueError, ">= 2"), ({"confidence": 1.0}, ValueError, "< 1")]),
        (runs.pair_information, [({"n_pairs": 7}, ValueError, "<= 6"), ({"target": 3}, ValueError, "one of")]),
        (
            functools.partial(runs.from_scores, S=S, y=y),
            [({"scores": P}, ValueError, "n_classes"), ({"scores": np.ones((6, 3, 2, 2))}, ValueError, "(6, 4, 2")],
        ),
    ):
        check_bad_input(call, cases)


def test_large_tables_need_little_memory():
    import tracemalloc

    runs = random_runs(n=2000, n_splits=40, n_classes=1000)
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fcmi_bound(runs.information()) == pytest.approx(np.sqrt(2 * np.log(2)), abs=0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # a dense table would take 2000 x 2 x 10^6 cells
