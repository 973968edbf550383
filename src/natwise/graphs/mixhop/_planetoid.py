"""The published Planetoid files, which are pickles, read as data: no object of theirs is ever made or called."""

from __future__ import annotations

import codecs
import io
import os
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from natwise.core.io import atomic_path
from natwise.core.validation import shorten

N_VALIDATION = 500
PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")


def convert_planetoid(folder: str | os.PathLike[str], name: str, path: str | os.PathLike[str]) -> None:
    """Write the published files ``ind.NAME.*`` of a citation graph as an NPZ file for `load_planetoid`.

    The files are pickles (protocols 0 to 4 are read). Their opcodes are followed by a reader that knows numbers, text,
    lists, dicts, NumPy arrays and CSR matrices; everything else is refused, and nothing in them is run.

    Parameters
    ----------
    folder : path
        Holds ``ind.NAME.x, .y, .tx, .ty, .allx, .ally, .graph`` and ``.test.index``.
    name : str
        Such as ``"cora"``.
    path : path
        NPZ file to write, atomically. Training nodes are the first ones, those of ``y``; validation nodes the next 500;
        test nodes those of ``test.index``. Test nodes that are left out there (Citeseer) have no features, no label.

    Raises
    ------
    OSError
        If a file is missing.
    ValueError
        If a file is no such pickle, or they do not fit together; the message names it.
    """
    parts = {part: _read(Path(folder) / f"ind.{name}.{part}") for part in PARTS}
    index_path = Path(folder) / f"ind.{name}.test.index"
    try:
        test = np.array(index_path.read_text("ascii").split(), dtype=np.int64)
        arrays = _assembled(parts, test)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{index_path} and the files beside it do not hold a graph: {shorten(error, 200)}") from error
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _assembled(parts: dict[str, Any], test: np.ndarray) -> dict[str, np.ndarray]:
    first, later = parts["allx"].tocoo(), parts["tx"].tocoo()
    shape = (int(max(test.max() + 1, first.shape[0])), first.shape[1])
    rows = np.concatenate([first.row, test[later.row]])
    columns, values = (np.concatenate([getattr(part, key) for part in (first, later)]) for key in ("col", "data"))
    X = sparse.csr_array(sparse.coo_array((values.astype(np.float32), (rows, columns)), shape=shape))
    labels = np.full(shape[0], -1, dtype=np.int64)
    for nodes, one_hot in ((np.arange(len(parts["ally"])), parts["ally"]), (test, parts["ty"])):
        labels[nodes] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
    pairs = {(min(i, j), max(i, j)) for i, neighbours in parts["graph"].items() for j in neighbours}
    n_train = len(parts["y"])
    return {
        "indptr": X.indptr,
        "indices": X.indices,
        "data": X.data,
        "shape": np.array(shape),
        "edges": np.array(sorted(pairs), dtype=np.int64),
        "labels": labels,
        "train_idx": np.arange(n_train),
        "val_idx": np.arange(n_train, n_train + N_VALIDATION),
        "test_idx": test,
    }


@dataclass
class _Shell:
    """Stands for an object of a known type until its state arrives."""

    kind: str
    args: tuple[Any, ...]
    value: Any = field(default=None)


def _read(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return _plain(_follow(io.BytesIO(content)))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no pickle of plain data: {shorten(error, 200)}") from error


def _follow(file: io.BytesIO) -> Any:
    """Follow the opcodes of a pickle with a stack and a memo."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    while code := file.read(1):
        opcode = pickletools.code2op[code.decode("latin-1")]  # type: ignore[attr-defined]
        name, argument = opcode.name, _argument(opcode, file)
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(stack)
            stack = []
        elif name in _FROM_MARK:
            items, stack = stack, marks.pop()
            _FROM_MARK[name](stack, items)
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(argument)])
        elif name in _ON_STACK:
            _ON_STACK[name](stack)
        elif name == "GLOBAL" or argument is not None:
            if name not in ("PROTO", "FRAME"):
                stack.append(_known(argument.replace(" ", ".")) if name == "GLOBAL" else argument)
        else:
            raise ValueError(f"it uses the opcode {name}")
    raise ValueError("it ends too early")


def _argument(opcode: Any, file: io.BytesIO) -> Any:
    if opcode.name == "STRING":  # pickletools takes it for ASCII
        return codecs.escape_decode(file.readline().strip()[1:-1])[0].decode("latin-1")
    return None if opcode.arg is None else opcode.arg.reader(file)


def _known(name: str) -> str:
    """Return the short name of what a pickle may refer to."""
    short = _NAMES.get(name.replace("numpy._core", "numpy.core"))
    if short is None:
        raise ValueError(f"it refers to {name}")
    return short


def _reduce(stack: list[Any]) -> None:
    args, kind = stack.pop(), stack.pop()
    if kind == "encode":
        stack.append(args[0].encode("latin-1"))
    elif kind == "reconstructor":
        stack.append(_Shell(args[0], ()))
    elif kind == "defaultdict":
        stack.append({})
    elif kind in ("array", "dtype", "scalar", "csr", "dict"):
        stack.append(_Shell(kind, args))
    else:
        raise ValueError(f"it calls {shorten(kind)}")


def _build(stack: list[Any]) -> None:
    state = stack.pop()
    stack[-1].value = state


def _stack_global(stack: list[Any]) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_known(f"{module}.{name}"))


def _set_items(stack: list[Any], items: list[Any]) -> None:
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _append(stack: list[Any]) -> None:
    item = stack.pop()
    stack[-1].append(item)


def _tuple(size: int) -> Any:
    def collect(stack: list[Any]) -> None:
        stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]

    return collect


def _plain(value: Any) -> Any:
    """Return what the shells stand for."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if not isinstance(value, _Shell):
        return value
    if value.kind == "csr":
        state = {key: _plain(item) for key, item in value.value.items()}
        shape = tuple(state["_shape"] if "_shape" in state else state["shape"])
        return sparse.csr_array((state["data"], state["indices"], state["indptr"]), shape=shape)
    if value.kind == "array":
        _, shape, dtype, in_columns, content = value.value
        array = np.frombuffer(_bytes(content), dtype=_dtype(dtype))
        return array.reshape(shape, order="F" if in_columns else "C").copy()
    if value.kind == "scalar":
        return np.frombuffer(_bytes(value.args[1]), dtype=_dtype(value.args[0]))[0].item()
    raise ValueError(f"it holds a {value.kind}")


def _dtype(shell: _Shell) -> np.dtype:
    dtype = np.dtype(str(shell.args[0]))
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds an array of {dtype}")
    order: Any = shell.value[1] if shell.value else "="
    return dtype.newbyteorder("=" if order == "|" else order)


def _bytes(content: Any) -> bytes:
    return content.encode("latin-1") if isinstance(content, str) else content


_NAMES = {
    "numpy.core.multiarray._reconstruct": "array",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "scipy.sparse.csr.csr_matrix": "csr",
    "scipy.sparse._csr.csr_matrix": "csr",
    "scipy.sparse._csr.csr_array": "csr",
    "collections.defaultdict": "defaultdict",
    "__builtin__.list": "list",
    "builtins.list": "list",
    "__builtin__.object": "object",
    "builtins.object": "object",
    "copy_reg._reconstructor": "reconstructor",
    "copyreg._reconstructor": "reconstructor",
    "_codecs.encode": "encode",
}
_FROM_MARK: dict[str, Any] = {
    "LIST": lambda stack, items: stack.append(items),
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "DICT": lambda stack, items: stack.append(dict(zip(items[::2], items[1::2], strict=True))),
    "APPENDS": lambda stack, items: stack[-1].extend(items),
    "SETITEMS": _set_items,
}
_ON_STACK: dict[str, Any] = {
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "NONE": lambda stack: stack.append(None),
    "NEWTRUE": lambda stack: stack.append(True),
    "NEWFALSE": lambda stack: stack.append(False),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "SETITEM": _set_item,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "STACK_GLOBAL": _stack_global,
}
