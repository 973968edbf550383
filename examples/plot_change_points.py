"""
When does the structure change?
===============================

T-CorEx estimates a covariance matrix per period from a few samples of each, and says between which periods the
dependence of the variables changed, and of which variables.
"""

import matplotlib.pyplot as plt
import numpy as np

from natwise.structure import TCorEx

rng = np.random.default_rng(0)
before, after = np.arange(40) // 10, np.where(np.arange(40) < 20, np.arange(40) % 2, np.arange(40) // 10)
times = np.repeat(np.arange(2012, 2020), 16)
groups = np.where((times < 2016)[:, None], before, after)  # in 2016 the first twenty variables are regrouped
factors = rng.standard_normal((len(times), 4))
X = np.take_along_axis(factors, groups, axis=1) + 0.6 * rng.standard_normal((len(times), 40))

model = TCorEx(4, l1=0.3, gamma=0.6, random_state=0).fit(X, times)  # periods this short must lean on their neighbours

# %%
# Left: the change of the precision matrix from each period to the next. Right: the variables that moved where it is
# largest. ``select_smoothness`` chooses ``l1`` and ``gamma`` on data of your own.
scores = model.change_scores()
place = scores.argmax()
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(model.periods_[1:], scores, marker="o")
axes[0].set(xlabel="period", ylabel="change of the precision matrix", ylim=(0, None))
axes[1].bar(np.arange(40), model.feature_change_scores()[place])
axes[1].set(xlabel="variable", ylabel=f"change in {model.periods_[1:][place]}")
