"""Suspicious labels: every row judged by models that never saw it, and precision that holds on known mistakes."""

import numpy as np
import pytest

from natwise.audit import judging, models, planting
from natwise.audit.context import Context, Deadline
from natwise.audit.questions import label_issues
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table

N = 400


def blobs(noise=0.0, n=N, k=4, seed=0, gap=3.0):
    """Return well separated Gaussian classes with labels made wrong at random."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    X = gap * np.eye(k, 6)[labels] + rng.standard_normal((n, 6))
    wrong = rng.random(n) < noise
    labels[wrong] = (labels[wrong] + rng.integers(1, k, wrong.sum())) % k
    return make_table(X, labels, planted=wrong)


def answer(table, seconds=30.0, seed=0):
    return label_issues.answer(Context(table, encode(table.features), Streams(seed)), Deadline(seconds))


@pytest.fixture(scope="module")
def noisy():
    return answer(blobs(noise=0.1))


def test_planted_mistakes_are_found(noisy):
    assert noisy.scalars["planted_auroc"] > 0.97
    assert noisy.arrays["label_issue_score"].min() >= 0
    assert noisy.arrays["label_issue_score"].max() <= 1


def test_estimated_noise_and_precision_hold(noisy):
    share = noisy.scalars["planted_share"]
    assert noisy.scalars["estimated_noise_low"] <= share <= noisy.scalars["estimated_noise_high"]
    _, low, high = noisy.arrays["precision"]
    known = noisy.arrays["precision_known"]
    assert ((low - 0.05 <= known) & (known <= high + 0.05)).mean() > 0.9


def test_no_mistakes_in_clean_labels():
    clean = answer(blobs(n=200, gap=6.0))
    assert clean.scalars["estimated_noise"] < 0.03
    assert clean.scalars["estimated_noise_high"] > 0
    assert clean.scalars["review"] == 0
    assert clean.params["summary"][0].startswith("None of the 200 labels looks wrong (90 % interval 0.0 to ")
    assert clean.scalars["accuracy"] == 1
    assert clean.scalars["accuracy_se"] > 0


def test_labels_that_the_columns_do_not_determine_are_not_called_wrong():
    labels = np.random.default_rng(1).integers(4, size=N)
    table = make_table(blobs().features, labels)
    answer_ = answer(table, seconds=3.0)
    assert answer_.scalars["review"] == 0
    assert "cannot be told" in answer_.params["summary"][0]


def test_the_seed_decides():
    table = blobs(noise=0.1, n=80)
    np.testing.assert_array_equal(answer(table).arrays["label_issue_score"], answer(table).arrays["label_issue_score"])


def test_short_time_is_said_and_every_row_still_judged():
    hurried = answer(blobs(n=2000, noise=0.1), seconds=0.5)
    assert any("trained on" in text for text in hurried.warnings)
    assert hurried.params["train_rows"] < 1600
    assert "of 1,600 rows to stay within the time, predicts" in hurried.params["summary"][1]
    assert hurried.scalars["planted_auroc"] > 0.9


def test_rare_classes_are_not_judged():
    table = blobs(n=80)
    labels = table.labels.copy()
    labels[:3] = 4
    rare = make_table(table.features, labels)
    result = answer(rare, seconds=1.0)
    np.testing.assert_array_equal(result.arrays["label_issue_score"][:3], 0.5)
    assert any("cannot be judged" in text for text in result.warnings)
    np.testing.assert_allclose(result.arrays["wrong_probability"][:3], result.scalars["estimated_noise"])
    assert result.scalars["estimated_noise"] < 0.03


@pytest.mark.parametrize("name", models.CLASSIFIERS)
def test_out_of_fold_means_out_of_fold(name):
    """A row's own label cannot change its own probabilities."""
    table = blobs(n=90, k=3)
    X = encode(table.features).X
    X[::7, 0] = np.nan
    folds = models.make_folds(table.labels, np.arange(90), np.random.default_rng(0))
    before = models.out_of_fold(models.CLASSIFIERS[name], X, table.labels, 3, folds, Streams(0))
    changed = np.where(folds == 2, (table.labels + 1) % 3, table.labels)
    after = models.out_of_fold(models.CLASSIFIERS[name], X, changed, 3, folds, Streams(0))
    np.testing.assert_allclose(before[folds == 2], after[folds == 2], atol=1e-6)
    assert not np.allclose(before[folds != 2], after[folds != 2])
    np.testing.assert_allclose(before.sum(axis=1), 1.0, atol=1e-6)


def test_folds_keep_duplicates_together_and_classes_apart():
    labels = np.repeat([0, 1], [80, 20])
    clusters = np.arange(100) // 2
    folds = models.make_folds(labels, clusters, np.random.default_rng(0))
    assert (folds[::2] == folds[1::2]).all()
    counts = np.array([np.bincount(folds[labels == c], minlength=models.N_FOLDS) for c in (0, 1)])
    np.testing.assert_array_equal(counts, np.repeat([[16], [4]], models.N_FOLDS, axis=1))


def test_score_rises_as_the_given_label_loses():
    p = np.linspace(0.01, 0.99, 50)
    scores = judging.label_issue_score(np.column_stack([p, 1 - p]).repeat(5, axis=0), np.zeros(250, dtype=int))
    assert (np.diff(scores[::5]) < 0).all()


def test_plant_changes_what_it_says():
    labels = np.random.default_rng(0).integers(4, size=1000)
    confusion = np.eye(4) * 0.7 + np.roll(np.eye(4), 1, axis=1) * 0.3
    planted, flags = planting.plant(labels, confusion, Streams(0))
    np.testing.assert_array_equal(planted != labels, flags)
    assert flags.sum() == 50
    assert ((planted - labels) % 4 == 1)[flags].mean() > 0.5  # half follow the confusion


def simulate(noise, overlap, seed, n=3000):
    """Scores of four planting runs: those of wrong labels are drawn around 3, of right ones around `overlap`."""
    rng = np.random.default_rng(seed)
    n_wrong = round(noise * n)
    background = np.concatenate([3 + rng.standard_normal(n_wrong), overlap + rng.standard_normal(n - n_wrong)])
    return 3 + rng.standard_normal((4, 150)), np.tile(background, (4, 1))


@pytest.mark.parametrize(("noise", "overlap"), [(0.0, 0.0), (0.05, 0.0), (0.2, 0.0), (0.1, 1.0)])
def test_bound_of_simulated_noise(noise, overlap):
    bounds = [planting.bound_noise(*simulate(noise, overlap, seed), Streams(seed)) for seed in range(10)]
    estimates, lows, highs = np.transpose(bounds)
    assert noise - 0.02 <= estimates.mean() <= noise + (0.01 if overlap == 0 else 0.03)
    assert (noise <= highs).sum() >= 7
    assert (lows <= noise).sum() >= (7 if overlap == 0 else 4)


def test_recall_of_simulated_scores():
    planted, background = simulate(0.1, 1.0, 0)
    cuts = np.array([20, 100, 400, 1000])
    cutoff = np.sort(background[0])[::-1][cuts - 1]
    expected = [(planted >= value).mean() for value in cutoff]
    np.testing.assert_allclose(planting.recall_at(cuts, 3000, planted, background), expected, atol=1e-12)
