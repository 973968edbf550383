"""Checked inputs of a leave-one-out computation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from natwise.core.labels import check_labels
from natwise.core.linearized import Dynamics, LeaveOut, Spectrum, TrainingRule, check_fits, largest_without
from natwise.core.validation import check_array, check_integer, check_option, check_real

BATCH_BYTES = 2**27
LARGEST_ERROR = 1e100  # squares of larger ones overflow
_WAY_OUT = (
    "use one kernel for all outputs (SampleInformation(outputs='independent'), empirical_ntk(outputs='mean')), "
    "fewer samples, or a single output"
)


class GroupChanges(NamedTuple):
    """Changes of the dual solution, in the eigenbasis of the kernel, for some of the groups."""

    positions: np.ndarray
    coefficients: np.ndarray  # (n_channels, n_rows, n_groups)


@dataclass(frozen=True)
class Problem:
    """A linearised network, its training rule and the groups of samples to leave out.

    ``initial`` holds the predictions (n, k) at initialisation. ``residual`` is (n_rows, n_channels): one channel of n*k
    rows, or, when all outputs share an (n, n) kernel, k channels of n rows.
    """

    kernel: np.ndarray
    initial: np.ndarray
    residual: np.ndarray
    rule: TrainingRule
    n_samples: int
    n_outputs: int
    names: list[Any]
    members: list[np.ndarray]
    spectrum: Spectrum

    @property
    def dynamics(self) -> Dynamics:
        """The training on all samples."""
        return self.rule.dynamics(self.n_samples)

    def changes(self) -> Iterator[GroupChanges]:
        """Yield the effect of leaving out each group, a bounded number of groups at a time."""
        sizes = np.array([len(samples) for samples in self.members])
        n_rows, n_channels = self.residual.shape
        batch = max(1, BATCH_BYTES // (8 * n_rows * n_channels))
        for size in np.unique(sizes):
            positions = np.flatnonzero(sizes == size)
            after = self.rule.dynamics(self.n_samples, int(size))
            largest = self._largest_after(positions, after)
            leave_out = LeaveOut(self.spectrum, self.residual, self.dynamics, after, largest)
            for start in range(0, len(positions), batch):
                some = positions[start : start + batch]
                yield GroupChanges(some, leave_out.changes([self.rows(i) for i in some]))

    def rows(self, group: int) -> np.ndarray:
        """Return the rows of the kernel that belong to a group."""
        samples = self.members[group]
        per_sample = len(self.residual) // self.n_samples
        return (samples[:, None] * per_sample + np.arange(per_sample)).ravel()

    def _largest_after(self, positions: np.ndarray, after: Dynamics) -> float:
        """Bound the spectrum after the removals; look at each of them only where the simple bound is unstable."""
        largest = self.spectrum.largest
        if not after.diverges(largest):
            return largest
        largest = max(largest_without(self.kernel, self.rows(i)) for i in positions)
        _check_stable(self.rule, after, largest, self.n_samples, len(self.members[positions[0]]))
        return largest


def training_rule(t: Any, lr: Any, weight_decay: Any, dynamics: str, loss_reduction: str) -> TrainingRule:
    """Check the settings of the training."""
    flow = check_option("dynamics", dynamics, ("gd", "flow")) == "flow"
    check_option("loss_reduction", loss_reduction, ("mean", "sum", "official"))
    weight_decay = check_real("weight_decay", weight_decay, minimum=0.0)
    if t is None:
        return TrainingRule(None, 0.0, weight_decay, flow, loss_reduction)
    t = check_real("t", t, minimum=0.0) if flow else check_integer("t", t, minimum=0)
    if lr is None:
        raise ValueError("lr must be given when t is a number of steps, got None")
    lr = check_real("lr", lr, minimum=0.0, exclusive=True)
    return TrainingRule(t, lr, weight_decay, flow, loss_reduction)


def build_problem(ntk: Any, init_preds: Any, targets: Any, rule: TrainingRule, groups: Any = None) -> Problem:
    """Check kernel, predictions, targets and groups against each other and decompose the kernel."""
    n_rows = _kernel_rows(ntk)
    check_fits(f"a leave-one-out on a kernel of {n_rows:,} rows", 4 * 8 * n_rows**2, _WAY_OUT)
    targets, init_preds = check_targets(targets, init_preds)
    n, k = targets.shape
    if n < 2:
        raise ValueError(f"targets must have at least 2 samples to leave one out, got {n}")
    if n_rows not in (n * k, n):
        raise ValueError(
            f"ntk must have shape ({n * k}, {n * k}) for {n} samples and {k} outputs (sample-major), or ({n}, {n}) "
            f"when all outputs share it, got ({n_rows}, {n_rows})"
        )
    names, members = _groups(groups, n)
    kernel = check_array("ntk", ntk)
    spectrum = Spectrum.of(kernel)
    residual = (init_preds - targets).reshape(n_rows, -1)
    if abs(residual).max() > LARGEST_ERROR:
        raise ValueError(f"init_preds must be within {LARGEST_ERROR:g} of targets, got {abs(residual).max():g}")
    problem = Problem(kernel, init_preds, residual, rule, n, k, names, members, spectrum)
    _check_stable(rule, problem.dynamics, spectrum.largest, n, 0)
    if rule.t is None and rule.weight_decay == 0 and spectrum.rank < n_rows:
        warnings.warn(
            f"ntk is numerically singular (rank {spectrum.rank} of {n_rows}) and weight_decay is 0: converged "
            f"training uses the pseudo-inverse with rcond={spectrum.rcond:.1e}; a small weight_decay is more stable",
            UserWarning,
            stacklevel=4,
        )
    return problem


def check_targets(targets: Any, init_preds: Any, name: str = "targets") -> tuple[np.ndarray, np.ndarray]:
    """Return targets and initial predictions as float64 (n, k)."""
    targets = check_array(name, targets, dtype=np.float64)
    init_preds = check_array("init_preds", init_preds, dtype=np.float64)
    outputs = init_preds.shape[1] if init_preds.ndim == 2 else 1
    if targets.ndim == 1 and outputs > 1:
        raise ValueError(
            f"{name} must have shape ({len(targets)}, {outputs}), one column per output, got class labels of shape "
            f"{targets.shape}; one-hot encode them: numpy.eye({outputs})[labels]"
        )
    targets = targets[:, None] if targets.ndim == 1 else targets
    init_preds = init_preds[:, None] if init_preds.ndim == 1 else init_preds
    if targets.ndim != 2 or init_preds.shape != targets.shape:
        raise ValueError(
            f"init_preds and {name} must have the same shape (n_samples, n_outputs), got {init_preds.shape} and "
            f"{targets.shape}"
        )
    return targets, init_preds


def check_validation_kernel(ntk_val: Any, val_init_preds: Any, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel between validation and training rows, and the initial predictions (m, k), in float64."""
    n_rows = len(problem.kernel)
    kernel = check_array("ntk_val", ntk_val, shape=("n_val_rows", n_rows), dtype=np.float64)
    initial = check_array("val_init_preds", val_init_preds, dtype=np.float64)
    initial = initial[:, None] if initial.ndim == 1 else initial
    per_sample = n_rows // problem.n_samples
    fits = initial.ndim == 2 and initial.shape[1] == problem.n_outputs and len(kernel) == len(initial) * per_sample
    if not fits or not len(initial):
        raise ValueError(
            f"ntk_val must have {per_sample} rows and val_init_preds {problem.n_outputs} values per validation input, "
            f"got {len(kernel)} rows and predictions of shape {np.shape(val_init_preds)}"
        )
    return kernel, initial


def _kernel_rows(ntk: Any) -> int:
    """Return the number of rows of a square matrix, which may be a memory map."""
    shape = tuple(ntk.shape if hasattr(ntk, "shape") else check_array("ntk", ntk).shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"ntk must be a square matrix, got shape {shape}")
    return shape[0]


def _groups(groups: Any, n: int) -> tuple[list[Any], list[np.ndarray]]:
    """Return the names of the groups and the samples (m,) of each; without groups each sample is its own."""
    if groups is None:
        return list(range(n)), list(np.arange(n)[:, None])
    names, index = np.unique(check_labels("groups", groups, n, "sample", "biufU"), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups must hold at least 2 different labels, got only {names.tolist()}")
    return names.tolist(), [np.flatnonzero(index == i) for i in range(len(names))]


def _check_stable(rule: TrainingRule, dynamics: Dynamics, largest: float, n: int, n_removed: int) -> None:
    if dynamics.diverges(largest):
        limit = rule.largest_stable_lr(largest, n, n_removed)
        removed = f" once {n_removed} of {n} samples are left out" if n_removed else ""
        raise ValueError(
            f"lr must be below {limit:.6g}, else gradient descent diverges{removed} (largest kernel eigenvalue "
            f"{largest:.6g}), got {rule.lr:.6g}"
        )
