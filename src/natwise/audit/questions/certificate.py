"""How far can the error on new rows lie above the training error? A bound from the runs of a default model."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.models import timed
from natwise.result import Result

MIN_TRAIN = 20
MAX_TRAIN = 2000
N_SPLITS = 30
N_PERMUTATIONS = 50  # as in the experiment
N_BOOTSTRAP = 50
READING_SECONDS = 4e-5  # per pair of rows, for all bounds once; twice what an idle core takes
SAFETY = 0.5
SHOWN = ("tightest", "fast_rate", "kl", "ld_cmi", "fcmi")
NAMES = {
    "fcmi": "f-CMI",
    "ecmi": "e-CMI",
    "ld_cmi": "loss difference",
    "fast_rate": "fast rate",
    "kl": "binary KL",
    "kl_ecmi": "binary KL of losses",
    "oracle_free_mi": "oracle-free f-information",
    "mi_tv": "f-information, total variation",
    "hellinger_tv": "Hellinger, total variation",
    "linear": "linear",
}


@dataclass(frozen=True)
class Plan:
    """What the certificate will cost: trainings on `n` rows, and the seconds that a pilot foretells."""

    n: int
    seconds: float

    def __str__(self) -> str:
        return f"{N_SPLITS} trainings on {self.n:,} rows each, about {max(self.seconds, 0.1):.1f} s"


def answer(context: Context, deadline: Deadline) -> Result:
    """Return the measured gap, the bounds on it, their reading at zero information and a verdict."""
    from natwise.generalization import run_supersample_experiment

    if not context.n_classes:
        raise Unanswered(
            "It is for classes: the bounds need errors that are 0 or 1 and predictions that can be counted. The label "
            "of this table is a number."
        )
    X, labels = np.nan_to_num(context.encoded.X), context.table.labels
    if len(labels) < 2 * MIN_TRAIN:
        raise Unanswered(f"It needs at least {2 * MIN_TRAIN} rows; this table has {len(labels)}.")
    plan = _plan(X, context, deadline)
    context.announce(f"Generalisation certificate: {plan}")
    model = context.kernel_or_own(X.shape[1], context.streams.child("certificate").seed("model"))
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=joblib.cpu_count()):
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        measured, seconds = timed(
            lambda: run_supersample_experiment(
                model,
                X,
                labels,
                plan.n,
                N_SPLITS,
                context.streams.child("certificate"),
                design="antithetic",
            )
        )
    scalars = _scalars(measured, context) | {"n": plan.n, "planned_seconds": plan.seconds, "seconds": seconds}
    verdict, reason = _verdict(scalars)
    tightest = measured.params["tightest"]
    return Result(
        "audit/certificate",
        scalars=scalars,
        params={
            "cost": str(plan),
            "verdict": verdict,
            "reason": reason,
            "tightest": NAMES.get(tightest, tightest.replace("_", " ")),
            "n_splits": N_SPLITS,
            "n_permutations": N_PERMUTATIONS,
            "rows": len(labels),
            "summary": [_sentence(scalars, verdict, context.a_model)],
        },
    )


def _plan(X: np.ndarray, context: Context, deadline: Deadline) -> Plan:
    """Return the largest training set of X (n, d) whose runs fit into the time, from trainings on few rows."""
    rng = context.streams.child("certificate").numpy("pilot")
    workers = max(1, min(joblib.cpu_count(), N_SPLITS))
    n = min(len(X) // 2, MAX_TRAIN)
    allowed = SAFETY * deadline.left()
    _one_run(context, X, MIN_TRAIN, rng)  # imports
    while True:
        deadline.require(_seconds(0.0, MIN_TRAIN, workers))
        _, pilot = timed(lambda: _one_run(context, X, n, rng))  # noqa: B023  # runs at once
        needed = _seconds(pilot, n, workers)
        if needed <= allowed:
            return Plan(n, needed)
        if n == MIN_TRAIN:
            deadline.require(math.inf)
        n = max(MIN_TRAIN, min(n // 2, int(n * allowed / needed)))


def _seconds(training: float, n: int, workers: int) -> float:
    return N_SPLITS * training / workers + (N_PERMUTATIONS + N_BOOTSTRAP + 1) * READING_SECONDS * n


def _one_run(context: Context, X: np.ndarray, n: int, rng: np.random.Generator) -> None:
    labels = context.table.labels
    rows = rng.permutation(len(labels))[: 2 * n]
    if len(np.unique(labels[rows[:n]])) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.kernel_or_own(X.shape[1], 0).fit(X[rows[:n]], labels[rows[:n]]).predict(X[rows])


def _scalars(measured: Result, context: Context) -> dict[str, float]:
    """Return what the page shows; bounds on the test error are turned into bounds on the gap."""
    from natwise.generalization import SupersampleRuns

    s, a = measured.scalars, measured.arrays
    wrong = a["predictions"] != a["y"]
    trained = np.take_along_axis(wrong, a["S"][..., None], axis=2)[..., 0].mean(axis=1)
    tested = wrong.mean(axis=(1, 2)) * 2 - trained
    runs = SupersampleRuns(a["S"], a["predictions"], a["y"])
    spread = runs.bootstrap(N_BOOTSTRAP, context.streams.child("certificate").seed("bootstrap")).scalars
    shown = {**{name: name for name in SHOWN if name != "tightest"}, "tightest": measured.params["tightest"]}
    kept = {name: s[name] - (s["train_error"] if name == "kl" else 0.0) for name in SHOWN}
    return {
        **{name: s[name] for name in ("train_error", "test_error", "gap")},
        "gap_se": float((tested - trained).std(ddof=1) / math.sqrt(len(trained))),
        "train_error_se": float(trained.std(ddof=1) / math.sqrt(len(trained))),
        "test_error_se": float(tested.std(ddof=1) / math.sqrt(len(tested))),
        **{f"{name}_se": spread[f"{bound}_se"] for name, bound in shown.items()},
        **kept,
        **{name: s[f"fcmi_{name}"] for name in ("null", "null_95", "p_value")},
    }


def _verdict(scalars: dict[str, float]) -> tuple[str, str]:
    if scalars["tightest"] > 1:
        return "vacuous", "no bound is below 1, which every gap is"
    if scalars["fcmi"] <= scalars["null_95"]:
        return "vacuous", (
            f"the f-CMI bound is no higher than what shuffled splits read: with {N_SPLITS} runs this is noise, "
            "and the information too small to be told from none"
        )
    return "informative", "the bounds are below 1 and stand out from what shuffled splits read"


def _sentence(s: dict[str, Any], verdict: str, a_model: str) -> str:
    gap, bound = f"{100 * s['gap']:.1f} ± {100 * s['gap_se']:.1f}", f"{100 * s['tightest']:.1f}"
    judged = ", which is vacuous" if s["tightest"] > 1 else ", vacuous: shuffled splits read as much"
    judged = "" if verdict == "informative" else judged
    return (
        f"On {s['n']:,.0f} rows, training makes {a_model}'s error {gap} points lower there than on new rows; "
        f"the tightest bound on this gap is {bound} points{judged}."
    )
