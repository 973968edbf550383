"""Runs on a supersample: what the predictions say about which half of each pair was trained on."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from natwise.core.information import ESTIMATORS, contingency_tables, mutual_information_from_counts
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option
from natwise.result import Result

from . import _readings, _resampling
from ._inputs import check_labels, check_losses, check_predictions, check_splits

DESIGNS = ("iid", "antithetic")
TARGETS = ("prediction", "loss_pair", "loss_difference", "loss")


def sample_supersample(n: int, n_splits: int = 30, random_state: RandomState = None, design: str = "iid") -> np.ndarray:
    """Draw which column of each of n pairs is trained on, for many runs.

    Parameters
    ----------
    n : int
        Number of pairs, the size of the training set.
    n_splits : int
        Number of runs.
    random_state : int, Generator, RandomState, Streams or None
        The same seed gives the same splits.
    design : {"iid", "antithetic"}
        Fair coins; or every second run is the complement of the one before, so that each pair has been split both
        ways equally often, which takes noise out of small numbers of runs. `n_splits` is even then.

    Returns
    -------
    ndarray of int64, shape (n_splits, n)
        0 or 1. With the 2n examples in pairs (2i, 2i + 1), run k trains on ``2 * arange(n) + S[k]``.

    Examples
    --------
    >>> sample_supersample(3, 4, random_state=0, design="antithetic").sum(axis=0)
    array([2, 2, 2])
    """
    n, n_splits = check_integer("n", n, minimum=1), check_integer("n_splits", n_splits, minimum=2)
    check_option("design", design, DESIGNS)
    rng = Streams.of(random_state).numpy("supersample")
    if design == "iid":
        return rng.integers(2, size=(n_splits, n))
    if n_splits % 2:
        raise ValueError(f"n_splits must be even for the antithetic design, got {n_splits}")
    half = rng.integers(2, size=(n_splits // 2, n))
    return np.stack([half, 1 - half], axis=1).reshape(n_splits, n)


class SupersampleRuns:
    """What many runs of one training recipe predicted on a supersample, and the bounds that follow.

    A supersample is 2n examples in n pairs. Run k trains on column ``S[k, i]`` of every pair i and predicts both
    columns. The bounds are on the gap between test and training error in the mean over training sets; they hold for
    any recipe, deterministic ones included, and say nothing about one trained model.

    Parameters
    ----------
    S : array-like of int, shape (n_splits, n) or (n_supersamples, n_splits, n)
        0 or 1: the column of each pair that was trained on.
    predictions : array-like of int, shape (…, n_splits, n, 2)
        Classes predicted for both columns. Scores go through `from_scores`.
    y : array-like of int, shape (…, n, 2)
        True classes.
    losses : array-like of shape (…, n_splits, n, 2), optional
        Losses in [0, 1]. Default: 1 where the prediction is wrong, else 0. Losses with many values read as much
        information as they have values: round them.

    Attributes
    ----------
    n, n_splits, n_supersamples : int
        Pairs, runs per supersample, supersamples.
    n_constant : int
        Pairs that were split the same way in all runs. Their information reads 0 whatever the truth: there is a
        UserWarning.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; for predictions that are no classes, for labels that differ between runs.

    Examples
    --------
    >>> S = sample_supersample(200, 30, random_state=0)
    >>> y = np.random.default_rng(0).integers(2, size=(200, 2))
    >>> trained = S[:, :, None] == [0, 1]
    >>> predictions = np.where(trained, y, 0)  # a recipe that memorises
    >>> runs = SupersampleRuns(S, predictions, y)
    >>> result = runs.bounds()
    >>> bool(result.scalars["gap"] <= result.scalars["tightest"] <= result.scalars["fcmi"])
    True
    """

    def __init__(self, S: ArrayLike, predictions: ArrayLike, y: ArrayLike, *, losses: ArrayLike | None = None):
        S = check_splits(S)
        self._single = S.ndim == 2
        predictions = check_predictions(predictions, S.shape)
        y = check_labels(y, S.shape)
        given = None if losses is None else check_losses(losses, S.shape)
        lead = (1,) if self._single else ()
        self.S, self.predictions, self.y = (array.reshape(lead + array.shape) for array in (S, predictions, y))
        self.losses = None if given is None else given.reshape(lead + given.shape)
        self.n_supersamples, self.n_splits, self.n = self.S.shape
        self.n_constant = int((self.S[:, :1] == self.S).all(axis=1).sum())
        if self.n_constant:
            warnings.warn(self._constant_words(), UserWarning, stacklevel=2)

    @classmethod
    def from_scores(cls, S: ArrayLike, scores: ArrayLike, y: ArrayLike) -> SupersampleRuns:
        """Make runs from logits or probabilities: the class of the largest score is the prediction.

        Parameters
        ----------
        S, y
            As for the class.
        scores : array-like of shape (…, n_splits, n, 2, n_classes)
            Any scores, of at least two classes.
        """
        S, scores = check_splits(S), check_array("scores", scores)
        if scores.shape[:-1] != (*S.shape, 2) or scores.shape[-1] < 2:
            expected = ", ".join(map(str, (*S.shape, 2)))
            raise ValueError(f"scores must have shape ({expected}, n_classes >= 2), got {scores.shape}")
        return cls(S, scores.argmax(axis=-1), y)

    def information(self, target: str = "prediction", estimator: str = "plugin") -> np.ndarray:
        """Return I(outputs on pair i; S_i) over the runs, in nats, for every pair.

        Parameters
        ----------
        target : {"prediction", "loss_pair", "loss_difference", "loss"}
            Outputs: both predictions (f-CMI), both losses (e-CMI), loss of column 1 less that of column 0 (ld), or the
            loss of column 0 alone.
        estimator : {"plugin", "miller_madow", "permutation"}
            The plug-in value is biased up, by about 0.05 for two classes and 30 runs, and is what a guarantee takes.
            The others subtract the bias: estimates, which can be negative; average them before clipping.

        Returns
        -------
        ndarray of float64, shape (n,), or (n_supersamples, n) when several supersamples were given
        """
        check_option("target", target, TARGETS)
        check_option("estimator", estimator, ESTIMATORS)
        information = mutual_information_from_counts(self._tables(self._codes(target)), estimator)
        return self._shaped(information.reshape(self.n_supersamples, self.n))

    def full_information(self, target: str = "prediction") -> float | np.ndarray:
        """Return the plug-in I(outputs on all pairs; S) per supersample: the m = n term.

        It cannot exceed log(n_splits), whatever the truth, so that it is exact when the runs are all 2^n splits (once
        or equally often), and no guarantee otherwise.

        Parameters
        ----------
        target : str
            As in `information`.
        """
        codes = self._codes(check_option("target", target, TARGETS))
        values = np.array([_readings.joint_information(s, c) for s, c in zip(self.S, codes, strict=True)])
        return float(values[0]) if self._single else values

    def conditional_information(self, target: str = "prediction") -> np.ndarray:
        """Return I(outputs on pair i; S_i | all other splits), of the stability version of the bound, per pair.

        Parameters
        ----------
        target : str
            As in `information`.

        Raises
        ------
        ValueError
            Unless for every run there is one that differs from it in S_i alone, as among all 2^n splits: the plug-in
            value would be 0.

        Returns
        -------
        ndarray of float64, shape (n,) or (n_supersamples, n)
        """
        codes = self._codes(check_option("target", target, TARGETS))
        values = [_readings.conditional_information(s, c) for s, c in zip(self.S, codes, strict=True)]
        return self._shaped(np.array(values))

    def pair_information(
        self, target: str = "loss_pair", n_pairs: int | None = None, random_state: RandomState = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return I(outputs on i and k; S_i, S_k) for pairs i < k: for `fcmi_bound` with m=2, `pair_squared_bound`.

        Its bias is 45 / (2 n_splits) for loss pairs that take all values: use it from about 200 runs.

        Parameters
        ----------
        target : str
            As in `information`.
        n_pairs : int, optional
            Take so many at random. Default: all.
        random_state : int, Generator, RandomState, Streams or None
            Chooses them.

        Returns
        -------
        pairs : ndarray of int64, shape (n_pairs, 2)
        information : ndarray of float64, shape (n_pairs,) or (n_supersamples, n_pairs)
            Plug-in values in nats.
        """
        codes = self._codes(check_option("target", target, TARGETS))
        if self.n < 2:
            raise ValueError("pair_information needs n >= 2 pairs of examples, got 1")
        first, second = np.triu_indices(self.n, 1)
        if n_pairs is not None:
            n_pairs = check_integer("n_pairs", n_pairs, minimum=1, maximum=len(first))
            chosen = np.sort(Streams.of(random_state).numpy("pairs").choice(len(first), n_pairs, replace=False))
            first, second = first[chosen], second[chosen]
        splits = 2 * self.S[..., first] + self.S[..., second]
        joined = codes[..., first] * (int(codes.max()) + 1) + codes[..., second]
        information = mutual_information_from_counts(contingency_tables(_by_run(splits), _by_run(joined)))
        return np.stack([first, second], axis=1), self._shaped(information.reshape(self.n_supersamples, -1))

    def bounds(self, estimator: str = "plugin") -> Result:
        """Return the gap and every bound on it.

        Parameters
        ----------
        estimator : {"plugin", "miller_madow", "permutation"}
            "plugin" reads a guarantee: conservative, since biased up. The others are estimates of what the bounds
            would be without the bias, without the bounds of other divergences, which have no correction.

        Returns
        -------
        Result
            Scalars, means over supersamples (with ``<name>_std`` when there are several): ``train_error``,
            ``test_error``, ``gap``;

            bounds on the gap ``fcmi``, ``ecmi``, ``ld_cmi``, ``ld_cmi_pooled`` (over supersamples), ``single_loss`` and
            ``single_loss_other`` (columns 0 and 1), ``fast_rate``, ``fast_rate_closed``, ``variance``, ``sharpness``,
            ``oracle_mi``, ``oracle_free_mi``, ``mi_tv``, ``hellinger``, ``hellinger_tv``, ``hellinger_tv_loose``,
            ``jsd``, ``chi2``, and ``fcmi_full`` and ``fcmi_conditional`` when the runs are all 2^n splits;

            bounds on the TEST error ``kl``, ``kl_ecmi``, ``linear``, ``linear_ecmi``, and ``interpolation`` and
            ``interpolation_single``, which hold without training errors only;

            ``tightest``, the least bound on the gap, bounds on the test error less the training error among them. A
            single loss and pooled supersamples bound the mean over supersamples only, and ``oracle_mi``, ``hellinger``,
            ``jsd`` and ``chi2`` take the measured gap of each pair as an input: they do not take part.
            ``params["reading"]`` is "guarantee" or "estimate", ``params["tightest"]`` names the least bound and
            ``params["bounds_on"]`` says of each what it bounds. Arrays ``information_<target>`` per pair, in nats.
        """
        check_option("estimator", estimator, ESTIMATORS)
        read = self._read(estimator)
        scalars = {name: float(np.mean(values)) for name, values in read.items()}
        scalars["tightest"], tightest = _readings.tightest(scalars)
        if self.n_supersamples > 1:
            scalars |= {f"{name}_std": float(np.std(values, ddof=1)) for name, values in read.items()}
        notes = [self._constant_words()] if self.n_constant else []
        if scalars["train_error"] > 0:
            notes.append("interpolation and interpolation_single hold without training errors only: no bounds here.")
        return Result(
            "generalization.fcmi/bounds",
            arrays={f"information_{target}": self.information(target, estimator) for target in TARGETS},
            scalars=scalars,
            params={
                "estimator": estimator,
                "reading": "guarantee" if estimator == "plugin" else "estimate",
                "tightest": tightest,
                "bounds_on": _readings.bounds_on(scalars),
                "n": self.n,
                "n_splits": self.n_splits,
                "n_supersamples": self.n_supersamples,
            },
            warnings=notes,
        )

    def permutation_null(
        self, n_permutations: int = 100, random_state: RandomState = None, estimator: str = "plugin"
    ) -> Result:
        """Return what the bounds read when the predictions hold no information: splits shuffled over the runs.

        Parameters
        ----------
        n_permutations : int
            How often to shuffle the splits of every pair, each pair by itself.
        random_state : int, Generator, RandomState, Streams or None
            The same seed gives the same shuffles.
        estimator : str
            As in `bounds`.

        Returns
        -------
        Result
            For every bound: scalars ``<name>`` (the mean reading), ``<name>_95`` (the level that 95 % stay below),
            ``<name>_p_value`` (share of readings that reach the measured one, the measured one counted) and
            ``<name>_excess`` (measured less mean reading: the permutation-corrected estimate), and all readings as
            arrays. Shuffling mixes training and test errors, so that bounds on the test error compare less well.
        """
        check_option("estimator", estimator, ESTIMATORS)
        return _resampling.permutation_null(
            self, check_integer("n_permutations", n_permutations, minimum=1), Streams.of(random_state), estimator
        )

    def bootstrap(
        self,
        n_resamples: int = 200,
        random_state: RandomState = None,
        estimator: str = "plugin",
        confidence: float = 0.95,
    ) -> Result:
        """Return how far the bounds would scatter with other runs: runs drawn again with replacement.

        Parameters
        ----------
        n_resamples : int
            How often to draw the runs.
        random_state : int, Generator, RandomState, Streams or None
            The same seed gives the same draws.
        estimator : str
            As in `bounds`.
        confidence : float
            Of the intervals, between 0 and 1.

        Returns
        -------
        Result
            For the gap and every bound: scalars ``<name>`` (the measured value), ``<name>_se``, ``<name>_low`` and
            ``<name>_high``. Repeated runs read more information than there is, so that the draws lie too high; the
            intervals are theirs moved down to the measured value. They do not cover other supersamples: give several.
        """
        check_option("estimator", estimator, ESTIMATORS)
        return _resampling.bootstrap(
            self,
            check_integer("n_resamples", n_resamples, minimum=2),
            Streams.of(random_state),
            estimator,
            confidence,
        )

    @cached_property
    def _losses(self) -> np.ndarray:
        if self.losses is not None:
            return self.losses
        return (self.predictions != self.y[:, None]).astype(np.int64)

    def _codes(self, target: str) -> np.ndarray:
        """Return the outputs on each pair as whole numbers, shape (n_supersamples, n_splits, n)."""
        if target == "prediction":
            classes = self.predictions - self.predictions.min()
            return (int(classes.max()) + 1) * classes[..., 0] + classes[..., 1]
        if target == "loss_difference":
            return _whole(self._losses[..., 1] - self._losses[..., 0])
        first, second = np.moveaxis(_whole(self._losses), -1, 0)
        if target == "loss_pair":
            return (int(second.max()) + 1) * first + second
        return first if target == "loss" else second  # "other_loss"

    def _tables(self, codes: np.ndarray) -> np.ndarray:
        """Return the table of S_i against the code of every pair, shape (n_supersamples * n, 2 or 1, n_codes)."""
        return contingency_tables(_by_run(self.S), _by_run(codes))

    def _read(self, estimator: str) -> dict[str, np.ndarray]:
        return _readings.read(self, estimator)

    def _with(self, S: np.ndarray, predictions: np.ndarray, losses: np.ndarray | None) -> SupersampleRuns:
        """Return runs with other splits or outputs, of the shapes of the class, without checks and warnings."""
        other = object.__new__(SupersampleRuns)
        vars(other).update(
            {name: value for name, value in vars(self).items() if name != "_losses"}
            | {"S": S, "predictions": predictions, "losses": losses, "n_splits": S.shape[1]}
        )
        return other

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """Return values (n_supersamples, …) without the first axis when one supersample was given without it."""
        return values[0] if self._single else values

    def _constant_words(self) -> str:
        return (
            f"S holds {self.n_constant} of {self.n * self.n_supersamples} pairs that were split the same way in all "
            f"{self.n_splits} runs; their information reads 0 whatever the truth."
        )

    def __repr__(self) -> str:
        return f"SupersampleRuns(n={self.n}, n_splits={self.n_splits}, n_supersamples={self.n_supersamples})"


def _by_run(values: np.ndarray) -> np.ndarray:
    """Return (n_supersamples, n_splits, n) as (n_splits, n_supersamples * n)."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def _whole(values: np.ndarray) -> np.ndarray:
    """Return numbers of any shape as they are when they are whole, else as ranks among the distinct ones, from 0."""
    if values.dtype.kind == "i":
        return values - min(int(values.min()), 0)
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)
