"""
When do neighbours of neighbours help?
======================================

MixHop mixes several powers of the adjacency matrix. The less neighbours resemble each other, the more it gains over one
power.
"""

import matplotlib.pyplot as plt
import numpy as np

from natwise.graphs import MixHopClassifier, homophily_graph

homophily = [0.0, 0.3, 0.6]
accuracy = {}
for powers, label in {(0, 1, 2): "MixHop", (1,): "one hop", (0,): "no graph"}.items():
    accuracy[label] = []
    for h in homophily:
        graph = homophily_graph(h, n_nodes=1500, random_state=0)
        model = MixHopClassifier(powers=powers, dropout=0.2, max_epochs=60, random_state=0)
        model.fit(graph.X, graph.y, graph.edge_index, graph.train_idx, graph.val_idx)
        accuracy[label].append(np.mean((model.predict() == graph.y)[graph.test_idx]))
    print(label, np.round(accuracy[label], 2))

# %%
# Accuracy on test nodes against the share of neighbours of the same class.
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for label, values in accuracy.items():
    axis.plot(homophily, values, marker="o", label=label)
axis.set(xlabel="homophily", ylabel="accuracy", ylim=(0, 1))
axis.legend()
