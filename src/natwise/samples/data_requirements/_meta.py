"""The piecewise power law from few points, with the curvature learned from other learning curves.

From points that all lie below the switching size, N cannot be found and the curvature is drowned in noise. What a
forecast needs is only how much the slope changes beyond the data. A random forest learns that from a bank of
measured curves: how a curve that begins like this one went on.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from natwise.core.random import RandomState, Streams
from natwise.core.validation import shorten

from ._curve import Observations, check_observations, weighted_least_squares
from ._power import PiecewisePowerLaw, PowerLaw, _basis, _profile_switch, _TangentCurve

SHIPPED_BANK = Path(__file__).with_name("bank.json")
N_FEATURES = 8
N_TREES = 100
MIN_LEAF = 10
MIN_FEW_SHOT = 3
MIN_BEYOND = 2
TRUST_CONFIRMED, TRUST_REFUTED = 0.5, 0.25
MIN_SIZES_OWN_FIT = 7
OWN_FIT_FACTOR = 0.5


class CurveBank:
    """A bank of measured learning curves, and what a random forest has learned from how they continue.

    Every curve is cut after 3, 4, … sizes. Features of the part before the cut describe its shape without units:
    ln error at both ends, slope, curvature, how the last slope differs, scatter, range and number of sizes. The
    forest predicts the curvature th3 (times the range of ln n) with which the piecewise form, N at the cut,
    continues best through the rest; and its square, so that its conditional variance is known too.

    Parameters
    ----------
    curves : iterable of mapping
        Each with ``"n"`` and ``"errors"`` as for `PowerLaw.fit`, at least five distinct sizes.
    random_state : int, generator or None

    Examples
    --------
    >>> import numpy as np
    >>> n = np.array([10, 20, 40, 80, 160, 320])
    >>> bank = CurveBank([{"n": n, "errors": 0.5 * n**-b} for b in np.linspace(0.1, 1, 10)], random_state=0)
    >>> bank.n_curves
    10
    """

    def __init__(self, curves: Iterable[Mapping[str, Any]], random_state: RandomState = None):
        cuts = [_cuts(curve["n"], curve["errors"]) for curve in _checked(curves)]
        self.n_curves = len(cuts)
        if not any(len(target) for _, target in cuts):
            raise ValueError(f"curves must hold one of at least five distinct sizes, got {len(cuts)} shorter ones")
        features, target, weight = (
            np.concatenate(column)
            for column in zip(*[(f, t, np.full(len(t), 1 / len(t))) for f, t in cuts if len(t)], strict=True)
        )
        # a few cuts end on a plateau or in noise and ask for absurd curvatures
        target = np.clip(target, *np.quantile(target, [0.02, 0.98]))
        forest = RandomForestRegressor(
            N_TREES,
            min_samples_leaf=MIN_LEAF,
            max_features=0.5,
            random_state=Streams.of(random_state).seed("forest") % 2**31,
        )
        self._forest = forest.fit(features, np.stack([target, target**2], axis=1), sample_weight=weight)

    @classmethod
    def shipped(cls) -> CurveBank:
        """Return the bank of our own measurements that comes with natwise (made by `make_bank`)."""
        return _shipped_bank()

    def curvature(self, observations: Observations) -> tuple[float, float]:
        """Return the expected th3 beyond `observations`, and its expected square."""
        mean, square = self._forest.predict(_features(observations)[None])[0]
        width = np.ptp(observations.x)
        return float(mean / width), float(square / width**2)

    def __deepcopy__(self, memo: dict[int, Any]) -> CurveBank:
        return self  # never changes: cloning an estimator must not copy the forest


class MetaPiecewisePowerLaw(_TangentCurve):
    """The piecewise power law for few points: the default choice for forecasts.

    The curvature comes from a bank of other learning curves, level and slope from the user's points with the
    switching size N at the largest of them (the quadratic is never extrapolated). Three safeguards keep it from
    doing worse than the power law on curves unlike those of the bank:

    - the learned curvature is multiplied by 0.5 if, without the largest size, it would have forecast that size
      better than the power law, else by 0.25;
    - from seven distinct sizes on, `PiecewisePowerLaw` is fitted to the user's points alone if, without the two
      largest sizes, its forecast of them has less than half the power law's error;
    - if the tail would rise, or the power law does not fall, the power law is used.

    The meta-learner of Jain et al. (CVPR 2023) predicts the parameters with a random forest too; its details were
    not available to us. What is described here is our reconstruction, measured on `page.md`.

    Parameters
    ----------
    bank : CurveBank, optional
        Default: the bank that comes with natwise: small models on small data sets. Give curves of your own kind
        of model when you have them.
    max_extrapolation : float
        `required_samples` answers "cannot say" beyond this many times the largest fitted size.

    Attributes
    ----------
    form_ : {"meta", "piecewise", "power law"}
        Which safeguard decided.
    trust_ : float
        Factor on the learned curvature.
    theta_, coef_, switch_size_, smallest_size_, largest_size_, residual_std_, degrees_of_freedom_
        As in `PiecewisePowerLaw`. The band adds the conditional variance of the learned curvature to the noise.
    """

    def __init__(self, bank: CurveBank | None = None, max_extrapolation: float = 1000.0):
        self.bank = bank
        self.max_extrapolation = max_extrapolation

    def fit(self, n: Any, errors: Any, sample_weight: Any = None) -> Self:
        """Fit the curve; arguments as in `PowerLaw.fit`."""
        observations = check_observations(n, errors, sample_weight)
        if _own_fit_is_better(observations):
            return self._use_own_fit(observations)
        bank = CurveBank.shipped() if self.bank is None else self.bank
        if not isinstance(bank, CurveBank):
            raise TypeError(f"bank must be a CurveBank, got {type(bank).__name__}")
        mean, square = bank.curvature(observations)
        self.form_, self.trust_ = "power law", 0.0
        self._store_curvature(observations, 0.0)
        if self.coef_[1] < -1e-12:
            trust = TRUST_CONFIRMED if _confirmed(bank, observations) else TRUST_REFUTED
            self._store_curvature(observations, trust * mean)
            if self.coef_[1] < 0:
                self.form_, self.trust_ = "meta", trust
            else:
                self._store_curvature(observations, 0.0)
        # E (c - used)^2 over the forest's conditional distribution of c
        self._curvature_variance = max(square - 2 * self.coef_[2] * mean + self.coef_[2] ** 2, 0.0)
        return self

    def _use_own_fit(self, observations: Observations) -> Self:
        self._store(observations, _profile_switch(observations), columns=3, estimated=1)
        self.form_, self.trust_, self._curvature_variance = "piecewise", 0.0, 0.0
        return self

    def _store_curvature(self, observations: Observations, curvature: float) -> None:
        """Fit value and slope by weighted least squares around a given curvature, N at the largest size."""
        basis = _basis(observations.x - observations.x[-1])
        rest = Observations(observations.n, observations.y - curvature * basis[:, 2], observations.weight)
        self._store(rest, observations.x[-1], columns=2)
        self.coef_[2] = curvature
        self._absorbed = weighted_least_squares(basis[:, :2], basis[:, 2], observations.weight)[0]

    def _log_std(self, x: np.ndarray) -> np.ndarray:
        noise = super()._log_std(x)
        if self._curvature_variance == 0:
            return noise
        basis = _basis(x - self.log_switch_)
        # value and slope are refitted when the curvature changes, so only what they cannot absorb is uncertain
        sensitivity = basis[..., 2] - basis[..., :2] @ self._absorbed
        return np.sqrt(noise**2 + self._curvature_variance * sensitivity**2)


@functools.cache
def _shipped_bank() -> CurveBank:
    return CurveBank(json.loads(SHIPPED_BANK.read_text(encoding="utf-8")), random_state=0)


def _confirmed(bank: CurveBank, observations: Observations) -> bool:
    """Say whether the learned curvature, without the largest size, forecasts it better than the power law."""
    sizes = observations.sizes
    if len(sizes) <= MIN_FEW_SHOT:
        return False
    before = observations.up_to(sizes[-2])
    basis = _basis(observations.x - sizes[-2])
    kept = slice(0, len(before.x))
    misses = []
    for curvature in (bank.curvature(before)[0], 0.0):
        rest = observations.y - curvature * basis[:, 2]
        coef, _, _ = weighted_least_squares(basis[kept, :2], rest[kept], before.weight)
        beyond = slice(len(before.x), None)
        misses.append(abs(np.average((rest - basis[:, :2] @ coef)[beyond], weights=observations.weight[beyond])))
    return misses[0] < misses[1]


def _own_fit_is_better(observations: Observations) -> bool:
    """Say whether a piecewise fit without the two largest sizes forecasts them far better than the power law."""
    sizes = observations.sizes
    if len(sizes) < MIN_SIZES_OWN_FIT:
        return False
    before = observations.up_to(sizes[-3])
    beyond = observations.x > sizes[-3]
    own = PiecewisePowerLaw()._store(before, _profile_switch(before), columns=3, estimated=1)
    power = PowerLaw()._fit_power_law(before)
    misses = [
        np.abs(curve._log_error(observations.x[beyond]) - observations.y[beyond]).mean() for curve in (own, power)
    ]
    return own.coef_[1] < 0 and misses[0] < OWN_FIT_FACTOR * misses[1]


def _checked(curves: Any) -> list[Mapping[str, Any]]:
    if not isinstance(curves, Iterable) or isinstance(curves, (str, bytes, Mapping)):
        raise TypeError(f"curves must be a sequence of mappings, got {shorten(curves)}")
    curves = list(curves)
    for position, curve in enumerate(curves):
        if not isinstance(curve, Mapping) or not {"n", "errors"} <= set(curve):
            raise TypeError(f'curves[{position}] must be a mapping with "n" and "errors", got {shorten(curve)}')
    return curves


def _cuts(n: Any, errors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return features and target (curvature times range of ln n) for every cut of one measured curve."""
    observations = check_observations(n, errors)
    sizes = observations.sizes
    features, targets = [], []
    for size in sizes[MIN_FEW_SHOT - 1 : len(sizes) - MIN_BEYOND]:
        before = observations.up_to(size)
        features.append(_features(before))
        targets.append(_best_curvature(observations, len(before.x)) * np.ptp(before.x))
    return np.array(features).reshape(-1, N_FEATURES), np.array(targets)


def _best_curvature(observations: Observations, cut: int) -> float:
    """Return the th3, N at the cut, whose fit to the first `cut` points continues best through the rest."""
    x, y = observations.x, observations.y
    basis = _basis(x - x[cut - 1])
    project = basis[:, :2] @ np.linalg.pinv(basis[:cut, :2])
    residual = (y - project @ y[:cut])[cut:]
    sensitivity = (basis[:, 2] - project @ basis[:cut, 2])[cut:]
    return float(sensitivity @ residual / (sensitivity @ sensitivity))


def _features(observations: Observations) -> np.ndarray:
    """Return what describes the beginning of a curve, independent of the unit of n."""
    x = observations.sizes
    y = np.array(
        [np.average(observations.y[observations.x == s], weights=observations.weight[observations.x == s]) for s in x]
    )
    width = x[-1] - x[0]
    t = (x - x[-1]) / width
    slope = np.polyfit(t, y, 1)[0]
    quadratic = np.polyfit(t, y, 2)
    scatter = math.sqrt(((y - np.polyval(quadratic, t)) ** 2).sum() / max(len(x) - 3, 1))
    last = np.polyfit(x[-3:], y[-3:], 1)[0]
    return np.array([y[0], y[-1], slope / width, quadratic[0], last - slope / width, scatter, width, float(len(x))])
