"""T-CorEx written straight from its Monte-Carlo equations: torch autograd, Adam, one period after the other.

One iteration works as the original implementation does: fresh noise is drawn for the samples (NumPy, float64) and for
the factors of every period, every period re-reads the whole window, the gradient comes from autograd, and Adam with
step 0.001 moves all weights. The start is the same linear model fitted to all samples with the same means.
"""

import itertools
import math

import numpy as np
import torch

STAGES = [0.6**k for k in range(1, 7)] + [0.0]
PATIENCE = 50


def window_weights(counts, gamma):
    """Return (T, N): gamma^|i - t| for samples of period i, dropped below 1e-6."""
    period = np.repeat(np.arange(len(counts)), counts)
    distance = np.abs(period - np.arange(len(counts))[:, None])
    weights = np.where(distance == 0, 1.0, float(gamma) ** distance)
    return np.where(weights < 1e-6, 0.0, weights)


def standardize(samples, gamma):
    """Scale each period by its weighted mean and standard deviation; return samples and deviations."""
    weights = window_weights([len(x) for x in samples], gamma)
    weights /= weights.sum(axis=1, keepdims=True)
    pooled = np.concatenate(samples)
    means = weights @ pooled
    deviations = np.stack([np.sqrt(w @ (pooled - mean) ** 2) for w, mean in zip(weights, means, strict=True)])
    return [(x - mean) / std for x, mean, std in zip(samples, means, deviations, strict=True)], deviations


def conditional_mean(z, x, weights):
    """Return R (m, p), E[z^2] (m,) and the coefficients B (m, p) of the mean of x given z."""
    z2 = (weights[:, None] * z**2).sum(0)
    R = (z * weights[:, None]).T @ x / torch.sqrt(z2)[:, None]
    r = (R**2 / torch.clamp(1 - R**2, 1e-8, 1 - 1e-8)).sum(0)
    B = R / torch.clamp(1 - R**2, 1e-8, 1) / torch.sqrt(z2)[:, None] / (1 + r)
    return R, z2, B


def loss(W, samples, weights, eps, l1, rng):
    """Return the noisy loss of all periods."""
    n_features = samples[0].shape[1]
    noisy = [
        torch.tensor(math.sqrt(1 - eps**2) * x + eps * rng.standard_normal(x.shape), dtype=torch.float32)
        for x in samples
    ]
    own_factors = [x @ w.T + torch.randn(len(x), len(w)) for x, w in zip(noisy, W, strict=True)]
    total = 0.0
    for x, z_own, w, alpha in zip(noisy, own_factors, W, weights, strict=True):
        seen = alpha.split([len(x) for x in noisy])
        window = torch.cat([other for other, share in zip(noisy, seen, strict=True) if share[0] > 0])
        z = window @ w.T + torch.randn(len(window), len(w))
        _, z2, B = conditional_mean(z, window, alpha[alpha > 0])
        residual = ((x - z_own @ B) ** 2).mean(0)
        total = total + 0.5 * torch.log(torch.clamp(residual, min=1e-8)).sum() + 0.5 * torch.log(z2).sum()
    for first, second in itertools.pairwise(W):
        total = total + l1 * torch.abs(second - first).sum()
    return total / (len(W) * n_features)


def train(W, samples, weights, l1, rng, max_iter, callback=None):
    """Minimise in place through all annealing stages; return the number of iterations."""
    optimizer = torch.optim.Adam(W, lr=1e-3)
    n_iter = 0
    for eps in STAGES:
        history = []
        for _ in range(max_iter):
            optimizer.zero_grad()
            value = loss(W, samples, weights, eps, l1, rng)
            value.backward()
            optimizer.step()
            history.append(float(value.detach()))
            n_iter += 1
            if callback is not None:
                callback(n_iter)
            if len(history) >= 2 * PATIENCE:
                last, previous = np.mean(history[-PATIENCE:]), np.mean(history[-2 * PATIENCE : -PATIENCE])
                if abs(last - previous) / abs(previous + 1e-6) < 1e-5:
                    break
    return n_iter


def start(samples, n_components, rng, max_iter):
    """Fit one linear model to the pooled samples and return its weights (m, p)."""
    pooled = np.concatenate(samples)
    W = torch.tensor(rng.standard_normal((n_components, pooled.shape[1])) / math.sqrt(pooled.shape[1]))
    W = W.float().requires_grad_()
    train([W], [pooled], torch.full((1, len(pooled)), 1 / len(pooled)), 0.0, rng, max_iter)
    return W.detach()


def correlations(W, samples, weights):
    """Return the model's correlation matrix of each period, its latent noise drawn afresh as in the original."""
    pooled = torch.tensor(np.concatenate(samples), dtype=torch.float32)
    matrices = []
    for w, alpha in zip(W, weights, strict=True):
        z = pooled @ w.detach().T + torch.randn(len(pooled), len(w))
        _, z2, B = conditional_mean(z, pooled, alpha)
        A = (B * torch.sqrt(z2)[:, None]).double().numpy()
        matrix = A.T @ A
        np.fill_diagonal(matrix, 1.0)
        matrices.append(matrix)
    return np.stack(matrices)


def fit(samples, n_components, *, l1=0.3, gamma=0.4, max_iter=500, seed=0, evaluate=None, every=100):
    """Return the covariance matrices (T, p, p); `evaluate` gets them after every `every` iterations."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    standardized, deviations = standardize(samples, gamma)
    weights = window_weights([len(x) for x in samples], gamma)
    weights = torch.tensor(weights / weights.sum(axis=1, keepdims=True), dtype=torch.float32)
    W = [start(standardized, n_components, rng, max_iter).clone().requires_grad_() for _ in samples]

    def covariances():
        return correlations(W, standardized, weights) * deviations[:, :, None] * deviations[:, None, :]

    def callback(n_iter):
        if evaluate is not None and n_iter % every == 0:
            evaluate(covariances())

    train(W, standardized, weights, l1, rng, max_iter, callback)
    return covariances()
