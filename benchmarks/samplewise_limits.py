"""Time exact enumeration against plain dictionaries of (training set, hypothesis), in one run.

    python benchmarks/samplewise_limits.py

Both compute every single and pair information, the information of the whole training set and the moments of the gap.
Prints CPU seconds, the ratio, and how far the numbers lie apart.
"""

import itertools
import math
import time
from collections import defaultdict

from natwise.generalization import affine_parity_problem, balanced_labelling_problem

CASES = ((affine_parity_problem, 2, 3), (affine_parity_problem, 3, 4), (balanced_labelling_problem, 3, 8))
LARGE = ((affine_parity_problem, 4, 4), (balanced_labelling_problem, 5, 10), (affine_parity_problem, 4, 5))


def naive(problem):
    """Enumerate with dictionaries, one training set after the other."""
    joint, gap, squared = {}, 0.0, 0.0
    every = itertools.product(range(problem.n_points), repeat=problem.n_samples)
    for row, points in zip(problem.kernel, every, strict=True):
        chance = math.prod(problem.pz[z] for z in points)
        for w in range(problem.n_hypotheses):
            if row[w]:
                joint[points, w] = chance * row[w]
                difference = problem.risks[w] - sum(problem.loss[w, z] for z in points) / problem.n_samples
                gap += chance * row[w] * difference
                squared += chance * row[w] * difference**2
    subsets = [
        *itertools.combinations(range(problem.n_samples), 1),
        *itertools.combinations(range(problem.n_samples), 2),
    ]
    return [gap, squared, *(naive_information(joint, u) for u in [*subsets, range(problem.n_samples)])]


def naive_information(joint, subset):
    """Return I(W; samples in `subset`) from the joint dictionary."""
    pair, left, right = defaultdict(float), defaultdict(float), defaultdict(float)
    for (points, w), chance in joint.items():
        some = tuple(points[i] for i in subset)
        pair[some, w] += chance
        left[some] += chance
        right[w] += chance
    return sum(chance * math.log(chance / left[some] / right[w]) for (some, w), chance in pair.items())


def ours(problem):
    """Return the same numbers by tables."""
    n = problem.n_samples
    moments = problem.gap_moments()
    subsets = [*itertools.combinations(range(n), 1), *itertools.combinations(range(n), 2), range(n)]
    return [moments["E_gap"], moments["E_gap2"], *(problem.information(u) for u in subsets)]


def seconds(function, *arguments):
    """Return what `function` returns, and the CPU seconds it took."""
    start = time.process_time()
    found = function(*arguments)
    return found, time.process_time() - start


def main():
    """Print one line per problem."""
    for construct, n, size in (*CASES, *LARGE):
        problem, building = seconds(construct, n, size)
        values, fast = seconds(ours, problem)
        line = (
            f"{construct.__name__}({n}, {size}): {problem.kernel.size:,} entries, {building + fast:.4f} s with building"
        )
        if (construct, n, size) not in LARGE[1:]:
            reference, slow = seconds(naive, problem)
            apart = max(abs(a - b) for a, b in zip(values, reference, strict=True))
            line += f"; dictionaries {slow:.2f} s, ratio {slow / fast:.0f}, {apart:.0e} apart"
        print(line)


if __name__ == "__main__":
    main()
