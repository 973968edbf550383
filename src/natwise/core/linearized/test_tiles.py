"""Kernels in tiles: equal to the kernel at once, whoever computed which tile and whoever was killed."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch

from natwise.core.linearized import empirical_ntk, read_ntk_tiles, write_ntk_tiles
from natwise.core.random import Streams
from natwise.testing import check_bad_input, check_resume, unchanged

X = np.random.default_rng(0).standard_normal((11, 1, 6, 6))
X2 = np.random.default_rng(1).standard_normal((4, 1, 6, 6))
JOB = """
import sys
from natwise.core.linearized import write_ntk_tiles
from natwise.core.linearized.test_tiles import X, network
sys.exit(write_ntk_tiles(network(), X, sys.argv[1], tile_rows=1))
"""


def network(seed=0):
    with Streams(seed).torch_global("init"):
        layers = torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
        return torch.nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize(
    ("other", "tile_rows", "options"),
    [
        (None, 4, {}),
        (None, 1, {"outputs": "mean"}),
        (X2, 3, {}),
        (None, 50, {"method": "projected", "n_projections": 20}),
        (None, 4, {"method": "projected", "n_projections": 20, "random_state": 3}),
    ],
)
def test_equals_the_kernel_at_once(tmp_path, other, tile_rows, options):
    module = network()
    with unchanged(module, X, other):
        left = [write_ntk_tiles(module, X, tmp_path, other, tile_rows=tile_rows, task=i, n_tasks=3, **options)
                for i in (2, 0, 1)]  # fmt: skip
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)
    kernel = empirical_ntk(module, X, other, **options)
    np.testing.assert_allclose(read_ntk_tiles(tmp_path), kernel, rtol=1e-12, atol=1e-12)


def test_finished_tiles_stay_and_missing_ones_are_named(tmp_path):
    assert write_ntk_tiles(network(), X, tmp_path, tile_rows=6, task=0, n_tasks=2) == 1
    with pytest.raises(ValueError, match=r"lacks 1 of 3 tiles, such as tile-0-1\.npz"):
        read_ntk_tiles(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert write_ntk_tiles(network(), X.tolist(), tmp_path, tile_rows=6) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    with pytest.raises(FileNotFoundError):
        read_ntk_tiles(tmp_path / "nothing")


def test_tiles_of_another_kernel_are_refused(tmp_path):
    write_ntk_tiles(network(), X, tmp_path)
    others = [(network(1), X, {}), (network(), X + 1, {}), (network(), X, {"outputs": "mean"}), (network(), X2, {})]
    for module, inputs, options in [*others, (network(), X, {"tile_rows": 2})]:
        with pytest.raises(ValueError, match="folder must be empty or hold tiles of this kernel"):
            write_ntk_tiles(module, inputs, tmp_path, **options)


def test_a_damaged_tile_is_refused(tmp_path):
    write_ntk_tiles(network(), X, tmp_path)
    path = tmp_path / "tile-0-0.npz"
    content = path.read_bytes()
    for damaged in (b"", content[:-5], content[:300] + b"!" + content[301:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tile-0-0\.npz is no readable"):
            read_ntk_tiles(tmp_path)


@pytest.mark.parametrize("note", ["", "[]", '{"tiles": [1], "symmetric": 0}', '{"tiles": [1, -2], "symmetric": 0}'])
def test_a_damaged_note_is_refused(tmp_path, note):
    (tmp_path / "kernel.json").write_text(note)
    with pytest.raises(ValueError, match=r"kernel\.json does not describe a kernel"):
        read_ntk_tiles(tmp_path)


def test_killed_jobs_go_on(tmp_path):
    check_resume([sys.executable, "-c", JOB, str(tmp_path)], tmp_path / "kernel.json", seconds=0.05)
    np.testing.assert_allclose(read_ntk_tiles(tmp_path), empirical_ntk(network(), X), rtol=1e-12, atol=1e-12)
    tiles = {f"tile-{i}-{j}.npz" for i, j in itertools.combinations_with_replacement(range(len(X)), 2)}
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".tmp")} == {"kernel.json", *tiles}
    assert json.loads((tmp_path / "kernel.json").read_text())["symmetric"]


def test_bad_input(tmp_path):
    cases = [
        ({"tile_rows": 0}, ValueError, "0"),
        ({"task": 1}, ValueError, "<= 0"),
        ({"n_tasks": 0.5}, TypeError, "0.5"),
        ({"folder": None}, TypeError, "path"),
        ({"X": [[np.nan]]}, ValueError, "finite"),
        ({"module": torch.nn.ReLU()}, ValueError, "require a gradient"),
        ({"method": "none"}, ValueError, "none"),
    ]
    check_bad_input(write_ntk_tiles, cases, module=network(), X=X, folder=tmp_path / "tiles")
