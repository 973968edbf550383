"""`SampleInformation`: from a network and data to scores, in one object."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from natwise.core.labels import check_labels
from natwise.core.linearized import as_inputs, check_evaluation_mode, empirical_ntk, flat_outputs, largest_without
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_flag, check_integer, check_option, check_real, check_same_length
from natwise.samples.unique_information._leave_one_out import leave_one_out
from natwise.samples.unique_information._problem import check_targets, training_rule
from natwise.samples.unique_information._smoothing import Smoothing

JOINT_ROWS = 1500
_WIDTH = 512
_BATCH = 256


class SampleInformation(BaseEstimator):
    """Unique information of every training sample, for a network linearised at its present weights.

    Parameters
    ----------
    module : torch.nn.Module, optional
        Network (b, ...) -> (b, k) in evaluation mode; it is not changed. Default: one hidden layer of 512 ReLU units
        on standardised features, drawn from `random_state`.
    t : int, float or None
        Full-batch gradient steps; None is converged training. See `leave_one_out` for this and what follows.
    lr : float, optional
        Learning rate; default half the largest stable one.
    weight_decay : float
        Decay toward the present weights, in the convention of `loss_reduction`.
    dynamics : {"gd", "flow"}
        Gradient descent or gradient flow.
    loss_reduction : {"mean", "sum", "official"}
        What `lr` and `weight_decay` refer to.
    smoothing : str or Smoothing
        Noise that turns weight changes into nats.
    outputs : {"auto", "joint", "independent"}
        ``joint`` is exact: one kernel of n * k rows. ``independent`` uses for every output the mean over the outputs
        of their own (n, n) kernels and lets them not interact: exact for a linear last layer, the limit for wide
        networks, and k^2 times less memory. ``auto`` is joint up to n * k = 1500.
    method : str
        Of `empirical_ntk`: ``"last_layer"`` treats the module as a linear model over frozen features.
    random_state : int, Generator or None
        Draws the default network.

    Attributes
    ----------
    functional_information_ : ndarray (n_samples,)
        F-SI in nats at sigma = 1: effect of a sample on the predictions for `X_val`.
    weight_information_ : ndarray (n_samples,)
        Information in the weights, in nats.
    predictions_, val_predictions_ : ndarray (n_samples, k), (n_val, k)
        Of the linearised network trained on all samples.
    left_out_predictions_ : ndarray (n_samples, k)
        For every sample, of the linearised network trained without it.
    ntk_, ntk_val_ : ndarray
        The kernels; (n, n) and (m, n) for independent outputs.
    init_predictions_, targets_ : ndarray (n_samples, k)
        Outputs at initialisation, and the targets as numbers.
    lr_, outputs_ : float or None, str
        What was used.
    classes_ : ndarray
        The classes, when the default network was trained on labels.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.arange(40) % 2
    >>> X = np.random.default_rng(0).normal(size=(40, 5)) + 4 * y[:, None]
    >>> y[7] = 0
    >>> int(SampleInformation(random_state=0).fit(X, y).functional_information_.argmax())
    7
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        t: float | None = 10_000,
        lr: float | None = None,
        weight_decay: float = 0.0,
        dynamics: str = "gd",
        loss_reduction: str = "mean",
        smoothing: str | Smoothing = "isotropic",
        outputs: str = "auto",
        method: str = "auto",
        random_state: RandomState = None,
    ):
        self.module = module
        self.t = t
        self.lr = lr
        self.weight_decay = weight_decay
        self.dynamics = dynamics
        self.loss_reduction = loss_reduction
        self.smoothing = smoothing
        self.outputs = outputs
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any, X_val: Any = None) -> SampleInformation:
        """Score the samples (X, y).

        Parameters
        ----------
        X : array or tensor (n_samples, ...)
            Training inputs.
        y : array (n_samples, k) or (n_samples,)
            Float targets: 0/1 for one output, one-hot rows for several. The default network also takes class labels.
        X_val : array or tensor (n_val, ...), optional
            Inputs at which the effect on the predictions is measured; no labels are needed. Default: `X`.

        Returns
        -------
        SampleInformation
            Itself.
        """
        check_option("outputs", self.outputs, ("auto", "joint", "independent"))
        X, y = _checked_data(self, X, y)
        own = X_val is None
        X_val = X if own else _checked_validation(self, X_val, X.shape[1:])
        module, X, X_val, targets = self._prepare(X, y, X_val)
        initial, initial_val = outputs_of(module, X), outputs_of(module, X_val)
        self.targets_, self.init_predictions_ = check_targets(targets, initial, "y")
        n, k = self.targets_.shape
        joint = self.outputs == "joint" or (self.outputs == "auto" and (k == 1 or n * k <= JOINT_ROWS))
        self.outputs_ = "joint" if joint else "independent"
        kind: dict[str, Any] = {"method": self.method, "outputs": "all" if joint else "mean"}
        self.ntk_ = empirical_ntk(module, X, **kind)
        self.ntk_val_ = self.ntk_ if own else empirical_ntk(module, X_val, X, **kind)
        self.lr_ = self._learning_rate()
        result = leave_one_out(
            self.ntk_, self.ntk_val_, self.init_predictions_, initial_val, self.targets_, **self._training(self.lr_)
        )
        self.functional_information_ = result.arrays["functional_information"].copy()
        self.weight_information_ = result.arrays["weight_information"].copy()
        self.predictions_ = result.arrays["predictions"].copy()
        self.left_out_predictions_ = result.arrays["left_out_predictions"].copy()
        self.val_predictions_ = result.arrays["val_predictions"].copy()
        return self

    def redundancy_rank(self, step: float = 0.05, recompute: bool = True) -> np.ndarray:
        """Rank the samples by when they can be removed: 0 goes first, n - 1 stays longest.

        The least informative `step` of the *remaining* samples goes at a time. Scores do not add up (two copies of a
        sample are both uninformative, but not both removable), so they are recomputed from the kernel of the
        remaining samples unless `recompute` is False.

        Returns
        -------
        ndarray of int (n_samples,)
        """
        order = self._removal_order(1, step, recompute)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def summarize(self, keep: float, step: float = 0.05, recompute: bool = True) -> np.ndarray:
        """Choose a subset that trains almost as well: remove the least informative samples again and again.

        Parameters
        ----------
        keep : int or float
            How many samples to keep; a float in (0, 1] is a fraction.
        step : float
            Fraction of the remaining samples that is removed before scores are recomputed.
        recompute : bool
            False removes by the scores of the full data at once, which fails badly at high removal rates.

        Returns
        -------
        ndarray of int
            Indices of the kept samples, ascending.
        """
        check_is_fitted(self)
        n = len(self.targets_)
        if isinstance(keep, (float, np.floating)):
            fraction = check_real("keep", keep, minimum=0.0, maximum=1.0)
            keep = max(1, round(fraction * n)) if fraction > 0 else 0
        keep = check_integer("keep", keep, minimum=1, maximum=n)
        return np.sort(self._removal_order(keep, step, recompute)[n - keep :])

    def _removal_order(self, keep: int, step: float, recompute: bool) -> np.ndarray:
        """Return all samples (n,), first removed first, in the order of the last scores from `keep` on."""
        check_is_fitted(self)
        step = check_real("step", step, minimum=0.0, maximum=1.0, exclusive=True)
        left = np.argsort(self.functional_information_, kind="stable")
        if not check_flag("recompute", recompute):
            return left
        removed = []
        while len(left) > keep:
            count = min(max(1, int(step * len(left))), len(left) - keep)
            removed.append(left[:count])
            left = left[count:]
            if len(left) > max(keep, 2):
                left = left[np.argsort(self._scores_of(left), kind="stable")]
        return np.concatenate([*removed, left])

    def _scores_of(self, samples: np.ndarray) -> np.ndarray:
        """Return the functional information inside a subset; its kernel is a part of the full one."""
        per_sample = len(self.ntk_) // len(self.targets_)
        rows = (samples[:, None] * per_sample + np.arange(per_sample)).ravel()
        kernel = self.ntk_[np.ix_(rows, rows)]
        lr = self.lr_
        if lr is not None:  # the kernel of a subset may have a larger eigenvalue per sample
            lr = min(lr, 0.99 * self._stable_lr(kernel, len(samples), n_removed=1))
        k = self.targets_.shape[1]
        n_val = len(self.ntk_val_) // per_sample
        result = leave_one_out(
            kernel,
            self.ntk_val_[:, rows],
            self.init_predictions_[samples],
            np.zeros((n_val, k)),
            self.targets_[samples],
            **self._training(lr),
        )
        return result.arrays["functional_information"]

    def _prepare(self, X: np.ndarray, y: np.ndarray, X_val: np.ndarray) -> tuple[nn.Module, Any, Any, np.ndarray]:
        """Return the network, its inputs and the targets."""
        if self.module is not None:
            check_evaluation_mode(self.module)
            return self.module, X, X_val, check_array("y", y, dtype=np.float64)
        if X.ndim != 2:
            raise ValueError(f"X must have shape (n_samples, n_features) without a module, got {X.shape}")
        targets = self._encode(y)
        mean, spread = X.mean(axis=0), X.std(axis=0)
        spread[spread == 0] = 1.0
        k = 1 if targets.ndim == 1 else targets.shape[1]
        module = relu_network(X.shape[1], _WIDTH, k, Streams.of(self.random_state))
        return module, (X - mean) / spread, (X_val - mean) / spread, targets

    def _encode(self, y: np.ndarray) -> np.ndarray:
        """Return 0/1 for two classes and one-hot rows for more; other targets are taken as numbers."""
        if y.dtype.kind not in "UO":
            y = check_array("y", y)
            if type_of_target(y) not in ("binary", "multiclass"):
                return y
        self.classes_, index = np.unique(check_labels("y", y.ravel(), len(y)), return_inverse=True)
        return index.astype(np.float64) if len(self.classes_) <= 2 else np.eye(len(self.classes_))[index]

    def _learning_rate(self) -> float | None:
        if self.lr is not None or self.t is None:
            return self.lr
        return 0.5 * self._stable_lr(self.ntk_, len(self.targets_))

    def _stable_lr(self, kernel: np.ndarray, n: int, n_removed: int = 0) -> float:
        """Return the largest learning rate that is stable for a kernel (n_rows, n_rows); 1 when all are."""
        largest = largest_without(kernel.astype(np.float64), np.arange(0))
        rule = training_rule(self.t, 1.0, self.weight_decay, self.dynamics, self.loss_reduction)
        limit = rule.largest_stable_lr(largest, n, n_removed)
        return limit if np.isfinite(limit) else 1.0

    def _training(self, lr: float | None) -> dict[str, Any]:
        return {
            "t": self.t,
            "lr": lr,
            "weight_decay": self.weight_decay,
            "dynamics": self.dynamics,
            "loss_reduction": self.loss_reduction,
            "smoothing": self.smoothing,
        }


_DATA: dict[str, Any] = {"allow_nd": True, "dtype": "numeric"}


def outputs_of(module: nn.Module, X: Any) -> np.ndarray:
    """Return the outputs of a module on many samples as float64 (n, k)."""
    parameters = dict(module.named_parameters())
    inputs = as_inputs("X", X, parameters)
    with torch.no_grad():
        blocks = [flat_outputs(module, block) for block in inputs.split(_BATCH)]
    return torch.cat(blocks).double().cpu().numpy()


def _checked_data(estimator: BaseEstimator, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return X (n, ...) and y (n, ...) as arrays, tensors included."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    X = validate_data(estimator, _as_array(X), ensure_min_samples=2, **_DATA)
    y = np.asarray(_as_array(y))
    if y.ndim == 0 or y.size == 0:
        raise ValueError(f"y must have one row per sample, got shape {y.shape}")
    check_same_length(X=X, y=y)
    return X, y


def _checked_validation(estimator: BaseEstimator, X_val: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not len(check_array("X_val", X_val, shape=("n_val", *shape))):
        raise ValueError("X_val must hold at least one sample, got none")
    return validate_data(estimator, _as_array(X_val), reset=False, **_DATA)


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def relu_network(n_features: int, width: int, n_outputs: int, streams: Streams) -> nn.Sequential:
    """Build a network with one hidden layer and PyTorch's usual initialisation, from a generator of its own."""
    layers = [
        nn.utils.skip_init(nn.Linear, n_features, width),
        nn.utils.skip_init(nn.Linear, width, n_outputs),
    ]
    generator = streams.torch("module")
    with torch.no_grad():
        for layer in layers:
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
