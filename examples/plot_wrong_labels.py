"""
Which labels are wrong?
=======================

An audit of handwritten digits in which a tenth of the labels was changed on purpose. The same answers as
``natwise audit`` gives on the command line, in Python.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from natwise import audit
from natwise.supervision import UniformNoise, corrupt_labels

X, y = load_digits(return_X_y=True)
labels, planted = corrupt_labels(y, UniformNoise(0.1).transition_matrix(10), random_state=0)
result = audit.run(X, labels, minutes=0.5, random_state=0)
print(*result.summary, sep="\n")

# %%
# The rows to look at first, with the label they came with. A star marks those that were planted.
order = np.argsort(-result.to_frame()["label_issue_score"].to_numpy())
figure, axes = plt.subplots(2, 5, figsize=(7, 3.4), layout="constrained")
for axis, row in zip(axes.flat, order, strict=False):
    axis.imshow(X[row].reshape(8, 8), cmap="gray_r")
    axis.set_title(f"label {labels[row]}{' *' if planted[row] else ''}")
    axis.axis("off")

# %%
# How many of the planted labels are found, against how many rows one looks at.
found = np.cumsum(planted[order])
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(np.arange(1, len(y) + 1), found / planted.sum())
axis.set(xlabel="rows reviewed, most suspicious first", ylabel="planted labels found", xlim=(0, 500))
