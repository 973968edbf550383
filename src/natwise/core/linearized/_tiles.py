"""A tangent kernel in tiles, each a file: any process computes any tile, and a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natwise.core.io import atomic_path, load_npz, write_text
from natwise.core.linearized._memory import check_fits
from natwise.core.linearized._ntk import as_inputs, check_evaluation_mode, empirical_ntk
from natwise.core.validation import check_integer, check_path, shorten

NOTE = "kernel.json"


def write_ntk_tiles(
    module: nn.Module,
    X: Any,
    folder: str | os.PathLike[str],
    X2: Any = None,
    *,
    tile_rows: int = 1000,
    task: int = 0,
    n_tasks: int = 1,
    **options: Any,
) -> int:
    """Compute tiles of `empirical_ntk` into files; tiles that are there are not computed again.

    Start it as often as wanted on one folder, one after the other or at once, on any number of machines: a tile is
    written whole or not at all, and every process computes the same. Of the symmetric kernel only the upper tiles are
    computed.

    Parameters
    ----------
    module, X, X2
        As of `empirical_ntk`. All processes must be given the same.
    folder : path
        Where the tiles lie; made when it is missing.
    tile_rows : int
        Samples per side of a tile.
    task, n_tasks : int
        This process computes every `n_tasks`-th tile, from the one numbered `task`.
    **options
        More arguments of `empirical_ntk`.

    Returns
    -------
    int
        How many tiles of the whole kernel are still missing; 0 when `read_ntk_tiles` can read it.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, and for a folder with tiles of another kernel.
    """
    check_path("folder", folder)
    tile_rows = check_integer("tile_rows", tile_rows, minimum=1)
    n_tasks = check_integer("n_tasks", n_tasks, minimum=1)
    task = check_integer("task", task, minimum=0, maximum=n_tasks - 1)
    check_evaluation_mode(module)
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError("module must have parameters that require a gradient, got none")
    inputs = as_inputs("X", X, parameters)
    inputs2 = None if X2 is None else as_inputs("X2", X2, parameters)
    shape = [-(-len(rows) // tile_rows) for rows in (inputs, inputs if inputs2 is None else inputs2)]
    folder = _open(
        Path(folder), {"tiles": shape, "symmetric": X2 is None, "of": _digest(module, inputs, inputs2, options)}
    )
    names = _names(folder, shape, symmetric=X2 is None)
    for (i, j), path in list(names.items())[task::n_tasks]:
        if not path.exists():
            rows, columns = (slice(at * tile_rows, (at + 1) * tile_rows) for at in (i, j))
            other = None if inputs2 is None and i == j else (inputs if inputs2 is None else inputs2)[columns]
            tile = empirical_ntk(module, inputs[rows], other, **options)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, tile=tile)
    return sum(not path.exists() for path in names.values())


def read_ntk_tiles(folder: str | os.PathLike[str]) -> np.ndarray:
    """Read a kernel whose tiles `write_ntk_tiles` wrote.

    Parameters
    ----------
    folder : path
        Where the tiles lie.

    Returns
    -------
    ndarray (n * k, n2 * k)
        As `empirical_ntk` gives it, up to rounding.

    Raises
    ------
    OSError
        If the folder holds no kernel.
    ValueError
        If tiles are missing or damaged, or the kernel exceeds the machine's memory.
    """
    folder = Path(folder)
    try:
        note = json.loads((folder / NOTE).read_bytes())
        shape, symmetric = [check_integer("tiles", size, minimum=1) for size in note["tiles"]], bool(note["symmetric"])
        rows, columns = shape
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{folder / NOTE} does not describe a kernel: {shorten(error, 200)}") from error
    names = _names(folder, shape, symmetric)
    if missing := [path.name for path in names.values() if not path.exists()]:
        raise ValueError(f"{folder} lacks {len(missing)} of {len(names)} tiles, such as {missing[0]}")
    check_fits("the kernel", sum(path.stat().st_size for path in names.values()), "read its tiles one by one")
    tiles = {place: load_npz(path)["tile"] for place, path in names.items()}
    if symmetric:
        tiles |= {(j, i): tile.T for (i, j), tile in tiles.items() if i != j}
    return np.block([[tiles[i, j] for j in range(columns)] for i in range(rows)])


def _names(folder: Path, shape: list[int], symmetric: bool) -> dict[tuple[int, int], Path]:
    places = product(*map(range, shape))
    return {(i, j): folder / f"tile-{i}-{j}.npz" for i, j in places if not symmetric or i <= j}


def _open(folder: Path, note: dict[str, Any]) -> Path:
    path, text = folder / NOTE, json.dumps(note)
    if not path.exists():
        write_text(path, text)
    if path.read_text("utf-8") != text:
        raise ValueError(f"folder must be empty or hold tiles of this kernel, got {folder} with others")
    return folder


def _digest(module: nn.Module, inputs: Tensor, inputs2: Tensor | None, options: dict[str, Any]) -> str:
    """Return a digest of everything the kernel depends on."""
    digest = hashlib.sha256(f"{module!r} {sorted(options.items())}".encode())
    tensors = [*module.state_dict().items(), ("X", inputs), *([("X2", inputs2)] if inputs2 is not None else [])]
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
