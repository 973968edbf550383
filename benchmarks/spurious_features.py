"""Costs of the erasers side by side: LEACE against one Gram matrix, the disentangler against its plain form.

The plain form of the disentangler reconstructs every row at each of 1500 steps of Adam, as one would write it first.
"""

import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from natwise.shift import LEACE, LinearDisentangler
from natwise.shift.spurious_features._inputs import balanced_weights, check_labels

REPEATS = 2


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works):
    """Return the least seconds of every piece of work, measured in turns so that load hits all alike."""
    rounds = [[seconds(work) for work in works.values()] for _ in range(REPEATS)]
    return dict(zip(works, np.min(rounds, axis=0), strict=True))


def naive_disentangler(X, y, c, n_core=8, n_spurious=8, n_steps=1500):
    """Minimise the objective of the page by Adam, with codes and reconstructions of all rows at every step."""
    Z = torch.tensor((X - X.mean(0)) / X.std(0))
    weights = balanced_weights(check_labels("y", y), check_labels("attribute", c))
    w = torch.tensor(weights / weights.sum())
    d = Z.shape[1]
    generator = torch.Generator().manual_seed(0)
    E = torch.eye(d, dtype=Z.dtype) + 0.01 * torch.randn(d, d, dtype=Z.dtype, generator=generator)
    parts = [E, E.T.clone(), torch.zeros(n_core + 1, 2).double(), torch.zeros(n_spurious + 1, 2).double()]
    parts = [part.requires_grad_() for part in parts]
    y, c = torch.as_tensor(y), torch.as_tensor(c)
    spurious = torch.arange(d).ge(n_core) & torch.arange(d).lt(n_core + n_spurious)

    def correlations(codes, labels):
        codes, labels = codes - w @ codes, labels - w @ labels
        return (w @ (codes * labels[:, None])) / ((w @ codes**2) * (w @ labels**2)).sqrt()

    optimizer = torch.optim.Adam(parts, lr=5e-3)
    for _ in range(n_steps):
        E, D, head_y, head_c = parts
        codes = Z @ E.T
        loss = w @ ((codes @ D.T - Z) ** 2).mean(dim=1)
        for part, head, labels in ((codes[:, :n_core], head_y, y), (codes[:, spurious], head_c, c)):
            loss = loss + w @ cross_entropy(part @ head[:-1] + head[-1], labels, reduction="none")
        leaks = correlations(codes[:, ~spurious], c.double()), correlations(codes[:, spurious], y.double())
        loss = loss + 40 * sum((leak**2).sum() for leak in leaks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def rows(n, d, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    c = np.where(rng.random(n) < 0.9, y, 1 - y)
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / d**0.5
    return X + np.outer(y, rng.standard_normal(d)) + np.outer(c, rng.standard_normal(d)), y, c


def main():
    n, d = 100_000, 768
    X, y, c = rows(n, d)
    eraser = LEACE(balance="group")
    found = interleaved({"gram": lambda: X.T @ X, "fit": lambda: eraser.fit(X, y, attribute=c)})
    print(f"LEACE, {n} x {d}: fit {found['fit']:.2f} s, {found['fit'] / found['gram']:.1f} times one Gram matrix")
    X, y, c = rows(2002, 64)
    found = interleaved(
        {
            "naive": lambda: naive_disentangler(X, y, c),
            "ours": lambda: LinearDisentangler(random_state=0).fit(X, y, attribute=c),
        }
    )
    print(
        f"LinearDisentangler, 2002 x 64: {found['ours']:.1f} s, the plain form {found['naive']:.1f} s "
        f"({found['naive'] / found['ours']:.1f} times)"
    )


if __name__ == "__main__":
    main()
