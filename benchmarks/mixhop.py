"""MixHopConv against torch_geometric's layer: one forward and backward pass in turns, in the same process.

    OMP_NUM_THREADS=1 python benchmarks/mixhop.py            # on a GPU: python benchmarks/mixhop.py --device cuda

Prints the least CPU milliseconds of both (on a GPU: wall clock), and the ratio. The peer takes an edge index, as its
documentation shows, or a sparse CSR matrix; ours takes either, once. The last column is how far the outputs lie apart.
"""

import argparse
import sys
import time
import warnings

import numpy as np
import torch
from scipy import sparse

from natwise.graphs import MixHopConv

SETTINGS = {  # nodes, directed edges, features, columns per power
    "Cora size, dense input": (2708, 10_556, 1433, 20),
    "100,000 nodes": (100_000, 1_000_000, 128, 32),
    "narrow: F = d": (20_000, 200_000, 32, 32),
    "narrow: F < d": (20_000, 200_000, 16, 32),
    "narrow: F << d": (20_000, 200_000, 4, 64),
}
ARXIV = (169_343, 2_315_598, 128, 32)
REPEATS = 3


def peer_class():
    try:
        from torch_geometric.nn import MixHopConv as Peer
    except ImportError:
        print("torch_geometric is needed for this comparison alone: pip install torch_geometric")
        sys.exit(0)  # the other benchmarks go on
    return Peer


def random_graph(n, n_edges, n_features, device):
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(0, n, (2, n_edges // 2), generator=generator)
    edges = torch.unique(torch.cat([half, half.flip(0)], dim=1), dim=1)
    edges = edges[:, edges[0] != edges[1]].to(device)
    csr = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1], device=device), (n, n)).to_sparse_csr()
    return torch.randn(n, n_features, generator=generator).to(device), edges, csr


def step(layer, x, graph):
    def run():
        layer.zero_grad()
        layer(x, graph).sum().backward()

    return run


def interleaved(works, device):
    """Return the least milliseconds of every piece of work, measured in turns so that load hits all alike."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = {name: float("inf") for name in works}
    for repeat in range(REPEATS + 1):
        for name, work in works.items():
            start = clock()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                best[name] = min(best[name], 1e3 * (clock() - start))
    return best


def compare(title, setting, device):
    n, n_edges, n_features, width = setting
    x, edges, csr = random_graph(n, n_edges, n_features, device)
    ours = MixHopConv(n_features, width).to(device)
    peer = peer_class()(n_features, width, bias=False).to(device)
    with torch.no_grad():
        for block, linear in zip(ours.weights.values(), peer.lins, strict=True):
            linear.weight.copy_(block.T)
        apart = (ours(x, edges) - peer(x, edges)).abs().max().item()
    works = {"ours": step(ours, x, edges), "edge index": step(peer, x, edges), "CSR": step(peer, x, csr)}
    best = interleaved(works, device)
    print(f"{title}: n={n:,}, {edges.shape[1]:,} edges, F={n_features}, 3x{width}")
    print(f"    natwise {best['ours']:9.1f} ms", end="")
    for form in ("edge index", "CSR"):
        print(f" | peer, {form} {best[form]:9.1f} ms: {best[form] / best['ours']:5.1f}x", end="")
    print(f" | apart {apart:.0e}")


def sparse_input(device):
    """Print our own gain from sparse features at Cora's density."""
    n, n_edges, n_features, width = SETTINGS["Cora size, dense input"]
    dense = np.random.default_rng(0).random((n, n_features)) < 0.013
    _, edges, _ = random_graph(n, n_edges, 1, device)
    layer = MixHopConv(n_features, width).to(device)
    forms = {"dense": torch.tensor(dense, dtype=torch.float32, device=device), "sparse": sparse.csr_array(dense * 1.0)}
    best = interleaved({name: step(layer, x, edges) for name, x in forms.items()}, device)
    print(
        f"sparse features: {best['sparse']:.1f} ms, dense {best['dense']:.1f} ms: {best['dense'] / best['sparse']:.1f}x"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    warnings.filterwarnings("ignore", message="Sparse")
    for title, setting in SETTINGS.items():
        compare(title, setting, device)
    if device == "cuda":
        compare("ogbn-arxiv size", ARXIV, device)
    sparse_input(device)


if __name__ == "__main__":
    main()
