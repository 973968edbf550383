"""Discretiser, normalizer, features, metrics and intervals: reference numbers, slow loops, properties, bad input."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import skew
from sklearn.metrics import (
    average_precision_score,
    cohen_kappa_score,
    precision_recall_curve,
    roc_auc_score,
)

from natwise.core.io import load_npz
from natwise.datasets import mimic3
from natwise.testing import check_bad_input, check_estimator_contract, unchanged
from natwise.timeseries import (
    Discretizer,
    Normalizer,
    WindowFeatures,
    binary_metrics,
    bootstrap_ci,
    length_of_stay_bucket,
    length_of_stay_metrics,
    multilabel_metrics,
    read_series,
)

# Produced from the original implementation's output (pandas 1.5.3) on the stays of `write_mimic3_tables(60, seed=1)`:
# matrices, features and metrics as they came, of the other imputations only shape and sum.
GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
VARIABLES = [variable.name for variable in mimic3.variables()]
EYE = "Glascow coma scale eye opening"
EPS = 1e-6


@pytest.fixture(scope="module")
def stays(built):
    """The stays of the reference numbers: name -> frame."""
    out, _ = built
    names = GOLDEN["names"].tolist()
    paths = [next((out / "phenotyping").glob(f"*/{name}")) for name in names]
    return {name: read_series(path) for name, path in zip(names, paths, strict=True)}


def test_matrices_of_the_original(stays):
    assert ",".join(Discretizer().feature_names) == str(GOLDEN["header"])
    for name, frame in stays.items():
        end = float(GOLDEN[f"{name}|t"])
        with unchanged(frame):
            matrix = Discretizer().transform(frame, end)
        np.testing.assert_allclose(matrix, GOLDEN[f"{name}|previous"], atol=1e-6)
        for imputation in ("normal_value", "next", "zero"):
            other = Discretizer(imputation=imputation).transform(frame, end)
            np.testing.assert_allclose([*other.shape, other.sum()], GOLDEN[f"{name}|{imputation}"], rtol=1e-9)


def test_features_of_the_original(stays):
    expected = np.stack([GOLDEN[f"{name}|features"] for name in stays])
    np.testing.assert_allclose(WindowFeatures().transform(list(stays.values())), expected, rtol=1e-6, atol=1e-6)


def test_one_table_gives_what_single_frames_give(built):
    pl = pytest.importorskip("polars")
    out, _ = built
    table = pl.read_parquet(out / "timeseries/part-0000.parquet").filter(pl.col("Hours") >= 0)
    frames = [frame for _, frame in table.group_by("ICUSTAY_ID", maintain_order=True)]
    pandas = [frame.to_pandas() for frame in frames]
    for method in (
        Discretizer().transform_many,
        Discretizer(imputation="next").transform_many,
        WindowFeatures().transform,
    ):
        together = method(table)
        for a, b, c in zip(together, method(frames), method(pandas), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    texts = (
        pandas[0].astype(object).astype(str).replace({"nan": "", "None": ""}).assign(**{EYE: pandas[0][EYE].fillna("")})
    )
    np.testing.assert_array_equal(Discretizer().transform(texts), Discretizer().transform(pandas[0]))
    alone = [Discretizer().transform(frame.to_dict("list")) for frame in pandas[:5]]
    assert all(np.array_equal(a, b) for a, b in zip(alone, Discretizer().transform_many(pandas), strict=False))


def frame_of(hours, **values):
    empty = dict.fromkeys(VARIABLES, [None] * len(hours))
    return pd.DataFrame({"Hours": hours, **empty, **values}, dtype=object)


def naive_discretize(frame, end, timestep, imputation):
    """The published loop over rows and cells."""
    variables = mimic3.variables()
    n_bins = int(end / timestep + 1.0 - EPS)
    texts = [[None] * len(variables) for _ in range(n_bins)]
    for _, row in frame.iterrows():
        if row["Hours"] > end + EPS:
            continue
        for channel, name in enumerate(VARIABLES):
            if row[name] is not None:
                texts[int(row["Hours"] / timestep - EPS)][channel] = row[name]
    mask = [[text is not None for text in row] for row in texts]
    for channel, variable in enumerate(variables):
        last = variable.normal
        order = range(n_bins) if imputation == "previous" else range(n_bins - 1, -1, -1)
        for position in order:
            if mask[position][channel]:
                last = texts[position][channel]
            elif imputation in ("previous", "next"):
                texts[position][channel] = last
            elif imputation == "normal_value":
                texts[position][channel] = variable.normal
    blocks = []
    for row in texts:
        cells = []
        for variable, text in zip(variables, row, strict=True):
            if variable.categories:
                cells += [float(text is not None and category == str(text)) for category in variable.categories]
            else:
                cells.append(0.0 if text is None else float(text))
        blocks.append(cells)
    return np.hstack([np.array(blocks).reshape(n_bins, 59), np.array(mask, dtype=float).reshape(n_bins, 17)])


def random_frame(rng, n):
    hours = np.sort(rng.uniform(0, 20, n)).round(2)
    values = {}
    for variable in mimic3.variables():
        options = variable.categories or tuple(f"{x:.1f}" for x in rng.normal(50, 20, 5))
        seen = rng.random(n) < 0.3
        values[variable.name] = [str(rng.choice(options)) if s else None for s in seen]
    return frame_of(hours, **values)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.8, 2.0]),
    st.sampled_from(["previous", "next", "normal_value", "zero"]),
)
def test_discretizer_is_the_published_loop(seed, timestep, imputation):
    rng = np.random.default_rng(seed)
    frame, end = random_frame(rng, int(rng.integers(1, 30))), float(rng.uniform(0, 22))
    matrix = Discretizer(timestep, imputation).transform(frame, end)
    assert matrix.shape == (int(end / timestep + 1 - EPS), 76)
    np.testing.assert_array_equal(matrix, naive_discretize(frame, end, timestep, imputation))


def test_what_comes_later_never_changes_a_row(stays):
    """The leak test: after hour t everything may change, the first t rows and the features up to t may not."""
    frame = next(iter(stays.values()))
    t = 20.0
    changed = frame.copy()
    late = changed["Hours"] > t + EPS
    changed.loc[late, "Heart Rate"] = 7.0
    changed = changed[~late | (np.arange(len(frame)) % 2 == 0)]
    for imputation in ("previous", "normal_value", "zero"):
        whole = [Discretizer(imputation=imputation).transform(f, 40.0)[: int(t)] for f in (frame, changed)]
        np.testing.assert_array_equal(*whole)
        np.testing.assert_array_equal(whole[0], Discretizer(imputation=imputation).transform(frame, t))
    np.testing.assert_array_equal(*[WindowFeatures().transform([f], ends=[t]) for f in (frame, changed)])


def test_discretizer_details():
    frame = frame_of(
        [0.5, 1.0, 1.5, 3.0], **{"Glascow coma scale total": ["15", "15.0", 15, None], "pH": [7, "7.1", "", "7.4"]}
    )
    names = list(Discretizer().feature_names)
    total, ph = names.index("Glascow coma scale total->15"), names.index("pH")
    matrix = Discretizer().transform(frame)
    assert matrix.shape == (3, 76)
    assert matrix[:, total].tolist() == [1, 1, 1]
    assert matrix[:, ph].tolist() == [7.1, 7.1, 7.4]
    relative = Discretizer(start_time="relative").transform(frame, 3.0)
    assert relative[:, ph].tolist() == [7.1, 7.1, 7.4]
    assert Discretizer(masks=False).transform(frame).shape == (3, 59)
    assert Discretizer().transform(frame, 0.0).shape == (0, 76)
    assert len(Discretizer().continuous_columns) == 12


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["all", "first4days", "last12hours", "first25percent"]))
def test_features_are_the_published_functions(seed, period):
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, 25)
    found = WindowFeatures(period, constant_skewness=0.0).transform([frame])[0].reshape(17, 7, 6)
    windows = [("first", p) for p in (100, 10, 25, 50)] + [("last", p) for p in (10, 25, 50)]
    for variable, block in zip(mimic3.variables(), found, strict=True):
        seen = frame[["Hours", variable.name]].dropna()
        t = seen["Hours"].to_numpy(float)
        x = np.array(
            [variable.levels[v] if variable.categories else float(v) for v in seen[variable.name]], dtype=float
        )
        if not len(x):
            assert np.isnan(block).all()
            continue
        low, high = {
            "all": (t[0], t[-1]),
            "first4days": (t[0], t[0] + 96),
            "last12hours": (t[-1] - 12, t[-1]),
            "first25percent": (t[0], t[0] + (t[-1] - t[0]) / 4),
        }[period]
        for (side, percent), numbers in zip(windows, block, strict=True):
            length = (high - low) * percent / 100
            begin, end = (low, low + length) if side == "first" else (high - length, high)
            inside = x[(t > begin - EPS) & (t < end + EPS)]
            if not len(inside):
                assert np.isnan(numbers).all()
                continue
            skewness = skew(inside) if inside.std() > 1e-9 else 0.0
            expected = [inside.min(), inside.max(), inside.mean(), inside.std(), skewness, len(inside)]
            np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-5)


def test_normalizer_does_not_cancel():
    rng = np.random.default_rng(0)
    X = rng.normal(1e8, 1.0, size=(1000, 3))
    parts = Normalizer()
    for part in np.array_split(X, [10, 11, 500]):
        parts.partial_fit(part)
    for normalizer in (parts, Normalizer().fit(X)):
        np.testing.assert_allclose(normalizer.std_, X.std(axis=0, ddof=1), rtol=1e-6)
        np.testing.assert_allclose(normalizer.mean_, X.mean(axis=0), rtol=1e-12)
    some = Normalizer(columns=[1]).fit(X).transform(X)
    np.testing.assert_array_equal(some[:, [0, 2]], X[:, [0, 2]])
    assert Normalizer().fit(np.ones((5, 2))).std_.tolist() == [1e-7, 1e-7]
    published = Normalizer.published("decompensation", 0.8)
    assert published.transform(published.mean_[None])[0, Discretizer().continuous_columns].tolist() == [0.0] * 12


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_normalizer_keeps_the_contract():
    check_estimator_contract(Normalizer(), np.random.default_rng(0).normal(size=(30, 4)))


def test_metrics_of_the_original():
    """Reference numbers of the original code, to 1e-9."""
    expected = json.loads(str(GOLDEN["metrics"]))
    found = {
        "binary": binary_metrics(GOLDEN["binary_y"], GOLDEN["binary_score"]),
        "multilabel": multilabel_metrics(GOLDEN["multilabel_y"], GOLDEN["multilabel_score"]),
        "los": length_of_stay_metrics(GOLDEN["los_true"], GOLDEN["los_pred"]),
    }
    for kind, values in expected.items():
        for name, value in values.items():
            np.testing.assert_allclose(found[kind][name], value, rtol=1e-9, err_msg=name)
    bins = json.loads(str(GOLDEN["bins"]))
    assert length_of_stay_bucket(bins["custom_bins"]["x"]).tolist() == bins["custom_bins"]["bin"]
    assert length_of_stay_bucket(bins["log_bins"]["x"], "log").tolist() == bins["log_bins"]["bin"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 60), st.integers(2, 8))
def test_metrics_equal_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    y = np.append(rng.integers(0, 2, n), [0, 1])
    score = rng.integers(0, levels, n + 2) / levels
    found = binary_metrics(y, np.stack([1 - score, score], axis=1))
    precision, recall, _ = precision_recall_curve(y, score)
    expected = {
        "auroc": roc_auc_score(y, score),
        "average_precision": average_precision_score(y, score),
        "auprc": -np.trapezoid(precision, recall),
        "minpse": np.minimum(precision, recall).max(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    hours, predicted = rng.exponential(100, n), rng.exponential(100, n)
    kappa = length_of_stay_metrics(hours, predicted)["kappa"]
    buckets = length_of_stay_bucket(hours), length_of_stay_bucket(predicted)
    assert kappa == pytest.approx(cohen_kappa_score(*buckets, weights="linear", labels=range(10)), abs=1e-12)


def test_bootstrap_is_the_metric_on_resampled_data():
    rng = np.random.default_rng(0)
    y, score = (rng.random(300) < 0.3).astype(int), rng.random(300).round(2)
    labels, scores = rng.integers(0, 2, (200, 4)), rng.random((200, 4))
    hours, predicted = rng.exponential(90, 300), rng.exponential(90, 300)
    cases = [
        ("auroc", y, score, binary_metrics),
        ("auprc", y, score, binary_metrics),
        ("minpse", y, score, binary_metrics),
    ]
    cases += [("average_precision", y, score, binary_metrics)]
    cases += [(f"ave_auc_{kind}", labels, scores, multilabel_metrics) for kind in ("macro", "micro", "weighted")]
    cases += [(name, hours, predicted, length_of_stay_metrics) for name in ("kappa", "mad", "mse", "mape")]
    for name, a, b, metrics in cases:
        result = bootstrap_ci(a, b, name, n_resamples=300, random_state=0)
        assert result.scalars["value"] == pytest.approx(metrics(a, b)[name], rel=1e-9), name
        slow = []
        for _ in range(300):
            chosen = rng.integers(0, len(a), len(a))
            slow.append(metrics(a[chosen], b[chosen])[name])
        spread = np.std(slow)
        assert abs(np.mean(slow) - result.scalars["mean"]) < 5 * spread / np.sqrt(150), name
        assert result.scalars["std"] == pytest.approx(spread, rel=0.25), name
        assert result.scalars["lower"] < result.scalars["median"] < result.scalars["upper"]
        assert bootstrap_ci(a, b, name, n_resamples=300, random_state=0).scalars == result.scalars


GOOD = frame_of([0.5, 1.5], **{"Heart Rate": ["80", "90"]})


def changed(**values):
    frame = GOOD.copy()
    for name, column in values.items():
        frame[name.replace("_", " ")] = column
    return frame


def test_a_stay_that_ends_at_once_has_no_step():
    first = changed(Hours=[0.0, 0.0])
    assert Discretizer().transform(first).shape == (0, 76)
    assert [len(matrix) for matrix in Discretizer().transform_many([GOOD, first, GOOD], [2.0, 0.0, 1.0])] == [2, 0, 1]


def test_bad_input():
    check_bad_input(
        Discretizer,
        [
            ({"timestep": 0}, ValueError, "> 0"),
            ({"timestep": "1"}, TypeError, "number"),
            ({"imputation": "mean"}, ValueError, "previous"),
            ({"start_time": 0}, ValueError, "zero"),
        ],
    )
    check_bad_input(
        Discretizer().transform,
        [
            ({"end": -1.0}, ValueError, ">= 0"),
            ({"end": np.nan}, ValueError, "finite"),
            ({"end": "late"}, TypeError, "numeric"),
            ({"end": 1e12}, ValueError, "within 1,000,000 timesteps"),
        ],
        frame=GOOD,
    )
    check_bad_input(
        WindowFeatures().transform,
        [
            ({"frames": GOOD}, TypeError, "list"),
            ({"frames": []}, ValueError, "at least one"),
            ({"frames": ["a"]}, TypeError, "got str as stay 0"),
            ({"frames": [GOOD, np.zeros((2, 18))]}, TypeError, "got ndarray as stay 1"),
            ({"frames": [changed(Heart_Rate=[[1], [2]])]}, ValueError, "a number in Heart Rate"),
            ({"frames": [{**GOOD.to_dict("list"), "pH": [7.4]}]}, ValueError, "one length"),
            ({"frames": [GOOD], "ends": [1.0, 2.0]}, ValueError, "ends must have shape"),
            ({"frames": [GOOD.drop(columns="pH")]}, ValueError, "pH"),
            ({"frames": [changed(Hours=[2.0, 1.0])]}, ValueError, "1 after 2 in stay 0"),
            ({"frames": [changed(Heart_Rate=["80", "fast"])]}, ValueError, "Heart Rate"),
            ({"frames": [changed(Heart_Rate=[80.0, np.inf])]}, ValueError, "Heart Rate"),
            ({"frames": [GOOD, changed(Glascow_coma_scale_total=["15", "16"])]}, ValueError, "'16' in stay 1"),
            ({"frames": [changed(Hours=[0.0, np.nan])]}, ValueError, "finite"),
            ({"frames": [changed(Hours=["0", "soon"])]}, ValueError, "soon"),
        ],
    )
    with pytest.raises(ValueError, match="timestep must be one of"):
        Normalizer.published("phenotyping", 3.0)
    with pytest.raises(ValueError, match="columns must be below 2"):
        Normalizer(columns=[2]).fit(np.ones((3, 2)))


def test_bad_input_of_the_metrics():
    check_bad_input(
        binary_metrics,
        [
            ({"y_true": [0, 0]}, ValueError, "both classes"),
            ({"y_true": [0, 2]}, ValueError, "0 and 1"),
            ({"y_true": [0, 1, 1]}, ValueError, "same length"),
            ({"y_score": [0.1, np.nan]}, ValueError, "finite"),
            ({"y_score": ["a", "b"]}, TypeError, "numeric"),
        ],
        y_true=[0, 1],
        y_score=[0.1, 0.2],
    )
    check_bad_input(
        length_of_stay_metrics,
        [
            ({"y_true": [-1.0]}, ValueError, ">= 0"),
            ({"y_pred": []}, ValueError, "same length"),
            ({"buckets": "x"}, ValueError, "custom"),
        ],
        y_true=[1.0],
        y_pred=[2.0],
    )
    check_bad_input(
        bootstrap_ci,
        [
            ({"metric": "f1"}, ValueError, "auroc"),
            ({"n_resamples": 0}, ValueError, ">= 1"),
            ({"confidence": 1.0}, ValueError, "< 1"),
        ],
        y_true=[0, 1],
        y_score=[0.1, 0.2],
    )
