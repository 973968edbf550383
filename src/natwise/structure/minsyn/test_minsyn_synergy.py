"""The measures of synergy against brute force, identities and bounds.

`golden.npz` holds tables and Gaussian covariances with their measures, computed by brute force: sums over all cells,
log-determinants, and a general-purpose constrained minimiser (accurate to about 1e-5) for the union information.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from natwise.core.information import gaussian_mutual_information, mutual_information
from natwise.core.io import load_npz
from natwise.structure import synergy
from natwise.structure.minsyn import _union
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).parent / "golden.npz")
NAMED = {"WMS": synergy.wms, "CI": synergy.ci, "S_union": synergy.union, "I_union": synergy.union_information}
XOR = np.array([[[0.25, 0.0], [0.0, 0.25]], [[0.0, 0.25], [0.25, 0.0]]])


def cases(kind):
    return sorted({key.split("__")[1] for key in GOLDEN if key.startswith(kind)})


@pytest.mark.parametrize("case", cases("discrete"))
def test_tables(case):
    pmf = GOLDEN[f"discrete__{case}__pmf"]
    for name, measure in NAMED.items():
        assert measure(pmf) == pytest.approx(float(GOLDEN[f"discrete__{case}__{name}"]), abs=1e-5), name


@pytest.mark.parametrize("case", cases("gaussian"))
def test_gaussians(case):
    covariance = GOLDEN[f"gaussian__{case}__covariance"]
    scale = np.arange(1.0, 1 + len(covariance))
    for name, measure in NAMED.items():
        expected = pytest.approx(float(GOLDEN[f"gaussian__{case}__{name}"]), abs=1e-9)
        assert measure(covariance=covariance * np.outer(scale, scale)) == expected, name
    information = gaussian_mutual_information(covariance, 0, range(1, len(covariance)))
    entropy = 0.5 * np.log(2 * np.pi * np.e) - information
    assert float(GOLDEN[f"gaussian__{case}__neg_log_pCI"]) - entropy == pytest.approx(
        synergy.ci(covariance=covariance), abs=1e-9
    )


@st.composite
def tables(draw):
    shape = draw(st.lists(st.integers(2, 3), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.dirichlet(np.full(np.prod(shape), draw(st.sampled_from([2.0, 0.5, 0.1, 0.03])))).reshape(shape)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_identities_and_bounds(pmf):
    total = mutual_information(pmf, 0, range(1, pmf.ndim))
    singles = [mutual_information(pmf, 0, j) for j in range(1, pmf.ndim)]
    union = synergy.union_information(pmf)
    assert synergy.wms(pmf) == pytest.approx(total - sum(singles), abs=1e-10)
    assert max(singles) - 1e-9 <= union <= total + 1e-9
    assert synergy.union(pmf) == pytest.approx(total - union, abs=1e-9)
    importance, independent = slow_decoder(pmf)
    assert synergy.ci(pmf) == pytest.approx(importance, abs=1e-9)
    assert -1e-12 <= importance <= synergy.wms(pmf) + total_correlation(pmf) + 1e-9  # TC(Y|X)
    assert union <= independent + 1e-5  # p(x) prod_j p(y_j|x) has the same pairs


@settings(max_examples=12, deadline=None)
@given(tables(), st.integers(0, 1000))
def test_names_of_values_and_order_of_sources_do_not_matter(pmf, seed):
    rng = np.random.default_rng(seed)
    renamed = pmf[np.ix_(*[rng.permutation(size) for size in pmf.shape])]
    reordered = renamed.transpose(0, *(1 + rng.permutation(pmf.ndim - 1)))
    for measure, tolerance in ((synergy.wms, 1e-10), (synergy.ci, 1e-10), (synergy.union, 1e-5)):
        assert measure(reordered) == pytest.approx(measure(pmf), abs=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_gaussian_bounds(n_sources, seed):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n_sources + 1, n_sources + 3))
    covariance = factor @ factor.T
    total = gaussian_mutual_information(covariance, 0, range(1, n_sources + 1))
    union = synergy.union(covariance=covariance)
    assert 0 <= union <= total + 1e-12
    assert synergy.ci(covariance=covariance) >= 0
    assert synergy.wms(covariance=covariance) <= union + 1e-9
    if n_sources == 1:
        for measure in (synergy.wms, synergy.ci, synergy.union):
            assert measure(covariance=covariance) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n_targets", [2, 3])
def test_union_information_against_a_search(n_targets):
    """With two binary sources, the tables with the same pairs differ by one number per value of the target."""
    pmf = np.random.default_rng(n_targets).dirichlet(np.ones(4 * n_targets)).reshape(n_targets, 2, 2)
    direction = np.array([[1.0, -1.0], [-1.0, 1.0]])

    def information(shifts):
        return mutual_information_of_any_table(pmf + shifts[:, None, None] * direction)

    bounds = [(-min(p[0, 0], p[1, 1]), min(p[0, 1], p[1, 0])) for p in pmf]
    found = minimize(information, np.zeros(n_targets), method="Powell", bounds=bounds, options={"xtol": 1e-9})
    assert synergy.union_information(pmf) == pytest.approx(found.fun, abs=1e-5)


def test_one_source_and_impossible_targets():
    pmf = np.array([[0.1, 0.3], [0.0, 0.0], [0.4, 0.2]])
    for measure in (synergy.wms, synergy.ci, synergy.union):
        assert measure(pmf) == pytest.approx(0, abs=1e-6)
    padded = np.concatenate([XOR, np.zeros((1, 2, 2))])
    for measure in (synergy.wms, synergy.ci, synergy.union):
        assert measure(padded) == pytest.approx(np.log(2), abs=1e-9)


def test_an_uncertain_union_is_told(monkeypatch):
    monkeypatch.setattr(_union, "_MAX_NEWTON_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="certain to"):
        synergy.union(GOLDEN["discrete__random0__pmf"])


@pytest.mark.parametrize("measure", NAMED.values(), ids=NAMED)
def test_bad_input(measure):
    negative, short = XOR.copy(), 0.9 * XOR
    negative[0, 0] = [0.3, -0.05]
    check_bad_input(
        measure,
        [
            ({"pmf": negative}, ValueError, "negative"),
            ({"pmf": short}, ValueError, "sum to 1"),
            ({"pmf": [0.5, 0.5]}, ValueError, "axes"),
            ({"pmf": np.full((2, 2), np.nan)}, ValueError, "finite"),
            ({"pmf": [["a", "b"]]}, TypeError, "numeric"),
            ({"pmf": np.zeros((0, 2))}, ValueError, "axes"),
            ({"covariance": [[1.0, 0.2], [0.4, 1.0]]}, ValueError, "symmetric"),
            ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, ValueError, "positive definite"),
            ({"covariance": [[1.0, 1.0], [1.0, 1.0]]}, ValueError, "positive definite"),
            ({"covariance": [[0.0, 0.0], [0.0, 1.0]]}, ValueError, "positive diagonal"),
            ({"covariance": [[1.0]]}, ValueError, "square"),
            ({"covariance": np.ones((2, 3))}, ValueError, "square"),
            ({"pmf": XOR, "covariance": np.eye(2)}, ValueError, "both"),
            ({"pmf": None, "covariance": None}, ValueError, "neither"),
        ],
    )


def test_tables_that_are_too_large():
    pmf = np.full((2,) * 18, 2.0**-18)
    with pytest.raises(ValueError, match="pmf must have at most 200,000 cells"):
        synergy.union(pmf)
    assert synergy.ci(pmf) == pytest.approx(0, abs=1e-9)


def slow_decoder(pmf):
    """Return E log p(x|y)/p_CI(x|y) and the information of p(x) prod_j p(y_j|x), by loops over all cells."""
    target = pmf.reshape(len(pmf), -1).sum(1)
    importance, independent = 0.0, np.zeros_like(pmf)
    for y in product(*map(range, pmf.shape[1:])):
        column = pmf[(slice(None), *y)]
        weight = np.zeros(len(pmf))
        for x in np.nonzero(target)[0]:
            singles = [np.take(pmf[x], y_j, axis=j).sum() / target[x] for j, y_j in enumerate(y)]
            weight[x] = target[x] * np.prod(singles)
        independent[(slice(None), *y)] = weight
        if column.sum() == 0:
            continue
        some = column > 0
        importance += float((column[some] * np.log(column[some] / column.sum() / (weight[some] / weight.sum()))).sum())
    return importance, mutual_information_of_any_table(independent)


def mutual_information_of_any_table(table):
    q = table.reshape(len(table), -1)
    outer = q.sum(1, keepdims=True) * q.sum(0)
    some = q > 1e-15
    return float((q[some] * np.log(q[some] / outer[some])).sum())


def total_correlation(pmf):
    """Return TC(Y): the sum of the entropies of the sources less their joint entropy."""
    sources = pmf.sum(0)
    margins = [sources.sum(axis=tuple(k for k in range(sources.ndim) if k != j)) for j in range(sources.ndim)]
    entropy = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (*margins, sources)]
    return sum(entropy[:-1]) - entropy[-1]
