"""`FailureModes`: the error on a held-out domain as a sum of four parts, and how far domains can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.validation import check_is_fitted

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_device, check_flag, check_integer, check_option, shorten
from natwise.shift._inputs import check_strength
from natwise.shift.failure_modes._domains import Domains, distinguishability
from natwise.shift.failure_modes._errors import PairedErrors
from natwise.shift.failure_modes._folds import (
    LogisticProbe,
    Probe,
    Rows,
    fit_predict,
    stratified_folds,
    unseen,
)
from natwise.shift.failure_modes._inputs import Problem, check_counts, check_problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("error", "balanced_error")
HELD_OUT = 10  # without cross-fitting every tenth row of the test domain is held out, as in the original


class FailureModes(BaseEstimator):
    """Why a classifier fails on a new domain: four parts that add up to its error there.

    The representation stays as it is; only linear heads ("probes") are fitted on it. With e'_0 the model's error on
    held-out data of its training domains, e'_1 that of a probe fitted on the test domain alone, e'_2 that of a probe
    fitted on all domains together (both on rows of the test domain that they did not see) and e'_3 the model's error
    on the test domain, the parts are e'_0, e'_1 - e'_0, e'_2 - e'_1 and e'_3 - e'_2. Parts can be negative: they are
    signed and never clipped (Galstyan et al., CVPR 2022).

    Parameters
    ----------
    probe : "logistic" or scikit-learn classifier
        The heads. "logistic" is multinomial logistic regression on the features as they are, fitted to convergence;
        a classifier is cloned for every fit, and must take `sample_weight` where domains differ in size.
    cv : int or None
        Folds of the test domain: each of its rows is judged by probes that were fitted on the other folds. None is
        the original's way without validation, for comparison only: e'_1 and the domain probes are scored on the rows
        they were fitted on, e'_2 on every tenth row of the test domain, which the joint probe does not see.
    metric : {"error", "balanced_error"}
        Share of wrong rows, or the mean of this share over classes, for domains in which one class prevails.
    C : float
        Inverse strength of the logistic probe's L2 penalty, as in scikit-learn; infinity for none, which makes the
        parts independent of invertible affine maps of the features. Scale the features before, as for any ridge.
    distinguishability : bool
        Also fit the domain probes, most of the work. Without, one training domain is enough.
    n_bootstrap : int
        Replicates behind the standard errors: rows of both sets are drawn again, probes are not fitted again.
    device : str or torch.device
        Where logistic probes are fitted.
    random_state : int, Generator, RandomState, Streams or None
        Draws folds and replicates. The default is a fixed number: a diagnosis should not change when repeated.

    Attributes
    ----------
    parts_ : ndarray of shape (4,)
        Training-set underfitting, test-set inseparability, training-test misalignment, classifier non-invariance.
    cumulative_ : ndarray of shape (4,)
        e'_0 to e'_3: `parts_` summed up.
    se_, cumulative_se_ : ndarray of shape (4,)
        Their bootstrap standard errors.
    bootstrap_parts_ : ndarray of shape (n_bootstrap, 4)
        The parts of every replicate; each row sums to that replicate's test error.
    distinguishability_ : ndarray of shape (3,)
        d_0: K-way accuracy of telling the K training domains apart, above chance 1/K; d_1: what is added when one
        training domain is replaced by the test domain, averaged over which; d_2: what is added when that is done
        within classes. Domains weigh the same, whatever their sizes.
    distinguishability_se_ : ndarray of shape (3,)
        Standard errors, of rows within domains and classes.
    domain_accuracies_ : ndarray of shape (3,)
        The three accuracies themselves, I_0 to I_2.
    majority_error_ : float
        Error of always naming the commonest class of the test domain: what "inseparable" means there.
    diagnostics_ : dict of str to float
        ``e0_probe``: e'_0 with a probe refitted on the training domains in the place of the model's head;
        ``fitted_test``, ``fitted_joint``: errors of the probes of e'_1 and e'_2 on the rows they were fitted on.
    classes_, domains_ : ndarray
        Class labels and ids of the training domains.
    n_features_in_ : int
        Width of the representation.

    Notes
    -----
    Differences from the original code: probes converge (its SGD probe stops far from the optimum on small data),
    test rows are cross-fitted where it took the best validation score over epochs or scored the fitted rows, I_1 is
    averaged over replacements where it replaced domain 0, chance is 1/K by weighting, inputs are left alone.
    Folds depend on the rows' values, not on their order, so that a permutation of the samples changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y, y_new = rng.integers(2, size=400), rng.integers(2, size=200)
    >>> Z, Z_new = np.eye(2)[y], np.eye(2)[1 - y_new]
    >>> modes = FailureModes().fit(Z, y, rng.integers(2, size=400), Z_new, y_new, y, y, 1 - y_new)
    >>> modes.cumulative_[[0, 1, 3]], bool(modes.parts_[2] > 0.5)
    (array([0., 0., 1.]), True)
    """

    def __init__(
        self,
        probe: Any = "logistic",
        cv: int | None = 5,
        metric: str = "error",
        *,
        C: float = 1.0,
        distinguishability: bool = True,
        n_bootstrap: int = 1000,
        device: Any = "cpu",
        random_state: RandomState = 0,
    ):
        self.probe = probe
        self.cv = cv
        self.metric = metric
        self.C = C
        self.distinguishability = distinguishability
        self.n_bootstrap = n_bootstrap
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        Z_train: Any,
        y_train: Any,
        domain: Any,
        Z_test: Any,
        y_test: Any,
        y_pred_id: Any,
        y_id: Any,
        y_pred_test: Any,
        *,
        test_domain: Any = None,
    ) -> FailureModes:
        """Measure the parts.

        Parameters
        ----------
        Z_train : array-like of shape (n_train, n_features)
            Representations of labelled data from the training domains.
        y_train : array-like of shape (n_train,)
            Their classes: integers or text.
        domain : array-like of shape (n_train,)
            Their domains: integers or text, at least two.
        Z_test, y_test : array-like of shape (n_test, n_features) and (n_test,)
            The same for the test domain; used to diagnose, not to train the model.
        y_pred_id, y_id : array-like of shape (n_id,)
            The model's predictions on data of the training domains that it was not fitted on, and the true classes.
        y_pred_test : array-like of shape (n_test,)
            The model's predictions on `Z_test`.
        test_domain : int or str, optional
            Id of the test domain, to be sure that it is none of `domain`.

        Raises
        ------
        TypeError
            For text or floats where ids are expected.
        ValueError
            For NaN, wrong lengths, unknown classes, a single training domain, or a class with fewer than `cv` rows in
            a domain.
        """
        probe = self._check_options()
        problem = check_problem(Z_train, y_train, domain, Z_test, y_test, y_pred_id, y_id, y_pred_test, test_domain)
        self._check_counts(problem)
        streams = Streams.of(self.random_state)
        Z = np.concatenate([problem.Z_train, problem.Z_test])
        rows = Rows.of(Z, check_device("device", self.device))
        self.classes_, self.domains_, self.n_features_in_ = problem.classes, problem.domains, Z.shape[1]
        self._decompose(probe, problem, rows, streams)
        if self.distinguishability:
            numbers_ = np.append(problem.domain, np.full(len(problem.Z_test), len(problem.domains)))
            domains = Domains(rows, np.append(problem.y_train, problem.y_test), numbers_)
            found = distinguishability(probe, domains, self.cv, streams.numpy("domain folds"))
            self.distinguishability_, self.distinguishability_se_, self.domain_accuracies_ = found
        return self

    def plot(self) -> Figure:
        """Return a figure: from part to part up to the test error, and from domain accuracy to domain accuracy."""
        from natwise.shift.failure_modes._plot import draw

        check_is_fitted(self)
        return draw(self)

    def _check_options(self) -> Probe:
        check_option("metric", self.metric, METRICS)
        if self.cv is not None:
            check_integer("cv", self.cv, minimum=2)
        check_integer("n_bootstrap", self.n_bootstrap, minimum=2)
        check_flag("distinguishability", self.distinguishability)
        C = check_strength("C", self.C)
        check_device("device", self.device)
        if isinstance(self.probe, str):
            check_option("probe", self.probe, ("logistic",))
            return LogisticProbe(C)
        if not isinstance(self.probe, BaseEstimator) or not is_classifier(self.probe):
            raise TypeError(f"probe must be 'logistic' or a scikit-learn classifier, got {shorten(self.probe)}")
        return self.probe

    def _check_counts(self, problem: Problem) -> None:
        """Each class must be in each domain, and often enough for every fold."""
        n_classes, n_domains = len(problem.classes), len(problem.domains)
        fewest = self.cv or 1
        reason = f" for cv={self.cv}" if self.cv else ""
        test = np.bincount(problem.y_test, minlength=n_classes)
        check_counts(test[None], ["y_test"], problem.classes, fewest, reason)
        if not self.distinguishability:
            train = np.bincount(problem.y_train, minlength=n_classes)
            return check_counts(train[None], ["y_train"], problem.classes, fewest, reason)
        if n_domains < 2:
            only = shorten(problem.domains.tolist())
            raise ValueError(f"domain must hold at least two training domains, got 1: {only}")
        cells = np.bincount(problem.domain * n_classes + problem.y_train, minlength=n_domains * n_classes)
        names = [f"domain {shorten(name.item())}" for name in problem.domains]
        return check_counts(cells.reshape(n_domains, n_classes), names, problem.classes, fewest, reason)

    def _decompose(self, probe: Probe, problem: Problem, both: Rows, streams: Streams) -> None:
        """Set everything that the four errors tell."""
        balanced = self.metric == "balanced_error"
        wrong = self._probe_errors(probe, problem, both, streams, balanced)
        test = PairedErrors(problem.y_test, np.vstack([wrong, problem.pred_test != problem.y_test]), balanced)
        home = PairedErrors(problem.y_id, (problem.pred_id != problem.y_id)[None], balanced)
        self.cumulative_ = np.append(home.rates(), test.rates())
        replicates = np.hstack(
            [
                home.replicates(self.n_bootstrap, streams.numpy("bootstrap id")),
                test.replicates(self.n_bootstrap, streams.numpy("bootstrap test")),
            ]
        )
        self.parts_ = np.diff(self.cumulative_, prepend=0.0)
        self.bootstrap_parts_ = np.diff(replicates, prepend=0.0, axis=1)
        self.se_, self.cumulative_se_ = self.bootstrap_parts_.std(axis=0, ddof=1), replicates.std(axis=0, ddof=1)
        counts = np.bincount(problem.y_test)
        self.majority_error_ = float(1 - (1 / np.count_nonzero(counts) if balanced else counts.max() / counts.sum()))

    def _probe_errors(self, probe: Probe, problem: Problem, both: Rows, streams: Streams, balanced: bool) -> np.ndarray:
        """Return where the probes of e'_1 and e'_2 err on test rows (2, m), -1 where not asked; set diagnostics."""
        n, n_classes, n_folds = len(problem.y_train), len(problem.classes), self.cv or 1
        y = np.append(problem.y_train, problem.y_test)
        source_fold, fold, joint_fold = self._folds(problem, both.rank, streams)

        def run(rows: slice, held: np.ndarray, start: Any = None) -> tuple[np.ndarray, float, Any]:
            """Return where probes err on rows held out (on all, where none is), and their error on fitted rows.

            `held` is the fold of each of the rows, -1 for those that all probes are fitted on.
            """
            seen = np.arange(n_folds)[:, None] != held
            codes = np.broadcast_to(y[rows], seen.shape)
            found = fit_predict(probe, both[rows], codes, seen.astype(np.float64), n_classes, start)
            if (held < 0).all():
                wrong = found.codes[0] != y[rows]
            else:
                wrong = np.where(held < 0, -1, unseen(held, found.codes) != y[rows])
            return wrong, float((found.codes != codes)[seen].mean()), found.coefficients

        source, _, coefficients = run(slice(n), source_fold)
        alone, fitted_test, _ = run(slice(n, None), fold)
        joint, fitted_joint, _ = run(slice(None), np.append(np.full(n, -1), joint_fold), coefficients)
        self.diagnostics_ = {
            "e0_probe": float(PairedErrors(problem.y_train, source[None], balanced).rates()[0]),
            "fitted_test": fitted_test,
            "fitted_joint": fitted_joint,
        }
        return np.stack([alone, joint[n:]])

    def _folds(self, problem: Problem, rank: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the folds of the training rows, of the test rows, and of the test rows in the joint fits."""
        n, m = len(problem.y_train), len(problem.y_test)
        if self.cv is None:
            held = np.where(np.arange(m) % HELD_OUT == 0, 0, -1)
            return np.full(n, -1), np.full(m, -1), held
        strata = problem.domain * len(problem.classes) + problem.y_train
        source = stratified_folds(strata, rank[:n], self.cv, streams.numpy("source folds"))
        test = stratified_folds(problem.y_test, rank[n:], self.cv, streams.numpy("test folds"))
        return source, test, test
