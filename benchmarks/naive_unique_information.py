"""The obvious way to compute a tangent kernel and leave-one-out scores: a loop over the samples."""

import numpy as np
import torch


def explicit_jacobian(module, X):
    """One backward pass per sample."""
    parameters = list(module.parameters())
    rows = []
    for sample in torch.from_numpy(X):
        gradients = torch.autograd.grad(module(sample[None]).sum(), parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows).numpy()


def decompose_for_each(kernel, kernel_val, y, lr, steps, samples):
    """One eigendecomposition per left-out sample, as the definition says."""
    n = len(y)
    full = dual(kernel, y, lr / n, steps)
    scores = []
    for sample in samples:
        kept = np.delete(np.arange(n), sample)
        change = full.copy()
        change[kept] -= dual(kernel[np.ix_(kept, kept)], y[kept], lr / (n - 1), steps)
        moved = kernel_val @ change
        scores.append((moved @ moved / (2 * len(moved)), change @ kernel @ change / 2))
    return np.array(scores).T


def dual(kernel, y, step_size, steps):
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 1e-300)
    phi = -np.expm1(steps * np.log1p(-step_size * values)) / values
    return vectors @ (phi * (vectors.T @ -y))
