"""
Which samples does the model learn from?
========================================

The information that each sample alone puts into the predictions, in nats and without retraining: wrong labels carry
the most of it, copies the least.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from natwise.samples import SampleInformation

X, y = load_digits(n_class=4, return_X_y=True)
X, y = X[:240], y[:240]
y[:20] = (y[:20] + 1) % 4  # wrong labels
X[200:], y[200:] = X[100:140], y[100:140]  # copies
scores = SampleInformation(random_state=0).fit(X, y)

kinds = {"wrong label": slice(0, 20), "once": slice(20, 100), "copied": slice(100, 140), "copy": slice(200, 240)}
for kind, rows in kinds.items():
    print(f"{kind:12} {np.median(scores.functional_information_[rows]):.2e} nats at the median")

# %%
# The distribution of each kind.
figure, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
axis.boxplot([scores.functional_information_[rows] for rows in kinds.values()], tick_labels=list(kinds))
axis.set(yscale="log", ylabel="functional information (nats)")
