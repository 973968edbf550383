"""
How much more data does a target need?
======================================

A learning curve is measured up to the data at hand, continued by a piecewise power law, and read backwards.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB

from natwise.samples import MetaPiecewisePowerLaw, measure_learning_curve

X, y = load_digits(return_X_y=True)
measured = measure_learning_curve(GaussianNB(var_smoothing=1e-2), X, y, random_state=0).arrays
curve = MetaPiecewisePowerLaw().fit(measured["n"], measured["errors"])
low, high = curve.required_interval(0.08)
print(f"an error of 8 % needs {curve.required_samples(0.08):,.0f} samples ({low:,.0f} to {high:,.0f})")

# %%
# The band is that of 95 % confidence. It widens beyond the data: ``curve.horizon()`` says how far to trust the curve.
n = np.geomspace(measured["n"].min(), 5000, 100)
figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
axis.fill_between(n, *curve.predict_interval(n), alpha=0.25, linewidth=0)
axis.plot(n, curve.predict(n))
axis.plot(measured["n"], measured["errors"], "o")
axis.axhline(0.08, linestyle=":", color="gray")
axis.set(xscale="log", yscale="log", xlabel="training samples", ylabel="error")
