"""Node features, dense or sparse: checks, dropout, rows of unit length, products with weights."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F

from natwise.core.validation import check_array, shorten
from natwise.graphs.mixhop._graph import Memory, product, to_csr_tensor, to_scipy

SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class SparseFeatures:
    """A sparse CSR matrix of features (n, F), its transpose for the backward pass, and where entries stand there."""

    matrix: torch.Tensor
    transposed: torch.Tensor
    rows: torch.Tensor
    order: torch.Tensor

    @classmethod
    def prepare(cls, x: Any, dtype: torch.dtype, device: torch.device) -> SparseFeatures:
        """Build it from a scipy or torch sparse matrix."""
        matrix = sparse.csr_array(to_scipy(x) if isinstance(x, torch.Tensor) else copy.copy(x), copy=True)
        matrix.sum_duplicates()
        matrix = matrix.astype(np.float64, copy=False)
        if not np.isfinite(matrix.data).all():
            raise ValueError("x must be finite, got NaN or infinity")
        matrix.eliminate_zeros()
        numbered = matrix.copy()
        numbered.data = np.arange(matrix.nnz, dtype=np.int64)
        order = sparse.csr_array(numbered.T).data
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return cls(
            to_csr_tensor(matrix).to(device=device, dtype=dtype),
            to_csr_tensor(matrix.T).to(device=device, dtype=dtype),
            torch.from_numpy(rows).to(device),
            torch.from_numpy(order).to(device),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseFeatures:
        return self  # it is never changed, and torch cannot copy this layout

    @property
    def shape(self) -> torch.Size:
        """Nodes and features."""
        return self.matrix.shape

    @property
    def values(self) -> torch.Tensor:
        """The entries, row by row."""
        return self.matrix.values()

    def with_values(self, values: torch.Tensor) -> SparseFeatures:
        """Return the same pattern with other entries (nnz,)."""
        return dataclasses.replace(
            self,
            matrix=_with_values(self.matrix, values),
            transposed=_with_values(self.transposed, values[self.order]),
        )

    def __matmul__(self, weight: torch.Tensor) -> torch.Tensor:
        return _SparseProduct.apply(self.matrix, self.transposed, weight)

    def to_dense(self) -> torch.Tensor:
        """Return the dense matrix (n, F)."""
        return self.matrix.to_dense()


Features: TypeAlias = "torch.Tensor | SparseFeatures"


def recall_features(memory: Memory, x: Any, like: torch.Tensor, n_features: int) -> Features:
    """Return features in the dtype and on the device of `like`, checked; sparse ones are prepared once."""
    if isinstance(x, SparseFeatures):
        return x
    is_sparse = x.layout != torch.strided if isinstance(x, torch.Tensor) else sparse.issparse(x)
    if not isinstance(x, torch.Tensor) and not is_sparse:
        x = torch.from_numpy(np.array(check_array("x", x), order="C"))  # dropout draws in the order of memory
    if len(x.shape) != 2 or x.shape[1] != n_features:
        raise ValueError(f"x must have shape (n_nodes, {n_features}), got {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError("x must have at least one row, got none")
    if not is_sparse:
        cast = _checked_dense(x).to(like)
        return cast if cast is x else _checked_dense(cast)  # float64 may be beyond float32
    if getattr(x, "requires_grad", False):
        raise ValueError("x must be dense when it requires a gradient, got a sparse tensor")
    return memory.get(x, SparseFeatures.prepare, like.dtype, like.device)


def binarized(x: Features) -> Features:
    """Return 1 for every entry that is not zero."""
    return (x != 0).to(x.dtype) if isinstance(x, torch.Tensor) else x.with_values(torch.ones_like(x.values))


def dropped(x: Features, rate: float, training: bool) -> Features:
    """Zero entries at random and scale the others by 1 / (1 - rate), in training only."""
    if not training or rate == 0:
        return x
    if isinstance(x, torch.Tensor):
        return F.dropout(x, rate)
    return x.with_values(F.dropout(x.values, rate))


def unit_rows(x: Features) -> Features:
    """Scale every row to Euclidean length 1; rows of (nearly) zeros stay so."""
    if isinstance(x, torch.Tensor):
        return F.normalize(x, eps=SMALLEST_NORM)
    squares = x.values.new_zeros(x.shape[0]).index_add_(0, x.rows, x.values**2)
    return x.with_values(x.values / squares.clamp(min=SMALLEST_NORM**2).sqrt()[x.rows])


def _checked_dense(x: torch.Tensor) -> torch.Tensor:
    """Return the dense features (n, F) when they are real and finite."""
    if x.is_complex():
        raise TypeError(f"x must be real, got dtype {x.dtype}")
    # the result of another layer is not looked at again; a sum tells most quickly that all is finite
    if x.grad_fn is None and x.is_floating_point() and not x.detach().sum().isfinite() and not x.isfinite().all():
        raise ValueError(f"x must be finite, got {shorten(x.detach()[~x.isfinite()][0].item())}")
    return x


def _with_values(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the sparse CSR matrix with other entries (nnz,) in the same places."""
    return torch.sparse_csr_tensor(
        matrix.crow_indices(), matrix.col_indices(), values, size=matrix.shape, check_invariants=False
    )


class _SparseProduct(torch.autograd.Function):
    """Sparse features times dense weights; torch's own would transpose the sparse matrix in every backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, transposed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        return product(matrix, weight.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        return None, None, _SparseProduct.apply(ctx.transposed, ctx.matrix, gradient)
