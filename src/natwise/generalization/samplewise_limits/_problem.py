"""`FiniteLearningProblem`: every training set, hypothesis and gap of a small learning problem, enumerated."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from natwise.core.validation import check_array, check_integer, check_option, check_real, shorten
from natwise.generalization.samplewise_limits._enumeration import (
    BUDGET,
    check_budget,
    check_distributions,
    mutual_information,
    row_blocks,
)
from natwise.result import Result, provenance

_PAIR_FACTORS = {"published": 2.0, "tight": 0.5}
_ROUNDING = 1e-12  # a gap this close to a threshold has reached it


class FiniteLearningProblem:
    """A distribution of samples, a loss and a randomised learner, all finite, with exact information and gaps.

    A training set is n independent samples Z_1 … Z_n; the learner draws a hypothesis W from ``kernel[z_1, …, z_n]``.
    The gap is the risk of W less its mean loss on the training set. All expectations run over training sets and over
    the learner's own randomness; information is in nats.

    Parameters
    ----------
    pz : array-like of shape (n_points,)
        Probability of each point.
    loss : array-like of shape (n_hypotheses, n_points)
        Loss of each hypothesis on each point, in [0, 1].
    kernel : array-like of shape (n_points, …, n_points, n_hypotheses), or (n_points ** n, n_hypotheses)
        P(W | training set): one axis per sample, or all training sets as rows with the last sample moving fastest.
    budget : int
        Largest number of entries of `kernel` to enumerate, at 8 bytes each; checked before anything is computed.

    Attributes
    ----------
    n_samples, n_points, n_hypotheses : int
        Sizes of the problem.
    risks : ndarray of shape (n_hypotheses,)
        Expected loss of each hypothesis on a new sample.

    Raises
    ------
    ValueError, TypeError
        If probabilities are negative or do not sum to 1, a loss is outside [0, 1], shapes do not fit one another, or
        the budget is exceeded.

    Notes
    -----
    Harutyunyan, Ver Steeg and Galstyan, "Formal limitations of sample-wise information-theoretic generalization
    bounds", ITW 2022. There is no original code; memory beyond the kernel is constant.

    Examples
    --------
    The learner that remembers its one sample, a fair bit, as its prediction of every later bit:

    >>> problem = FiniteLearningProblem([0.5, 0.5], loss=[[0, 1], [1, 0]], kernel=[[1, 0], [0, 1]])
    >>> problem.gap_moments()
    {'E_gap': 0.5, 'E_absgap': 0.5, 'E_gap2': 0.25}
    >>> round(problem.information(0), 4), round(problem.samplewise_bound(), 4)
    (0.6931, 0.5887)
    """

    def __init__(self, pz: ArrayLike, loss: ArrayLike, kernel: ArrayLike, *, budget: int = BUDGET):
        budget = check_integer("budget", budget, minimum=1)
        self.pz = check_distributions("pz", pz, ("points",))
        self.n_points = len(self.pz)
        self.loss = check_array("loss", loss, dtype=np.float64, shape=("hypotheses", self.n_points))
        self.n_hypotheses = len(self.loss)
        if self.loss.size == 0 or self.loss.min() < 0 or self.loss.max() > 1:
            raise ValueError(f"loss must hold values between 0 and 1, got {shorten(self.loss.tolist())}")
        kernel = check_array("kernel", kernel, dtype=np.float64)
        self.n_samples = _count_samples(kernel.shape, self.n_points, self.n_hypotheses)
        check_budget(self.n_points, self.n_samples, self.n_hypotheses, budget)
        self.kernel = check_distributions("kernel", kernel).reshape(-1, self.n_hypotheses)
        self.risks = self.loss @ self.pz

    def __repr__(self) -> str:
        sizes = f"n_samples={self.n_samples}, n_points={self.n_points}, n_hypotheses={self.n_hypotheses}"
        return f"FiniteLearningProblem({sizes})"

    def information(self, subset: int | Collection[int]) -> float:
        """Return I(W; the training samples in `subset`).

        Parameters
        ----------
        subset : int or collection of int
            Positions in the training set, from 0: one, a pair, …, or ``range(n_samples)`` for all.

        Returns
        -------
        float
            Nats.
        """
        kept = _check_subset(subset, self.n_samples)
        rows = self.kernel.reshape(*[self.n_points] * self.n_samples, self.n_hypotheses)
        for axis in reversed(range(self.n_samples)):
            if axis not in kept:
                before = math.prod(rows.shape[:axis])
                rows = (self.pz @ rows.reshape(before, self.n_points, -1)).reshape(
                    rows.shape[:axis] + rows.shape[axis + 1 :]
                )
        return mutual_information(self._probabilities(len(kept)), rows.reshape(-1, self.n_hypotheses))

    def gap_moments(self) -> dict[str, float]:
        """Return the expected gap, absolute gap and squared gap: ``E_gap``, ``E_absgap`` and ``E_gap2``."""
        gap = absolute = squared = 0.0
        for weights, rows, gaps in self._blocks():
            gap += float(weights @ (rows * gaps).sum(1))
            absolute += float(weights @ (rows * np.abs(gaps)).sum(1))
            squared += float(weights @ (rows * gaps**2).sum(1))
        return {"E_gap": gap, "E_absgap": absolute, "E_gap2": squared}

    def gap_tail(self, threshold: float, *, over: str = "draw") -> float:
        """Return the probability that the gap reaches a threshold.

        Parameters
        ----------
        threshold : float
            At least 0; a gap within 1e-12 of it counts.
        over : {"draw", "posterior", "posterior_mean"}
            What is compared with it: ``|gap|`` of one draw of training set and hypothesis; or, with probability over
            training sets alone, its root mean square over the learner's randomness, or the absolute mean gap.
        """
        threshold = check_real("threshold", threshold, minimum=0.0) - _ROUNDING
        check_option("over", over, ("draw", "posterior", "posterior_mean"))
        total = 0.0
        for weights, rows, gaps in self._blocks():
            if over == "draw":
                total += float(weights @ (rows * (np.abs(gaps) >= threshold)).sum(1))
            elif over == "posterior":
                total += float(weights @ (np.sqrt((rows * gaps**2).sum(1)) >= threshold))
            else:
                total += float(weights @ (np.abs((rows * gaps).sum(1)) >= threshold))
        return min(total, 1.0)

    def samplewise_bound(self) -> float:
        """Return the bound on ``|E gap|`` from single samples: the mean over i of sqrt(I(W; Z_i) / 2).

        It holds for the expected gap alone: nothing of the kind bounds the expected squared gap.
        """
        return self.subset_bound(1)

    def subset_bound(self, size: int) -> float:
        """Return the bound on ``|E gap|`` from subsets of the samples.

        Parameters
        ----------
        size : int
            Samples m per subset. The bound is the mean over all subsets u of sqrt(I(W; Z_u) / 2m), which does not
            fall as m grows; m = n_samples gives that of Xu and Raginsky (2017), sqrt(I(W; S) / 2n).
        """
        size = check_integer("size", size, minimum=1, maximum=self.n_samples)
        subsets = itertools.combinations(range(self.n_samples), size)
        return float(np.mean([math.sqrt(self.information(subset) / (2 * size)) for subset in subsets]))

    def pairwise_bound(self, constant: str = "published") -> float:
        """Return the bound on ``E gap²`` from pairs: 1/n + (1/n²) times the sum over i ≠ k of sqrt(c I(W; Z_i, Z_k)).

        Parameters
        ----------
        constant : {"published", "tight"}
            c = 2, or 1/2, which holds as well since a product of two centred losses keeps within an interval of
            length 1.
        """
        check_option("constant", constant, tuple(_PAIR_FACTORS))
        roots = np.sqrt(_PAIR_FACTORS[constant] * self._pair_information)
        return float((1 + 2 * roots.sum() / self.n_samples) / self.n_samples)

    def full_sample_bound(self) -> float:
        """Return the bound on ``E gap²`` from the whole training set: (I(W; S) + log 3) / n."""
        return (self.information(range(self.n_samples)) + math.log(3)) / self.n_samples

    def single_draw_bound(self, delta: float = 0.05, constant: str = "published") -> float:
        """Return what ``|gap|`` exceeds with probability at most `delta` over one training set and hypothesis.

        It is sqrt(B / delta) with B the `pairwise_bound`, by Markov's inequality.

        Parameters
        ----------
        delta : float
            Probability of failure, strictly between 0 and 1.
        constant : {"published", "tight"}
            As in `pairwise_bound`.
        """
        delta = check_real("delta", delta, minimum=0.0, maximum=1.0, exclusive=True)
        return math.sqrt(self.pairwise_bound(constant) / delta)

    def pac_bayes_bound(self, delta: float = 0.05, constant: str = "published") -> float:
        """Return what the gap of the learner's posterior exceeds with probability at most `delta` over training sets.

        Both the root mean square over hypotheses and, by Jensen's inequality, the absolute mean are meant. Markov's
        inequality gives the value of `single_draw_bound`, whose parameters it shares.

        Parameters
        ----------
        delta, constant
            As in `single_draw_bound`.
        """
        return self.single_draw_bound(delta, constant)

    def bounds(self, delta: float = 0.05) -> Result:
        r"""Return the measured gaps beside every bound.

        Parameters
        ----------
        delta : float
            Probability of failure of the last two bounds.

        Returns
        -------
        Result
            Scalars ``E_gap, E_absgap, E_gap2``; bounds on \|E gap\|: ``samplewise, full_sample``; on E gap²:
            ``pairwise, pairwise_tight, full_sample_squared``; on the gap with probability 1 - delta: ``single_draw,
            pac_bayes``. Arrays ``sample_information`` (n,) and ``pair_information`` (n (n - 1) / 2,), in nats.
        """
        with provenance(data={"pz": self.pz, "loss": self.loss}) as record:
            single = np.array([self.information(i) for i in range(self.n_samples)])
            scalars = {
                **self.gap_moments(),
                "samplewise": float(np.sqrt(single / 2).mean()),
                "full_sample": self.subset_bound(self.n_samples),
                "pairwise": self.pairwise_bound(),
                "pairwise_tight": self.pairwise_bound("tight"),
                "full_sample_squared": self.full_sample_bound(),
                "single_draw": self.single_draw_bound(delta),
                "pac_bayes": self.pac_bayes_bound(delta),
            }
        arrays = {"sample_information": single, "pair_information": self._pair_information}
        sizes = {name: getattr(self, name) for name in ("n_samples", "n_points", "n_hypotheses")}
        params = {**sizes, "delta": float(delta)}
        return Result(
            "generalization.samplewise_limits", arrays=arrays, scalars=scalars, params=params, provenance=record
        )

    @cached_property
    def _pair_information(self) -> np.ndarray:
        return np.array([self.information(pair) for pair in itertools.combinations(range(self.n_samples), 2)])

    def _probabilities(self, n_samples: int) -> np.ndarray:
        """Return the probability of every tuple of `n_samples` points, the last moving fastest."""
        probabilities = np.ones(1)
        for _ in range(n_samples):
            probabilities = np.multiply.outer(probabilities, self.pz).ravel()
        return probabilities

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield, for some training sets at a time, their probability, their rows of the kernel and the gaps there."""
        probabilities = self._probabilities(self.n_samples)
        by_point = np.ascontiguousarray(self.loss.T)
        for block in row_blocks(*self.kernel.shape):
            training_sets = np.arange(block.start, block.stop)
            points = np.unravel_index(training_sets, (self.n_points,) * self.n_samples)
            mean_loss = sum(by_point[point] for point in points) / self.n_samples
            yield probabilities[block], self.kernel[block], self.risks - mean_loss


def _count_samples(shape: tuple[int, ...], n_points: int, n_hypotheses: int) -> int:
    """Return the number of training samples that a kernel of this shape is for."""
    if len(shape) == 2 and n_points > 1:  # rows are all training sets
        n_samples = max(round(math.log(max(shape[0], 1), n_points)), 1)
        fits = shape == (n_points**n_samples, n_hypotheses)
    else:
        n_samples = len(shape) - 1
        fits = n_samples >= 1 and shape == (n_points,) * n_samples + (n_hypotheses,)
    if not fits:
        raise ValueError(
            f"kernel must have one axis of length {n_points} per training sample and a last one of length "
            f"{n_hypotheses}, or shape ({n_points} ** n, {n_hypotheses}), got {shape}"
        )
    return n_samples


def _check_subset(subset: Any, n_samples: int) -> tuple[int, ...]:
    subset = subset.tolist() if hasattr(subset, "tolist") else subset  # an array, a tensor
    if isinstance(subset, numbers.Integral):
        subset = (subset,)
    if not isinstance(subset, Collection) or isinstance(subset, (str, bytes)):
        raise TypeError(f"subset must be an integer or several integers, got {shorten(subset)}")
    kept = tuple(check_integer("subset", position, minimum=0, maximum=n_samples - 1) for position in subset)
    if not kept or len(set(kept)) < len(kept):
        raise ValueError(f"subset must hold at least one sample and none twice, got {shorten(subset)}")
    return tuple(sorted(kept))
