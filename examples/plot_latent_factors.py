"""
Which variables belong together?
================================

Linear CorEx finds groups of variables and a covariance matrix from fewer samples than variables.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.covariance import LedoitWolf

from natwise.structure import LinearCorEx

rng = np.random.default_rng(0)
group = np.arange(120) % 6
X = rng.standard_normal((60, 6))[:, group] + rng.standard_normal((60, 120))  # 60 samples of 120 variables
new = rng.standard_normal((2000, 6))[:, group] + rng.standard_normal((2000, 120))

model = LinearCorEx(6, random_state=0).fit(X)
print(f"total correlation explained: {model.tc_:.1f} nats")
print("log-likelihood of new data, nats per sample:")
print(f"  linear CorEx {model.score(new):.1f}, Ledoit-Wolf {LedoitWolf().fit(X).score(new):.1f}")

# %%
# Variables ordered by the factor that explains them: the groups are back.
order = np.argsort(model.labels_, kind="stable")
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, title, matrix in zip(
    axes, ["sample covariance", "linear CorEx"], [np.cov(X.T), model.covariance_], strict=True
):
    axis.imshow(matrix[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set(title=title, xticks=[], yticks=[])
