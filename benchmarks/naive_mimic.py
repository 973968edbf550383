"""The published algorithms as they are written down: a Python loop over rows, cells, windows and resamples."""

import numpy as np
from scipy.stats import skew
from sklearn.metrics import roc_auc_score

from natwise.datasets import mimic3

EPS = 1e-6
WINDOWS = (("first", 100), ("first", 10), ("first", 25), ("first", 50), ("last", 10), ("last", 25), ("last", 50))


def discretize(rows, end, timestep=1.0):
    """Return the matrix of one stay from rows of texts (hours first, "" where nothing was observed)."""
    variables = mimic3.variables()
    begins = np.cumsum([0] + [variable.width for variable in variables])
    n_bins = int(end / timestep + 1.0 - EPS)
    data = np.zeros((n_bins, begins[-1]))
    mask = np.zeros((n_bins, len(variables)))
    original = [["" for _ in variables] for _ in range(n_bins)]

    def write(row, channel, value):
        variable = variables[channel]
        if variable.categories:
            one_hot = np.zeros(variable.width)
            one_hot[variable.categories.index(value)] = 1
            for position in range(variable.width):
                data[row, begins[channel] + position] = one_hot[position]
        else:
            data[row, begins[channel]] = float(value)

    for row in rows:
        t = float(row[0])
        if t > end + EPS:
            continue
        position = int(t / timestep - EPS)
        for channel, value in enumerate(row[1:]):
            if value != "":
                mask[position, channel] = 1
                write(position, channel, value)
                original[position][channel] = value
    previous = [[] for _ in variables]
    for position in range(n_bins):
        for channel, variable in enumerate(variables):
            if mask[position, channel] == 1:
                previous[channel].append(original[position][channel])
            else:
                write(position, channel, previous[channel][-1] if previous[channel] else variable.normal)
    return np.hstack([data, mask])


def features(rows):
    """Return the 714 features of one stay."""
    found = []
    for channel, variable in enumerate(mimic3.variables()):
        pairs = [(float(row[0]), row[channel + 1]) for row in rows if row[channel + 1] != ""]
        values = [(t, float(variable.levels[x]) if variable.categories else float(x)) for t, x in pairs]
        for side, percent in WINDOWS:
            if not values:
                found.append(np.full(6, np.nan))
                continue
            first, last = values[0][0], values[-1][0]
            length = (last - first) * percent / 100.0
            low, high = (first, first + length) if side == "first" else (last - length, last)
            inside = [x for t, x in values if low - EPS < t < high + EPS]
            functions = (np.min, np.max, np.mean, np.std, skew, len)
            found.append(np.array([function(inside) for function in functions], dtype=np.float32))
    return np.concatenate(found)


def bootstrap(y_true, y_score, n_resamples, rng):
    """Return the AUROC of resamples."""
    values = []
    for _ in range(n_resamples):
        chosen = rng.integers(0, len(y_true), len(y_true))
        values.append(roc_auc_score(y_true[chosen], y_score[chosen]))
    return np.array(values)
