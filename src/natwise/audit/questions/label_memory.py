"""What models memorise of wrong labels, and how much easier these labels are to fit than shuffled ones."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from natwise.audit.context import OUT_OF_TIME, Context, Deadline, Unanswered, one_thread
from natwise.audit.models import MICRO_ROWS, default_models, fit_predict, timed
from natwise.audit.network import Network
from natwise.core.random import Streams
from natwise.result import Result

MIN_SECONDS = 1.0
GROWTH = 1.2  # a model's cost grows with about this power of the rows
RIDGE = 0.01  # of the kernel's mean eigenvalue: equal rows may carry different labels
MAX_SHUFFLES = 50
MAX_TARGETS = 2000  # one per class and shuffle
Z_90 = 1.645
WORTH_SAYING = 0.01  # nats per row


def answer(context: Context, deadline: Deadline) -> Result:
    """Return memorised label information (nats per row) by model, and the labels' complexity against shuffles."""
    deadline.require(MIN_SECONDS)
    streams = context.streams.child("label_memory")
    issues = _judged(context)
    names, found = ([], {}) if issues is None else _memorised(context, issues, streams, deadline)
    if context.network is not None:
        found |= _complexity(context, context.network, issues, streams)
    if not found:
        raise Unanswered(OUT_OF_TIME)
    scalars = {name: value for name, value in found.items() if not np.ndim(value)}
    return Result(
        "audit/label_memory",
        arrays={name: value for name, value in found.items() if np.ndim(value)},
        scalars=scalars,
        params={
            "models": names,
            "judged": issues is not None,
            "is_regression": not context.n_classes,
            "train_rows": 0 if issues is None else issues.params["train_rows"],
            "network_rows": 0 if context.network is None else len(context.network.rows),
            "summary": _summary(names, found, context.a_model),
        },
        warnings=_warnings(context),
    )


def _judged(context: Context) -> Result | None:
    """Return the answer on suspicious labels when it could tell how many labels are wrong."""
    issues = context.answered.get("label_issues")
    if not context.n_classes:
        return None  # Fano's inequality is for classes
    unknown = issues is None or "unanswered" in issues.params or issues.params["too_much_noise"]
    return None if unknown else issues


def _memorised(
    context: Context, issues: Result, streams: Streams, deadline: Deadline
) -> tuple[list[str], dict[str, Any]]:
    """Return the audit's model and its rivals, their training errors, and what these must have memorised.

    Without time for the audit's model, nothing.
    """
    chosen = issues.params["models"]
    rows = np.sort(streams.numpy("rows").permutation(len(context.table))[: issues.params["train_rows"]])
    fitted = _fit_all(context, chosen, rows, streams, deadline)
    if not set(chosen) <= set(fitted):
        return [], {}
    judged = {" + ".join(chosen): np.mean([fitted[name] for name in chosen], axis=0)} | fitted
    labels = context.table.labels[rows]
    errors = np.array([(probabilities.argmax(axis=1) != labels).mean() for probabilities in judged.values()])
    noise = np.array([issues.scalars[f"estimated_noise{end}"] for end in ("", "_low", "_high")])
    found = {
        "training_error": errors,
        "memorised": _information(errors, noise, len(context.table.classes), len(rows)),
        "unseen_error": 1 - issues.scalars["accuracy"],
        "estimated_noise": noise[0],
        "noise_entropy": _noise_entropy(noise[0], len(context.table.classes)),
    }
    return list(judged), found


def _fit_all(
    context: Context, chosen: list[str], rows: np.ndarray, streams: Streams, deadline: Deadline
) -> dict[str, np.ndarray]:
    """Return each model's probabilities (rows, k) of its training rows; models for which time is short are left out."""
    X, labels, k = context.encoded.X, context.table.labels, len(context.table.classes)
    found: dict[str, np.ndarray] = {}
    factories = {**{name: context.models[name] for name in chosen}, **default_models(k)}

    def fit(name: str, some: np.ndarray) -> np.ndarray:
        """Return the probabilities (some, k) that a model gives to the rows on which it was trained."""
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
            return fit_predict(factories[name], X[some], labels[some], X[some], k, streams.seed(name))

    for name in [*chosen, *(name for name in factories if name not in chosen)]:
        small = streams.numpy("small").permutation(rows)[:MICRO_ROWS]
        if len(np.unique(labels[small])) < 2:
            continue
        _, seconds = timed(lambda: fit(name, small))  # noqa: B023  # runs at once
        if seconds * (len(rows) / len(small)) ** GROWTH < deadline.left():
            found[name] = fit(name, rows)
    return found


def _information(errors: np.ndarray, noise: np.ndarray, k: int, n: int) -> np.ndarray:
    """Return memorised nats per row: estimate, low and high, shape (3, models).

    The ends combine those of the noise (estimate, low, high) with those of training errors on `n` rows.
    """
    from natwise.supervision import memorized_label_information

    spread = Z_90 * np.sqrt(errors * (1 - errors) / n)
    ends = zip((errors, errors + spread, errors - spread), noise, strict=True)
    return np.stack([memorized_label_information(error.clip(0, 1), _noise_entropy(rate, k), k) for error, rate in ends])


def _noise_entropy(rate: float, k: int) -> float:
    """Return the nats per row of wrong labels that are spread evenly over the other classes."""
    from natwise.supervision import UniformNoise, transition_entropy

    return transition_entropy(UniformNoise(min(rate, 1 - 1 / k)).transition_matrix(k))


def _complexity(context: Context, network: Network, issues: Result | None, streams: Streams) -> dict[str, Any]:
    """Return the supervision complexity of the given labels, of shuffles, and with the rows to review relabelled."""
    from natwise.supervision import FactoredKernel

    kernel = np.asarray(network.information.ntk_, dtype=np.float64)
    kernel = kernel + RIDGE * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    given, k = context.labels[network.rows], network.n_classes
    rng = streams.numpy("shuffles")
    n_shuffles = int(np.clip(MAX_TARGETS // max(k, 1), 10, MAX_SHUFFLES))
    labels = [given, *(rng.permutation(given) for _ in range(n_shuffles))]
    review = 0 if issues is None else int(issues.scalars["review"])
    if issues is not None and review:
        suspicious = np.argsort(-issues.arrays["label_issue_score"], kind="stable")[:review]
        corrected = context.table.labels.copy()
        corrected[suspicious] = issues.arrays["suggested_label"][suspicious]
        labels.append(corrected[network.rows])
    try:
        complexity = _adjusted(FactoredKernel(kernel), network.targets(np.stack(labels)))
    except ValueError:  # the rows are so alike that rounding decides about the kernel
        return {}
    found = {"complexity": complexity[0], "shuffled_complexity": complexity[1 : len(labels) - bool(review)]}
    return found | ({"reviewed_complexity": complexity[-1], "review": review} if review else {})


def _adjusted(kernel: Any, targets: np.ndarray) -> np.ndarray:
    """Return the adjusted complexity of labellings' targets (m, n, k); means, which cost nothing, are taken off."""
    from natwise.supervision import supervision_complexity

    targets = targets - targets.mean(axis=1, keepdims=True)
    per_class = targets.transpose(0, 2, 1).reshape(-1, kernel.size, 1)  # all outputs share the kernel
    raw = np.reshape(supervision_complexity(kernel, per_class, adjusted=False), targets.shape[::2]).sum(axis=1)
    return np.sqrt(raw * kernel.trace) / kernel.size


def _summary(names: list[str], found: dict[str, Any], a_model: str) -> list[str]:
    if names and found["memorised"][0, 0] >= WORTH_SAYING:
        return [
            f"Trained on these labels, {a_model} memorises at least {found['memorised'][0, 0]:.2f} (90 % interval "
            f"{found['memorised'][1, 0]:.2f} to {found['memorised'][2, 0]:.2f}) of the {found['noise_entropy']:.2f} "
            "nats per row that wrong labels hold."
        ]
    if "complexity" not in found:
        return []
    share = found["complexity"] / found["shuffled_complexity"].mean()
    return [f"To fit the labels costs a network {100 * share:.0f} % of what shuffled labels would cost."]


def _warnings(context: Context) -> list[str]:
    n, used = len(context.table), 0 if context.network is None else len(context.network.rows)
    return [f"The complexity is of {used:,} of {n:,} rows, chosen at random."] if 0 < used < n else []
