"""Which labels are probably wrong? Models that never saw a row judge its label; planting says how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.audit.context import Context, Deadline
from natwise.audit.flips import Flips, expected_precision, fit_flips
from natwise.audit.judging import of_rare_class, plant_mistakes, score
from natwise.audit.mixing import Planting, choose_weight, mean_aurocs, mix
from natwise.audit.models import N_FOLDS, Choice, affordable_rows, blend, choose, make_folds
from natwise.audit.planting import bound_noise, recall_at
from natwise.audit.swaps import fit_swaps
from natwise.core.random import Streams
from natwise.result import Result

PLANTINGS = 4
SHOWN = 30
SHOWN_PAIRS = 8
MAX_TEXT = 240
ENOUGH_CAUGHT = 0.5  # of planted mistakes
ENOUGH_AUROC = 0.85  # of planted mistakes in numbers: errors that hide them look like mistakes themselves
TOO_MUCH_NOISE = 0.5  # an estimate beyond says more about the model than about the labels


@dataclass(frozen=True, eq=False)
class _Expectation:
    """What to expect of a ranking: share of wrong labels, precision and recall by cut, with 90 % intervals.

    `noise` is (estimate, low, high); `precision` is (3, cuts) in the same order; `recall` (cuts,).
    """

    noise: np.ndarray
    cuts: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Out-of-fold predictions, scores and what made them, and the scores of planted mistakes (runs, rows).

    `weight` is that of functional information in the scores, chosen by `aurocs`, those of the planted mistakes.
    `caught` is by how much of what was planted the estimate of `flips` rises.
    """

    predictions: np.ndarray
    scores: np.ndarray
    choice: Choice
    max_train: int
    planted: np.ndarray
    background: np.ndarray
    weight: float
    aurocs: dict[float, float]
    caught: float


def answer(context: Context, deadline: Deadline) -> Result:
    """Return ``label_issue_score`` per row (0 to 1, larger is worse) and the precision to expect at each cut."""
    table = context.table
    streams = context.streams.child("label_issues")
    fitted = _fit(context, streams, deadline)
    scores = fitted.scores
    cuts = _cuts(len(table))
    order = np.argsort(-scores, kind="stable")
    expected, bound, wrong = _expect(context, fitted, order, cuts, streams)
    unknown = _cannot_tell(context, fitted, expected)
    review = 0 if unknown else _review(expected)
    shown = order[:SHOWN]
    arrays = {
        "label": table.labels,
        "label_issue_score": scores,
        "most_suspicious": shown,
        "cuts": cuts,
        "precision": expected.precision,
        "recall": expected.recall,
    } | wrong
    scalars = {
        "estimated_noise": expected.noise[0],
        "estimated_noise_low": expected.noise[1],
        "estimated_noise_high": expected.noise[2],
        "noise_bound": bound,
        "review": review,
        **{f"review_precision{end}": value for end, value in _at(review, cuts, expected).items()},
    }
    judged = _classes(context, fitted) if context.n_classes else _numbers(context, fitted, streams)
    arrays, scalars = arrays | judged[0], scalars | judged[1]
    if table.planted is not None:
        arrays["planted"] = table.planted
        arrays["precision_known"] = np.cumsum(table.planted[order])[cuts - 1] / cuts
        scalars |= _against_planted(scores, table.planted)
    if table.image_shape is not None:
        arrays["thumbnails"] = context.thumbnails(shown)
    n_train = len(table) * 4 // 5
    return Result(
        "audit/label_issues",
        arrays=arrays,
        scalars=scalars,
        rows=table.ids,
        params={
            **_method(context, fitted),
            "train_rows": min(fitted.max_train, n_train),
            "n_train": n_train,
            "rows_wrong": round(expected.noise[0] * len(table)),
            "too_much_noise": unknown,
            "planted_known": "planted_auroc" in scalars,
            **_confusions(context, arrays, order, review),
            "texts": [] if table.texts is None else [str(text)[:MAX_TEXT] for text in table.texts[shown]],
            "summary": _summary(context, fitted, scalars, unknown),
        },
        warnings=_warnings(context, fitted, n_train),
    )


def _expect(
    context: Context, fitted: _Fitted, order: np.ndarray, cuts: np.ndarray, streams: Streams
) -> tuple[_Expectation, float, dict[str, np.ndarray]]:
    """Return what to expect of the ranking (n,), the planted mistakes' bound on the noise, and arrays (n,).

    Noise and precision are those of `flips`, which allows for classes that overlap, or of `swaps`, which allows for
    numbers that cannot be predicted well; the array is each label's chance to be wrong.
    """
    bound = bound_noise(fitted.planted, fitted.background, streams)
    recall = recall_at(cuts, len(order), fitted.planted, fitted.background)
    predictions, labels = fitted.predictions, context.labels
    if context.n_classes:
        flips = _flips(predictions, labels, streams)
        missed_too = fitted.caught if ENOUGH_CAUGHT <= fitted.caught < 1 else 1.0
        flips = flips.up_to(max(flips.noise[2], bound[2]) / missed_too)
        noise, wrong = flips.noise, np.stack([flips.wrong(predictions, labels, which) for which in range(3)])
        wrong = np.where(of_rare_class(labels), noise[:, None], wrong)  # nothing more is known of them
    else:
        swaps = fit_swaps(predictions[:, 0], labels, streams)
        noise, wrong = swaps.noise, swaps.wrong
    expected = _Expectation(noise, cuts, expected_precision(wrong, order, cuts), recall)
    return expected, bound[0], {"wrong_probability": wrong[0]}


def _flips(predictions: np.ndarray, labels: np.ndarray, streams: Streams) -> Flips:
    """Fit `flips` to those rows of (n, k) that can be judged: all rows of a class not seen look wrong to a model."""
    judged = ~of_rare_class(labels)
    if not judged.any():
        judged[:] = True
    return fit_flips(predictions[judged], labels[judged], streams)


def _cannot_tell(context: Context, fitted: _Fitted, expected: _Expectation) -> bool:
    """Return whether the model knows too little of the labels: at chance, or of numbers too far from planted ones."""
    noise, low, high = expected.noise
    blind = not context.n_classes and fitted.aurocs[fitted.weight] < ENOUGH_AUROC
    return bool(blind or noise > TOO_MUCH_NOISE or high - low > TOO_MUCH_NOISE)


def _classes(context: Context, fitted: _Fitted) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the likeliest class (n,) and the probability of the given one (n,), and the accuracy."""
    labels, probabilities = context.table.labels, fitted.predictions
    suggested = probabilities.argmax(axis=1)
    accuracy = float((suggested == labels).mean())
    arrays = {"suggested_label": suggested, "given_label_probability": probabilities[np.arange(len(labels)), labels]}
    likely = (accuracy * len(labels) + 1) / (len(labels) + 2)  # rule of succession: all right is not certainly right
    return arrays, {"accuracy": accuracy, "accuracy_se": float(np.sqrt(likely * (1 - likely) / len(labels)))}


def _numbers(context: Context, fitted: _Fitted, streams: Streams) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the given and the predicted number (n,), and the share of variance that is predicted."""
    target, predicted = context.labels, fitted.predictions[:, 0]
    rng = streams.numpy("bootstrap-r2")
    squares = np.column_stack([(target - predicted) ** 2, (target - target.mean()) ** 2])
    draws = [squares[rng.integers(len(target), size=len(target))].mean(axis=0) for _ in range(50)]
    arrays = {"target": target, "suggested_value": predicted}
    return arrays, {
        "r2": float(1 - squares[:, 0].mean() / squares[:, 1].mean()),
        "r2_se": float(np.std([1 - error / variance for error, variance in draws])),
        "mean_absolute_error": float(np.abs(target - predicted).mean()),
        "mean_absolute_error_se": float(np.abs(target - predicted).std() / np.sqrt(len(target))),
    }


def _at(review: int, cuts: np.ndarray, expected: _Expectation) -> dict[str, float]:
    """Return the expected precision at one of the cuts (cuts,), with its interval."""
    ends = ("", "_low", "_high")
    return {end: float(np.interp(review, cuts, row)) for end, row in zip(ends, expected.precision, strict=True)}


def _method(context: Context, fitted: _Fitted) -> dict[str, Any]:
    return {
        "classes": context.table.classes,
        "is_regression": not context.n_classes,
        "model": " + ".join(fitted.choice.names),
        "models": fitted.choice.names,
        "losses": fitted.choice.losses,
        "pilot_rows": fitted.choice.rows,
        "information_weight": fitted.weight,
        "planting_aurocs": {f"{weight:g}": auroc for weight, auroc in fitted.aurocs.items()},
        "plantings": len(fitted.planted),
        "planted_per_run": fitted.planted.shape[1],
        "caught": fitted.caught,
        "enough_caught": fitted.caught >= ENOUGH_CAUGHT,
        "target": context.target,
    }


def _confusions(context: Context, arrays: dict[str, np.ndarray], order: np.ndarray, review: int) -> dict[str, Any]:
    """Return the commonest pairs of given and suggested class among the rows to review, or the first of the list."""
    rows = order[: max(review, SHOWN)]
    if not context.n_classes:
        return {"confusions": [], "confusion_rows": 0}
    pairs = np.column_stack([context.table.labels, arrays["suggested_label"]])[rows]
    found, counts = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:SHOWN_PAIRS]
    keys = ("given", "suggested", "rows")
    return {
        "confusions": [dict(zip(keys, (*found[i], counts[i]), strict=True)) for i in commonest],
        "confusion_rows": len(rows),
    }


def _summary(context: Context, fitted: _Fitted, scalars: dict[str, float], unknown: bool) -> list[str]:
    """Return a sentence on the labels and one on the model."""
    n, n_train = len(context.table), len(context.table) * 4 // 5
    a_model, too_few = context.a_model, ""
    if fitted.max_train < n_train:
        a_model += f", trained on {fitted.max_train:,} of {n_train:,} rows to stay within the time,"
        too_few = "it saw too few, because "
    noise, low, high = (scalars[f"estimated_noise{end}"] for end in ("", "_low", "_high"))
    review, precision = scalars["review"], scalars["review_precision"]
    wrong = (
        f"About {round(noise * n):,} of {n:,} labels look wrong ({100 * noise:.1f} %, 90 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %)"
    )
    if unknown:
        wrong = (
            f"Which of the {n:,} labels are wrong cannot be told: {a_model} contradicts too many of them, because "
            f"{too_few}most are wrong or because the columns do not determine them"
        )
    elif not round(noise * n):
        wrong = f"None of the {n:,} labels looks wrong (90 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    elif review:
        wrong += (
            f"; start with the first {int(review):,} of the list, of which {100 * precision:.0f} % should be wrong "
            f"({100 * scalars['review_precision_low']:.0f} to {100 * scalars['review_precision_high']:.0f} %)"
        )
    else:
        wrong += ", and no ranking finds them reliably"
    if "planted_auroc" in scalars:
        wrong += (
            f"; in this demo {round(scalars['planted_share'] * n):,} were made wrong on purpose, and the ranking finds "
            f"them with AUROC {scalars['planted_auroc']:.4f}"
        )
    return [f"{wrong}.", _model_sentence(context, a_model[0].upper() + a_model[1:], scalars)]


def _model_sentence(context: Context, a_model: str, scalars: dict[str, float]) -> str:
    if context.n_classes:
        value, spread, of, error = scalars["accuracy"], scalars["accuracy_se"], "", ""
        text = f"predicts the labels of rows it never saw with {100 * value:.1f} ± {100 * spread:.1f} % accuracy"
    else:
        value, spread, of = scalars["r2"], scalars["r2_se"], " R²"
        text = (
            f"predicts {100 * value:.1f} ± {100 * spread:.1f} % of the variance of the label (R²) on rows it never saw"
        )
        error = f"; its mean absolute error is {scalars['mean_absolute_error']:.3g}"
        error += f" ± {scalars['mean_absolute_error_se']:.1g}"
    if context.target is None:
        return f"{a_model} {text}{error}."
    reached = "reaches" if value >= context.target else "does not reach"
    return f"{a_model} {text}, which {reached} the target of {100 * context.target:g} %{of}{error}."


def _fit(context: Context, streams: Streams, deadline: Deadline) -> _Fitted:
    X, labels, codes, k = context.encoded.X, context.labels, context.table.labels, context.n_classes
    folds = make_folds(codes, context.row_hashes, streams.numpy("folds"))
    choice = choose(context.models, X, labels, k, folds, streams.child("choice"), deadline.share(0.35))
    chosen = {name: context.models[name] for name in choice.names}
    max_train = affordable_rows(choice.seconds, choice.rows, 1 + PLANTINGS, deadline, len(labels))
    predictions = blend(chosen, X, labels, k, folds, streams, max_train)
    rows = np.arange(len(labels))
    if max_train * 5 // 4 < len(labels):
        rows = np.sort(streams.numpy("planting-rows").choice(rows, max_train * 5 // 4, replace=False))
    runs: list[Planting] = []
    caught: list[float] = []
    before_planting = _flips(predictions[rows], codes[rows], streams).noise[0] if k else 0.0
    slowest = 0.0
    for run in range(PLANTINGS):
        if runs and deadline.left() < slowest:
            break
        before = deadline.left()
        noisy, flags = plant_mistakes(labels[rows], codes[rows], predictions[rows], streams.child(f"planting-{run}"))
        again = blend(chosen, X[rows], noisy, k, folds[rows], streams, max_train)
        runs.append(Planting(score(again, noisy), _information(context, rows, noisy), flags))
        if k:
            risen = _flips(again, noisy, streams).noise[0] - before_planting
            caught.append(risen / (flags.mean() * (1 - before_planting)))
        slowest = max(slowest, before - deadline.left())
    aurocs = mean_aurocs(runs)
    weight = choose_weight(aurocs)
    return _Fitted(
        predictions,
        mix(score(predictions, labels), _information(context, rows, labels), weight),
        choice,
        max_train,
        planted=np.array([run.mixed(weight)[run.flags] for run in runs]),
        background=np.array([run.mixed(weight)[~run.flags] for run in runs]),
        weight=weight,
        aurocs=aurocs,
        caught=float(np.mean(caught)) if caught else float("nan"),
    )


def _information(context: Context, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the functional information (n,) of rows that carry `labels`; (0,) unless the network knows all rows."""
    network = context.network
    if network is None or not len(rows) == len(network.rows) == len(context.table):
        return np.empty(0)
    return network.functional_information(labels)


def _cuts(n: int) -> np.ndarray:
    """Return numbers of rows to review, (cuts,), about evenly spaced on a logarithmic scale, up to half of all."""
    return np.unique(np.geomspace(min(5, n // 2), n // 2, 40).round().astype(np.int64))


def _review(expected: _Expectation) -> int:
    """Return the cut up to which every further row is more likely wrong than right, or 0."""
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
    rare = len(np.unique(context.table.labels[of_rare_class(context.table.labels)]))
    if rare and context.n_classes:
        found.append(f"Classes with fewer than {N_FOLDS} rows ({rare:,}) cannot be judged: score 0.5.")
    return found
