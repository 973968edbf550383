"""Linear CorEx written straight from its equations in NumPy: slow, obvious, the reference of the benchmark.

One iteration works as the original implementation does: every trial of the line search recomputes all moments from the
data (one pair of products with X), the gradient takes another pair, each formula is its own pass over an m x p array,
and every stage of annealing runs to the same tolerance.
"""

import numpy as np

STAGES = [0.6**k for k in range(1, 7)] + [0.0]


def moments(X, W, eps):
    n = len(X)
    rho = (1 - eps**2) * ((X @ W.T).T @ X) / n + eps**2 * W
    ry = W @ rho.T
    u = ry.diagonal().copy()
    if (u >= 1).any():
        return None
    np.fill_diagonal(ry, 1)
    invrho = 1 / (1 - rho**2)
    rhoinvrho = rho * invrho
    Qij = ry @ rhoinvrho
    Si = (rho * rhoinvrho).sum(axis=0)
    Qi = (rhoinvrho * Qij).sum(axis=0)
    excess = (rhoinvrho * (Qij - Si * rho)).sum(axis=0)
    TC = np.log(1 + Si).sum() - 0.5 * np.log(1 + excess).sum() + 0.5 * np.log(1 - u).sum()
    return {
        "rho": rho,
        "u": u,
        "invrho": invrho,
        "b": rhoinvrho,
        "Qij": Qij,
        "Si": Si,
        "Qi": Qi,
        "excess": excess,
        "TC": TC,
    }


def step(X, W, m, eps, tol):
    """Return new weights and moments, or None when no step improves the objective."""
    rho, invrho, b, Qij, Si = m["rho"], m["invrho"], m["b"], m["Qij"], m["Si"]
    D = 1 + m["excess"]
    r = (1 - m["u"])[:, None]
    H = (b / D) @ b.T
    np.fill_diagonal(H, 0)
    G = W / r - 2 * invrho * b / (1 + Si) + invrho**2 * ((1 + rho**2) * Qij - 2 * rho * Si) / D + H @ W
    gradient = (1 - eps**2) * ((X @ G.T).T @ X) / len(X) + eps**2 * G
    B = (rho * G).sum(axis=1, keepdims=True)
    P = -r * (G - 2 * W / (2 - r) * B)
    slope = (gradient * P).sum()
    eta = 1.0
    while slope < 0 and eta >= min(tol, 1e-10):
        trial = moments(X, W + eta * P, eps)
        if trial is not None and -trial["TC"] <= -m["TC"] + 0.1 * eta * slope:
            return W + eta * P, trial
        eta /= 2
    return None


def rescale(W, u, old, new):
    """Keep u below one when the annealing noise changes from `old` to `new`."""
    delta = (new**2 - old**2) / (1 - new**2) * (W**2).sum(axis=1) / u
    scale = np.sqrt((1 - old**2) / ((1 - new**2) * (1 + delta)))
    return W * (np.floor(1000 * scale) / 1000)[:, None]


def fit(X, n_components, *, tol=1e-5, max_iter=10000, seed=0, dtype=np.float32):
    """Return weights, the objective after every iteration, and the number of iterations."""
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(dtype)
    W = np.random.default_rng(seed).standard_normal((n_components, X.shape[1])).astype(dtype)
    W /= 10 * np.sqrt(((X @ W.T) ** 2).mean(axis=0))[:, None]
    u, old, history = moments(X, W, 0.0)["u"], 0.0, []
    for eps in STAGES:
        W = rescale(W, u, old, eps).astype(dtype)
        m, old = moments(X, W, eps), eps
        for _ in range(max_iter):
            previous = m["TC"]
            stepped = step(X, W, m, eps, tol)
            if stepped is None:
                break
            W, m = stepped
            history.append(float(m["TC"]))
            if abs(m["TC"] - previous) < tol:
                break
        u = m["u"]
    return W, history
