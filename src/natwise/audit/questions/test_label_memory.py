"""What the labels teach: memorised noise against what is known, and complexity against shuffles."""

import math

import numpy as np
import pytest

from natwise.audit import network
from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import label_memory
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table
from natwise.result import Result

N, K = 300, 3
RNG = np.random.default_rng(0)
RIGHT = np.arange(N) % K
X = 4 * np.eye(K, 5)[RIGHT] + RNG.standard_normal((N, 5))
WRONG = RNG.random(N) < 0.2
LABELS = np.where(WRONG, (RIGHT + 1) % K, RIGHT)


def issues(models, noise=0.2, **params):
    """Return what the answer on suspicious labels would say if it knew the noise."""
    known = dict.fromkeys(("estimated_noise", "estimated_noise_low", "estimated_noise_high"), noise)
    return Result(
        "audit/label_issues",
        arrays={"label_issue_score": WRONG.astype(float), "suggested_label": RIGHT},
        scalars={**known, "accuracy": 0.8, "review": int(WRONG.sum())},
        params={"models": models, "train_rows": 240, "too_much_noise": False, **params},
    )


def context(answered=None, labels=LABELS, with_network=True):
    table = make_table(X, labels)
    encoded, streams = encode(table.features), Streams(0)
    linear = network.linearise(table, encoded.X, streams.child("network"), Deadline(600)) if with_network else None
    return Context(table, encoded, streams, network=linear, answered={} if answered is None else answered)


@pytest.fixture(scope="module")
def answered():
    return label_memory.answer(context({"label_issues": issues(["logistic regression"])}), Deadline(600))


def test_a_stiff_model_memorises_nothing_and_trees_do(answered):
    memorised = dict(zip(answered.params["models"], answered.arrays["memorised"][0], strict=True))
    assert answered.params["models"][0] == "logistic regression"
    assert memorised["logistic regression"] < 0.1 < memorised["extra trees"]
    noise = -0.2 * math.log(0.2 / (K - 1)) - 0.8 * math.log(0.8)  # wrong labels spread over the other classes
    assert answered.scalars["noise_entropy"] == pytest.approx(noise)
    estimate, low, high = answered.arrays["memorised"]
    assert (low <= estimate).all()
    assert (estimate <= high).all()
    assert estimate.max() <= noise


def test_training_error_is_that_of_the_training_rows(answered):
    error = dict(zip(answered.params["models"], answered.arrays["training_error"], strict=True))
    assert error["logistic regression"] == pytest.approx(0.2, abs=0.05)
    assert error["extra trees"] < 0.15


def test_several_models_are_averaged():
    names = ["logistic regression", "extra trees"]
    found = label_memory.answer(context({"label_issues": issues(names)}, with_network=False), Deadline(600))
    assert found.params["models"][:3] == [" + ".join(names), *names]
    assert "complexity" not in found.scalars


def test_labels_are_easier_than_shuffles_and_corrected_ones_easier_still(answered):
    shuffled = answered.arrays["shuffled_complexity"]
    assert len(shuffled) == label_memory.MAX_SHUFFLES
    assert answered.scalars["reviewed_complexity"] < answered.scalars["complexity"] < shuffled.min()
    assert answered.params["summary"][-1].endswith("of what shuffled labels would cost.")


def test_complexity_is_that_of_the_definition(answered):
    kernel = np.asarray(context().network.information.ntk_, dtype=np.float64)
    kernel += label_memory.RIDGE * np.trace(kernel) / N * np.eye(N)
    targets = np.eye(K)[LABELS] - np.bincount(LABELS) / N
    raw = np.trace(targets.T @ np.linalg.solve(kernel, targets))
    assert answered.scalars["complexity"] == pytest.approx(math.sqrt(raw * np.trace(kernel)) / N, rel=1e-9)


def test_random_labels_are_as_hard_as_shuffles():
    found = label_memory.answer(context(labels=RNG.permutation(LABELS)), Deadline(600))
    shuffled = found.arrays["shuffled_complexity"]
    assert abs(found.scalars["complexity"] - shuffled.mean()) < 5 * shuffled.std()
    assert found.params["models"] == []  # nobody judged the labels


@pytest.mark.parametrize("extra", [{"too_much_noise": True}, {"unanswered": "no time"}])
def test_unknown_noise_is_not_memorised(extra):
    found = label_memory.answer(context({"label_issues": issues(["extra trees"], **extra)}), Deadline(600))
    assert not found.params["judged"]
    assert "memorised" not in found.arrays
    assert "complexity" in found.scalars


def test_no_time_is_said():
    with pytest.raises(Unanswered, match="--minutes"):
        label_memory.answer(context({"label_issues": issues(["extra trees"])}, with_network=False), Deadline(0.0))
