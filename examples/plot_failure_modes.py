"""
Why does the model fail at a new site?
======================================

The error at a held-out site, split into four causes: the classes cannot be told apart in the training sites' features;
they cannot at the new site; the features mean something else there; the last layer misreads them.
"""

import matplotlib.pyplot as plt
import numpy as np

from natwise.shift import DomainGeneralizer, FailureModes

rng = np.random.default_rng(0)
y, site = rng.integers(2, size=800), np.arange(800) % 4
stain = np.where(rng.random(800) < np.array([0.05, 0.15, 0.3, 0.9])[site], 1 - y, y)  # misleads at site 3
X = rng.normal(size=(800, 4)) + np.column_stack([2 * y, 3 * stain, 0 * y, 0 * y])
new, held = site == 3, (site < 3) & (rng.random(800) < 0.2)
train = ~new & ~held

found = {}
for algorithm, weight in (("erm", None), ("vrex", 100.0)):
    model = DomainGeneralizer(
        algorithm, weight=weight, max_epochs=12, learning_rate=3e-3, selection="last", random_state=0
    )
    Z, guess = model.fit(X[train], y[train], site[train]).transform(X), model.predict(X)
    found[algorithm] = FailureModes().fit(
        Z[train], y[train], site[train], Z[new], y[new], guess[held], y[held], guess[new]
    )
    print(algorithm, found[algorithm].parts_.round(3), "+-", found[algorithm].se_.round(3))

# %%
# The parts add up to the error at the new site. Plain training relies on the stain, so that the last layer misreads the
# new site; an invariance penalty cuts that part.
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
causes = ["underfitting", "inseparable\nat the new site", "misaligned", "last layer\nnot invariant"]
for place, (algorithm, modes) in enumerate(found.items()):
    axis.bar(np.arange(4) + 0.4 * place - 0.2, modes.parts_, 0.4, yerr=modes.se_, label=algorithm)
axis.set_xticks(range(4), causes)
axis.set(ylabel="part of the error rate")
axis.legend()
