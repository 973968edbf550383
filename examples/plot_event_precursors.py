"""
Which documents announced the event?
====================================

A forecaster reads the documents of the days before and says which of them its forecast rests on: by how much the
probability falls without the document. Where two documents announce the same event, leaving out one changes little.
"""

import matplotlib.pyplot as plt

from natwise.timeseries import EventForecaster, planted_precursors

data, planted = planted_precursors(300, random_state=0)  # texts in which a word announces the event
train, test = data.split(data.target_dates[200])
model = EventForecaster(16, encoder="words", max_epochs=12, random_state=0).fit(train)
found = model.precursors(test[model.predict(test) == 1], top_k=1, by="occlusion")
print(found.head(10).to_string())

# %%
# Forecast and outcome, day by day.
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
probability = model.predict_proba(test)[:, 1]
axis.bar(range(len(test)), test.y, width=1, alpha=0.25, label="event")
axis.plot(range(len(test)), probability, label="forecast")
axis.set(xlabel="target day", ylabel="probability", xlim=(0, len(test)))
axis.legend(loc="upper right")
