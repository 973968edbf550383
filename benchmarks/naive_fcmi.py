"""The original code's way: a Python loop over examples and runs with torch's argmax inside it; and plain training."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot


def discrete_mutual_information(a, b):
    """Return the plug-in information of two lists of codes, cell by cell."""
    values_a, values_b = sorted(set(a)), sorted(set(b))
    total = 0.0
    for x in values_a:
        for y in values_b:
            joint = np.mean([p == x and q == y for p, q in zip(a, b, strict=True)])
            if joint >= 1e-9:
                p, q = np.mean([v == x for v in a]), np.mean([v == y for v in b])
                total += joint * np.log(joint / (p * q))
    return max(total, 0.0)


def per_example_information(S, predictions, n_classes):
    """Return I(predictions on pair i; S_i) for every i, from scores of every run, as the original does."""
    scores = one_hot(torch.from_numpy(predictions), n_classes).float()
    information = []
    for i in range(S.shape[1]):
        masks, codes = [], []
        for k in range(S.shape[0]):
            first, second = torch.argmax(scores[k, i, 0]).item(), torch.argmax(scores[k, i, 1]).item()
            masks.append(int(S[k, i]))
            codes.append(first * n_classes + second)
        information.append(discrete_mutual_information(masks, codes))
    return np.array(information)


def train_one_by_one(factory, X, y, rows, max_epochs, lr):
    """Return the classes that networks predict for all of X, each trained alone on its rows, full batches."""
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    predictions = []
    for row in rows:
        module = factory()
        optimizer = torch.optim.Adam(module.parameters(), lr=lr)
        for _ in range(max_epochs):
            optimizer.zero_grad()
            cross_entropy(module(x[row]), target[row]).backward()
            optimizer.step()
        with torch.no_grad():
            predictions.append(module(x).argmax(1).numpy())
    return np.stack(predictions)
