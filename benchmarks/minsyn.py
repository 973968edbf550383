"""MinSyn's gradient and the union solver beside naive versions, in one run.

    python benchmarks/minsyn.py

The naive gradient is automatic differentiation of the same loss on the weights of all variables; the naive
union information is SciPy's general constrained minimiser.
"""

import time

import numpy as np
import torch
from scipy.optimize import minimize

from natwise.structure import synergy
from natwise.structure.minsyn._gaussian import GaussianLoss
from natwise.structure.minsyn._span import Span

SIZES = ((1000, 20, 100), (10000, 50, 100))  # variables, factors, samples
NOISE = 0.01


def seconds(work, repeats):
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        value = work()
    return value, (time.perf_counter() - start) / repeats


def naive_loss(X, a):
    n = len(X)
    a = a.clone().requires_grad_()
    Z = X @ a.T
    w = a * torch.sqrt((1 - NOISE) / (1 + (Z**2).mean(0)))[:, None]
    Z = X @ w.T
    R, C = Z.T @ X / n, Z.T @ Z / n
    C = C - torch.diag(torch.diag(C)) + torch.eye(len(C), dtype=C.dtype)
    b = R / (1 - R**2)
    S, Q = (R * b).sum(0), (b * (C @ b)).sum(0)
    loss = (0.5 * np.log(2 * np.pi) - 0.5 * torch.log1p(S) + (1 + Q - S**2) / (2 * (1 + S))).sum()
    loss.backward()
    return loss.item()


def naive_union(pmf):
    margins = [tuple(k for k in range(1, pmf.ndim) if k != j) for j in range(1, pmf.ndim)]

    def information(flat):
        q = np.maximum(flat.reshape(len(pmf), -1), 1e-300)
        return float((q * np.log(q / (q.sum(1, keepdims=True) * q.sum(0)))).sum())

    def violation(flat):
        pairs = [(flat.reshape(pmf.shape) - pmf).sum(axis=axes) for axes in margins]
        return np.concatenate([pairs[0].ravel(), *[pair[:, 1:].ravel() for pair in pairs[1:]]])  # no redundant rows

    constraints = {"type": "eq", "fun": violation}
    options = {"maxiter": 300, "ftol": 1e-10}
    return minimize(
        information, pmf.ravel(), method="SLSQP", bounds=[(0, 1)] * pmf.size, constraints=constraints, options=options
    ).fun


def main():
    rng = np.random.default_rng(0)
    for p, m, n in SIZES:
        X = rng.standard_normal((n, m)) @ rng.standard_normal((m, p)) + rng.standard_normal((n, p))
        X = (X - X.mean(0)) / X.std(0)
        (span, set_up) = seconds(lambda X=X: Span.of(X), 1)
        loss = GaussianLoss(span, m, NOISE, 0.0)
        a = loss.start(rng)
        (value, _), ours = seconds(lambda loss=loss, a=a: loss(a.ravel()), 10)
        weights = torch.from_numpy(span.to_variables(a))
        naive_value, naive = seconds(lambda X=X, w=weights: naive_loss(torch.from_numpy(X), w), 5)
        print(
            f"p={p} m={m} n={n}: loss and gradient {1e3 * ours:.1f} ms (set-up once {1e3 * set_up:.0f} ms), "
            f"naive {1e3 * naive:.1f} ms, ratio {naive / ours:.1f}; losses differ by {abs(value - naive_value):.1e}"
        )
    for shape in ((2, 2, 2), (3, 3, 3), (3, 2, 2, 2), (4, 4, 4)):
        pmf = rng.dirichlet(np.ones(np.prod(shape))).reshape(shape)
        value, ours = seconds(lambda pmf=pmf: synergy.union_information(pmf), 3)
        naive_value, naive = seconds(lambda pmf=pmf: naive_union(pmf), 1)
        print(
            f"union {shape}: {1e3 * ours:.0f} ms gives {value:.6f}, naive {1e3 * naive:.0f} ms gives "
            f"{naive_value:.6f} (lower is better), ratio {naive / ours:.1f}"
        )


if __name__ == "__main__":
    main()
