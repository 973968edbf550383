"""Re-measure, by exact enumeration, what single samples cannot bound and what pairs of samples can.

Only the problems of `pair-bound` and the two runs that are shown are drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from natwise.generalization.samplewise_limits import _study_figures
from natwise.generalization.samplewise_limits._constructions import (
    affine_parity_problem,
    balanced_labelling_problem,
    constant_on_training_set,
)
from natwise.generalization.samplewise_limits._problem import FiniteLearningProblem
from natwise.result import Result
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARITY = ((2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))
BALANCED = ((2, 4), (2, 6), (3, 6), (2, 8), (3, 8))
SHOWN = (4, 4)
N_RANDOM = {"ci": 200, "small": 2000}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    return _study_figures.draw(claim, result)


def problems() -> dict[str, FiniteLearningProblem]:
    """Return all constructions that are enumerated."""
    parity = {f"parity n={n} d={d}": affine_parity_problem(n, d) for n, d in PARITY}
    return parity | {f"balanced n={n} m={m}": balanced_labelling_problem(n, m) for n, m in BALANCED}


def data_coin_problem(n: int, d: int) -> FiniteLearningProblem:
    """Return affine parities whose coin, whether to err on all training samples or on none, comes from the data.

    Every sample carries one more fair bit, which no hypothesis looks at; the learner errs on all training samples
    where these bits add up to an odd number. One sample alone does not tell that sum if n >= 2. What the learner's
    posterior does on average then differs from the risk too, and not only what a single hypothesis does.
    """
    loss = np.repeat(affine_parity_problem(1, d).loss, 2, axis=1)
    n_points = loss.shape[1]
    wrong = loss.T.reshape(n_points, *[1] * (n - 1), len(loss))  # on the first sample, and so on all
    coin = np.indices((n_points,) * n).sum(axis=0) % 2  # of the last bits of all samples
    kernel = constant_on_training_set(loss, n) * (wrong == coin[..., None])
    kernel /= kernel.sum(axis=-1, keepdims=True)
    return FiniteLearningProblem(np.full(n_points, 1 / n_points), loss, kernel)


def random_problem(rng: np.random.Generator) -> FiniteLearningProblem:
    """Return a learning problem with nothing special about it; its learner is nearly deterministic."""
    n, points, hypotheses = rng.integers(1, 4), rng.integers(2, 5), rng.integers(2, 7)
    kernel = rng.dirichlet(np.full(hypotheses, 0.05), size=(points,) * n)
    return FiniteLearningProblem(
        rng.dirichlet(np.ones(points)), rng.random((hypotheses, points)).round(rng.integers(2)), kernel
    )


def _silent_samples(setting: Setting) -> Found:
    cases = problems()
    single = [max(problem.information(i) for i in range(problem.n_samples)) for problem in cases.values()]
    scalars = {
        "largest_sample_information": max(single),
        "smallest_pair_information": min(problem.information((0, 1)) for problem in cases.values()),
        "largest_samplewise_bound": max(problem.samplewise_bound() for problem in cases.values()),
    }
    arrays = {"sample_information": np.array(single), **_story(setting)}
    return Found(arrays, scalars, {"cases": list(cases), "shown": SHOWN})


def _constant_gap(setting: Setting) -> Found:
    cases = problems()
    moments = [problem.gap_moments() for problem in cases.values()]
    scalars = {
        "smallest_probability": min(problem.gap_tail(0.5) for problem in cases.values()),
        "largest_expected_gap": max(abs(moment["E_gap"]) for moment in moments),
        "smallest_squared_gap": min(moment["E_gap2"] for moment in moments),
        "largest_samplewise_bound": max(problem.samplewise_bound() for problem in cases.values()),
    }
    return Found(_story(setting), scalars, {"shown": SHOWN})


def _story(setting: Setting) -> dict[str, np.ndarray]:
    """Return two runs, right and wrong on their training sets, and the information in one, two, … of the samples.

    Training points are (2, n), losses on all points (2, n_points).
    """
    n, d = SHOWN
    problem = affine_parity_problem(n, d)
    rng = setting.streams.numpy("runs")
    kernel = problem.kernel.reshape(*[problem.n_points] * n, -1)
    training: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    while len(training) < 2:
        points = rng.choice(problem.n_points, n, replace=False)
        loss = problem.loss[rng.choice(problem.n_hypotheses, p=kernel[tuple(points)])]
        if loss[points[0]] == len(training):
            training.append(points)
            losses.append(loss)
    information = [problem.information(range(size)) for size in range(1, n + 1)]
    return {
        "information": np.array(information),
        "training_points": np.array(training),
        "losses": np.array(losses),
    }


def _pair_formula(setting: Setting) -> Found:
    measured, formula = [], []
    cases = problems()
    for problem in cases.values():
        m = problem.n_points
        measured.append(problem.information((0, problem.n_samples - 1)))
        formula.append((1 - 1 / m) * math.log((m - 1) / (m / 2 - 1)))
    error = float(np.abs(np.subtract(measured, formula)).max())
    arrays = {"measured": np.array(measured), "formula": np.array(formula)}
    scalars = {"largest_error": error, "smallest": min(measured), "log_2": math.log(2)}
    return Found(arrays, scalars, {"cases": list(cases)})


def _pair_bound(setting: Setting) -> Found:
    """Compare with 200 random problems ("ci") or 2000."""
    rng, n_random = setting.streams.numpy("problems"), N_RANDOM[setting.scale]
    cases = [*problems().values(), *(random_problem(rng) for _ in range(n_random))]
    squared = np.array([problem.gap_moments()["E_gap2"] for problem in cases])
    tight = np.array([problem.pairwise_bound("tight") for problem in cases])
    full = np.array([problem.full_sample_bound() for problem in cases])
    expected = np.array([problem.samplewise_bound() - abs(problem.gap_moments()["E_gap"]) for problem in cases])
    scalars = {
        "smallest_slack": float((tight - squared).min()),
        "smallest_slack_full_sample": float((full - squared).min()),
        "smallest_slack_expected": float(expected.min()),
        "share_where_pairs_beat_full": float((tight < full).mean()),
    }
    constructed = np.arange(len(cases)) < len(cases) - n_random
    arrays = {"squared_gap": squared, "pairwise": tight, "constructed": constructed}
    return Found(arrays, scalars, {"random_problems": n_random})


def _samplewise_analogue(setting: Setting) -> Found:
    """Put single samples in the place of pairs: the formula is then smaller than what it should bound."""
    problem = balanced_labelling_problem(5, 10)
    n = problem.n_samples
    analogue = (1 + sum(math.sqrt(2 * problem.information(i)) for i in range(n))) / n
    scalars = {
        "squared_gap": problem.gap_moments()["E_gap2"],
        "samplewise_analogue": analogue,
        "pairwise_tight": problem.pairwise_bound("tight"),
        "full_sample": problem.full_sample_bound(),
    }
    scalars["excess"] = scalars["squared_gap"] - analogue
    return Found(scalars=scalars, params={"n_samples": n, "points": problem.n_points})


def _posterior_mean(setting: Setting) -> Found:
    problem, private = data_coin_problem(3, 3), affine_parity_problem(3, 3)
    scalars = {
        "probability": problem.gap_tail(0.5, over="posterior_mean"),
        "probability_private_coin": private.gap_tail(0.5, over="posterior_mean"),
        "probability_private_coin_rms": private.gap_tail(0.5, over="posterior"),
        "largest_sample_information": max(problem.information(i) for i in range(3)),
        "pair_information": problem.information((0, 1)),
        "squared_gap": problem.gap_moments()["E_gap2"],
    }
    return Found(scalars=scalars, params={"n_samples": 3, "d": 3})


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "silent-samples": _silent_samples,
    "constant-gap": _constant_gap,
    "pair-formula": _pair_formula,
    "pair-bound": _pair_bound,
    "samplewise-analogue": _samplewise_analogue,
    "posterior-mean": _posterior_mean,
}
STUDY = Study("generalization.samplewise_limits", MEASUREMENTS)
run = STUDY.run
