"""
How large can the generalisation gap be?
========================================

A bound from the information in a model's predictions about which samples it was trained on: for any training recipe,
here a decision tree, beside the measured gap. ``fcmi_null`` is what the f-CMI bound reads when the splits are shuffled.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

from natwise.generalization import run_supersample_experiment

X, y = load_digits(return_X_y=True)
sizes = [50, 100, 200, 400]
results = [run_supersample_experiment(DecisionTreeClassifier(), X, y > 4, n=n, n_splits=30) for n in sizes]
for n, result in zip(sizes, results, strict=True):
    print(n, {name: round(result.scalars[name], 3) for name in ("gap", "tightest", "fcmi", "fcmi_null")})

# %%
# The tightest valid bound stays above the gap and follows it down.
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for name, label in {"fcmi": "f-CMI bound", "tightest": "tightest of all bounds", "gap": "measured gap"}.items():
    axis.plot(sizes, [result.scalars[name] for result in results], marker="o", label=label)
axis.set(xscale="log", xlabel="training samples", ylabel="test error minus training error", ylim=(0, None))
axis.set_xticks(sizes, sizes)
axis.minorticks_off()
axis.legend()
