"""Which labels are probably wrong? Models that never saw a row judge its label; planting says how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.audit.context import Context, Deadline
from natwise.audit.mixing import Planting, choose_weight, mean_aurocs, mix
from natwise.audit.models import FLOOR, N_FOLDS, Choice, affordable_rows, blend, choose, make_folds
from natwise.audit.planting import Expectation, expect, plant
from natwise.core.random import Streams
from natwise.result import Result

PLANTINGS = 4
SHOWN = 30
TOO_MUCH_NOISE = 0.5  # an estimate beyond says more about the model than about the labels


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Out-of-fold probabilities, scores and what made them, and the scores of planted mistakes (runs, rows).

    `weight` is that of functional information in the scores, chosen by `aurocs`, those of the planted mistakes.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    choice: Choice
    max_train: int
    planted: np.ndarray
    background: np.ndarray
    weight: float
    aurocs: dict[float, float]


def answer(context: Context, deadline: Deadline) -> Result:
    """Return ``label_issue_score`` per row (0 to 1, larger is worse) and the precision to expect at each cut."""
    table = context.table
    streams = context.streams.child("label_issues")
    fitted = _fit(context, streams, deadline)
    scores = fitted.scores
    cuts = _cuts(len(table))
    expected = expect(len(table), fitted.planted, fitted.background, cuts, streams)
    review = _review(expected)
    order = np.argsort(-scores, kind="stable")
    given = fitted.probabilities[np.arange(len(table)), table.labels]
    arrays = {
        "label": table.labels,
        "label_issue_score": scores,
        "suggested_label": fitted.probabilities.argmax(axis=1),
        "given_label_probability": given,
        "most_suspicious": order[:SHOWN],
        "cuts": cuts,
        "precision": expected.precision,
        "recall": expected.recall,
    }
    accuracy = float((arrays["suggested_label"] == table.labels).mean())
    scalars = {
        "estimated_noise": expected.noise[0],
        "estimated_noise_low": expected.noise[1],
        "estimated_noise_high": expected.noise[2],
        "accuracy": accuracy,
        "accuracy_se": float(np.sqrt(accuracy * (1 - accuracy) / len(table))),
        "review": review,
        "review_precision": float(np.interp(review, cuts, expected.precision[0])),
    }
    if table.planted is not None:
        arrays["planted"] = table.planted
        arrays["precision_known"] = np.cumsum(table.planted[order])[cuts - 1] / cuts
        scalars |= _against_planted(scores, table.planted)
    if table.image_shape is not None:
        arrays["thumbnails"] = context.thumbnails(order[:SHOWN])
    n_train = len(table) * 4 // 5
    return Result(
        "audit/label_issues",
        arrays=arrays,
        scalars=scalars,
        rows=table.ids,
        params={
            "classes": table.classes,
            "model": " + ".join(fitted.choice.names),
            "models": fitted.choice.names,
            "log_losses": fitted.choice.losses,
            "pilot_rows": fitted.choice.rows,
            "information_weight": fitted.weight,
            "planting_aurocs": {f"{weight:g}": auroc for weight, auroc in fitted.aurocs.items()},
            "plantings": len(fitted.planted),
            "planted_per_run": fitted.planted.shape[1],
            "train_rows": min(fitted.max_train, n_train),
            "n_train": n_train,
            "rows_wrong": round(expected.noise[0] * len(table)),
            "too_much_noise": bool(expected.noise[0] > TOO_MUCH_NOISE),
            "planted_known": "planted_auroc" in scalars,
            "target": context.target,
            "summary": _summary(scalars, len(table), context.target),
        },
        warnings=_warnings(context, fitted, n_train),
    )


def _summary(scalars: dict[str, float], n: int, target: float | None) -> list[str]:
    noise, low, high = (scalars[f"estimated_noise{end}"] for end in ("", "_low", "_high"))
    review, precision = scalars["review"], scalars["review_precision"]
    range_ = f"{100 * low:.1f} to {100 * high:.1f} %"
    wrong = f"About {round(noise * n):,} of {n:,} labels look wrong ({100 * noise:.1f} %, 90 % interval {range_})"
    if noise > TOO_MUCH_NOISE:
        wrong = (
            f"Which of the {n:,} labels are wrong cannot be told: a default model contradicts too many of them, "
            "because most are wrong or because the columns do not determine them"
        )
    elif review:
        wrong += f"; start with the first {int(review):,} of the list, of which {100 * precision:.0f} % should be wrong"
    else:
        wrong += ", and no ranking finds them reliably"
    sentences = [f"{wrong}."]
    if "planted_auroc" in scalars:
        sentences.append(
            f"In this demo {round(scalars['planted_share'] * n):,} labels were made wrong on purpose, and the ranking "
            f"finds them with AUROC {scalars['planted_auroc']:.4f}."
        )
    accuracy = (
        f"A default model predicts the labels of rows it never saw with {100 * scalars['accuracy']:.1f} % accuracy"
    )
    if target is not None:
        reached = "reaches" if scalars["accuracy"] >= target else "does not reach"
        accuracy += f", which {reached} the target of {100 * target:g} %"
    return [*sentences, f"{accuracy}."]


def label_issue_score(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Return how strongly the out-of-fold probabilities contradict each label, between 0 and 1.

    :math:`s = \\sqrt{a} / (\\sqrt{a} + p)`, with p the probability of the given label and a that of the best other
    one (both + 0.001). Between self-confidence (1 - p), which is best for human mistakes among similar classes, and
    the odds a / p, which are best for mistakes at random. Rows of a class with fewer than 5 rows cannot be judged and
    get 0.5.
    """
    rows = np.arange(len(labels))
    rare = np.bincount(labels, minlength=probabilities.shape[1]) < N_FOLDS
    given = probabilities[rows, labels] + FLOOR
    others = probabilities.copy()
    others[rows, labels] = 0.0
    alternative = np.sqrt(others.max(axis=1) + FLOOR)
    return np.where(rare[labels], 0.5, alternative / (alternative + given))


def _fit(context: Context, streams: Streams, deadline: Deadline) -> _Fitted:
    X, labels, k = context.encoded.X, context.table.labels, len(context.table.classes)
    folds = make_folds(labels, context.row_hashes, streams.numpy("folds"))
    choice = choose(X, labels, k, folds, streams.child("choice"), deadline.share(0.35))
    max_train = affordable_rows(choice.seconds, choice.rows, 1 + PLANTINGS, deadline, len(labels))
    probabilities = blend(choice.names, X, labels, k, folds, streams, max_train)
    confusion = np.stack([probabilities[labels == c].mean(axis=0) for c in range(k)])
    rows = np.arange(len(labels))
    if max_train * 5 // 4 < len(labels):
        rows = np.sort(streams.numpy("planting-rows").choice(rows, max_train * 5 // 4, replace=False))
    runs: list[Planting] = []
    slowest = 0.0
    for run in range(PLANTINGS):
        if runs and deadline.left() < slowest:
            break
        before = deadline.left()
        noisy, flags = plant(labels[rows], confusion, streams.child(f"planting-{run}"))
        scores = label_issue_score(blend(choice.names, X[rows], noisy, k, folds[rows], streams, max_train), noisy)
        runs.append(Planting(scores, _information(context, rows, noisy), flags))
        slowest = max(slowest, before - deadline.left())
    aurocs = mean_aurocs(runs)
    weight = choose_weight(aurocs)
    return _Fitted(
        probabilities,
        mix(label_issue_score(probabilities, labels), _information(context, rows, labels), weight),
        choice,
        max_train,
        planted=np.array([run.mixed(weight)[run.flags] for run in runs]),
        background=np.array([run.mixed(weight)[~run.flags] for run in runs]),
        weight=weight,
        aurocs=aurocs,
    )


def _information(context: Context, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the functional information of rows that carry `labels`; empty unless the network knows all rows."""
    network = context.network
    if network is None or not len(rows) == len(network.rows) == len(context.table):
        return np.empty(0)
    return network.functional_information(labels)


def _cuts(n: int) -> np.ndarray:
    """Return numbers of rows to review, about evenly spaced on a logarithmic scale, up to half of all."""
    return np.unique(np.geomspace(min(5, n // 2), n // 2, 40).round().astype(np.int64))


def _review(expected: Expectation) -> int:
    """Return the cut up to which every further row is more likely wrong than right, or 0."""
    if expected.noise[0] > TOO_MUCH_NOISE:
        return 0
    gain = expected.cuts * (expected.precision[0] - 0.5)
    return int(expected.cuts[gain.argmax()]) if gain.max() > 0 else 0


def _against_planted(scores: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if planted.all() or not planted.any():
        return {}
    return {
        "planted_auroc": float(roc_auc_score(planted, scores)),
        "planted_average_precision": float(average_precision_score(planted, scores)),
        "planted_share": float(planted.mean()),
    }


def _warnings(context: Context, fitted: _Fitted, n_train: int) -> list[str]:
    found = []
    if fitted.max_train < n_train:
        found.append(
            f"To stay within the time, each model was trained on {fitted.max_train:,} rows chosen at random out of "
            f"{n_train:,}; every row still has a score. More minutes give sharper scores."
        )
    if len(fitted.planted) < PLANTINGS:
        found.append(f"The planting was done {len(fitted.planted)} instead of {PLANTINGS} times to stay within time.")
    rare = np.bincount(context.table.labels, minlength=len(context.table.classes)) < N_FOLDS
    if rare.any():
        found.append(f"Classes with fewer than {N_FOLDS} rows ({int(rare.sum()):,}) cannot be judged: score 0.5.")
    return found
