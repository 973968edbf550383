"""State space scans in plain torch: that of Mamba-2 (a decay per head) in chunks, that of Mamba-1 by doubling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from natwise.core.validation import check_integer, shorten


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Run the state space recurrence of Mamba-2 (structured state space duality).

    .. math:: S_t = \exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, \qquad y_t = S_t C_t

    Inside a chunk this is masked attention, :math:`y_i = \sum_{j \le i} (C_i \cdot B_j) \exp(\sum_{k=j+1}^i dt_k A)
    dt_j x_j`; between chunks only the states are carried. The result does not depend on `chunk_size`.

    Parameters
    ----------
    x : tensor (batch, time, heads, p)
    dt : tensor (batch, time, heads)
        Step sizes >= 0, after softplus.
    A : tensor (heads,)
        Decay rates <= 0.
    B, C : tensor (batch, time, groups, n)
        `heads` must be a multiple of `groups`; consecutive heads share a group.
    chunk_size : int
        A sequence that fits into one chunk is done in the quadratic form. Time grows with time x chunk_size.
    initial_state : tensor (batch, heads, p, n), optional
        The state before the first step; zero by default.

    Returns
    -------
    y : tensor (batch, time, heads, p)
        Without the skip connection D x.
    final_state : tensor (batch, heads, p, n)

    Raises
    ------
    TypeError, ValueError
        For inputs of other kinds or shapes, numbers that are not finite or of the wrong sign (looked at on the CPU
        only), or a `chunk_size` below 1.

    Notes
    -----
    Section 6 of Dao and Gu (2024). Decays are summed in float64, and the upper triangle masked before the exponential.
    """
    size = check_integer("chunk_size", chunk_size, minimum=1)
    _check_shapes(x, dt, A, B, C, initial_state)
    state = None if initial_state is None else initial_state.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # one precision in both directions
        rates = dt.double() * A.double()  # sums of rates reach thousands, and their differences are what counts
        driven = (x * dt[..., None]).to(x.dtype)
        y, final_state = _ChunkedScan.apply(driven, rates, B.to(x.dtype), C.to(x.dtype), state, size)
    return y, final_state


def ssd_attention_map(dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """Return the matrix of which `ssd_scan` is the product with x: masked attention with decay.

    Parameters
    ----------
    dt : tensor (batch, time, heads)
    A : tensor (heads,)
    B, C : tensor (batch, time, groups, n)
        As in `ssd_scan`.

    Returns
    -------
    tensor (batch, heads, time, time)
        M with y_i = sum_j M_ij x_j.

    Raises
    ------
    TypeError, ValueError
        For inputs of other kinds or shapes, or numbers that are not finite or of the wrong sign (looked at on the CPU
        only).
    """
    check_floats("dt", dt)
    if dt.ndim != 3 or not dt.numel():
        raise ValueError(f"dt must have shape (batch, time >= 1, heads), got {tuple(dt.shape)}")
    _check_shapes(dt[..., None], dt, A, B, C, None)
    heads, groups = dt.shape[2], B.shape[2]
    passed = (dt.double() * A.double()).cumsum(dim=1).transpose(1, 2)
    scores = (C.transpose(1, 2) @ B.transpose(1, 2).mT).repeat_interleave(heads // groups, dim=1)
    return scores.tril() * _decays(passed, scores.dtype) * dt.transpose(1, 2)[:, :, None]


def selective_scan(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """Return y_t = h_t C_t of the recurrence of Mamba-1, h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T.

    Parameters
    ----------
    x, dt : tensor (batch, time, channels)
    A : tensor (channels, n)
    B, C : tensor (batch, time, n)

    Returns
    -------
    tensor (batch, time, channels)

    Notes
    -----
    A loop over time, whose steps stay in the cache. Only the states are stored, batch x time x channels x n numbers.
    """
    with torch.autocast(x.device.type, enabled=False):
        parts = (part.to(dt.dtype) for part in (dt * x, dt, A, B, C))
        y: torch.Tensor = _SelectiveScan.apply(*parts)
    return y.to(x.dtype)


class _SelectiveScan(torch.autograd.Function):
    """`selective_scan` of dt * x and the others, all of one dtype; states (time, batch, channels, n) are kept."""

    @staticmethod
    def forward(
        ctx: Any, driven: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
    ) -> torch.Tensor:
        y, states = torch.empty_like(driven), driven.new_empty(driven.shape[1], len(driven), *A.shape)
        for t, state in enumerate(states):
            torch.mul(driven[:, t, :, None], B[:, t, None], out=state)
            if t:
                state.addcmul_(_decay_at(t, dt, A), states[t - 1])
            y[:, t] = (state @ C[:, t, :, None])[..., 0]
        ctx.save_for_backward(driven, dt, A, B, C, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        driven, dt, A, B, C, states = ctx.saved_tensors
        to_driven, to_dt, to_A, to_B, to_C = (torch.zeros_like(part) for part in (driven, dt, A, B, C))
        to_state = torch.zeros_like(states[0])
        for t in reversed(range(len(states))):
            to_state.addcmul_(outer[:, t, :, None], C[:, t, None])
            to_C[:, t] = (outer[:, t, None] @ states[t])[:, 0]
            to_B[:, t] = (driven[:, t, None] @ to_state)[:, 0]
            to_driven[:, t] = (to_state @ B[:, t, :, None])[..., 0]
            if t:
                to_state *= _decay_at(t, dt, A)
                to_rate = to_state * states[t - 1]  # to dt_t A
                to_dt[:, t] = (to_rate * A).sum(dim=-1)
                to_A += to_rate.mul_(dt[:, t, :, None]).sum(dim=0)
        return to_driven, to_dt, to_A, to_B, to_C


def _decay_at(t: int, dt: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Return exp(dt_t A), (batch, channels, n)."""
    return (dt[:, t, :, None] * A).exp_()


class _ChunkedScan(torch.autograd.Function):
    r"""The scan of steps that are already multiplied by dt, with chunks (b, c, g, q, ...) as batches of matrices.

    The heads of a group stand side by side in one matrix wherever they share the other factor, B or C. Backward, no
    gradient goes through the decays: the gradient of a sum of rates up to step i is that of y_i along y_i less that of
    the input at i along itself, since both only scale with its exponential.

    Inputs: driven (batch, time, heads, p), rates (batch, time, heads) in float64, keys and queries (batch, time,
    groups, n), the initial state (batch, heads, p, n) or None, steps per chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        driven: torch.Tensor,
        rates: torch.Tensor,
        keys: torch.Tensor,
        queries: torch.Tensor,
        initial: torch.Tensor | None,
        size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (time, heads), groups = driven.shape[1:3], keys.shape[2]
        size = min(size, time)
        D, K, Q = (_chunked(part.reshape(len(part), time, groups, -1), size) for part in (driven, keys, queries))
        passed = _chunked(rates.unflatten(2, (groups, -1)), size).cumsum(dim=3)  # (b, c, g, q, h/g)
        decays = _decays(passed.mT, D.dtype)
        weights = (Q @ K.mT).tril()[:, :, :, None] * decays
        y = _side_by_side(weights @ _by_head(D, heads // groups))
        left = (passed[..., -1:, :] - passed).to(D.dtype).exp()  # decay from each step to the end of its chunk
        whole, passed = passed[..., -1, :].to(D.dtype).exp(), passed.to(D.dtype).exp()
        *states, state = _carry(_scaled(D, left).mT @ K, whole, initial)
        before = None
        if states:
            before = _rows(states, groups)
            reading = slice(int(initial is None), None)
            y[:, reading] += _scaled(Q[:, reading] @ before.mT, passed[:, reading])
        y = _unchunked(y, driven.shape)
        ctx.has_initial = initial is not None
        ctx.save_for_backward(D, K, Q, decays, weights, left, whole, passed, before, state, y)
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor | None, outer_state: torch.Tensor | None) -> tuple[Any, ...]:
        D, K, Q, decays, weights, left, whole, passed, before, state, y = ctx.saved_tensors
        outer = torch.zeros_like(y) if outer is None else outer
        batch, time = y.shape[:2]
        groups, heads = K.shape[2], whole.shape[-1]  # heads of a group
        G = _chunked(outer.reshape(batch, time, groups, -1), K.shape[3])
        G_by_head = _by_head(G, heads)
        scores = (G_by_head @ _by_head(D, heads).mT).mul_(decays).sum(dim=3).tril()
        to_D, to_K, to_Q = _side_by_side(weights.mT @ G_by_head), scores.mT @ Q, scores @ K
        reading = slice(int(not ctx.has_initial), None)  # chunks that read a state
        reached = _scaled(G[:, reading], passed[:, reading])
        states = _carry((reached.mT @ Q[:, reading]).flip(1), whole[:, reading].flip(1), outer_state)
        to_initial = states.pop() if ctx.has_initial else None
        if before is not None:
            to_Q[:, reading] += reached @ before
        if states:  # gradients after each chunk, the last first
            written = slice(len(states))
            after = _rows(states[::-1], groups)
            to_D[:, written] += _scaled(K[:, written] @ after.mT, left[:, written])
            to_K[:, written] += _scaled(D[:, written], left[:, written]) @ after
        to_passed = (outer * y).sum(dim=-1) - _unchunked(D * to_D, y.shape).sum(dim=-1)
        if outer_state is not None:
            to_passed[:, -1] += (outer_state * state).sum(dim=(-2, -1))
        to_rates = to_passed.double().flip(1).cumsum(dim=1).flip(1)
        shape = (batch, time, groups, K.shape[-1])
        return _unchunked(to_D, y.shape), to_rates, _unchunked(to_K, shape), _unchunked(to_Q, shape), to_initial, None


def _chunked(steps: torch.Tensor, size: int) -> torch.Tensor:
    """Return (batch, time, groups, m) as (batch, chunks, groups, size, m), filled up with zeros."""
    missing = -steps.shape[1] % size
    padded = pad(steps, (0, 0, 0, 0, 0, missing)) if missing else steps
    return padded.unflatten(1, (-1, size)).transpose(2, 3)


def _unchunked(chunks: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undo `_chunked` and any flattening of (batch, time, ...) before it."""
    return chunks.transpose(2, 3).flatten(1, 2)[:, : shape[1]].reshape(shape)


def _by_head(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """Return (..., q, heads * p) as (..., heads, q, p)."""
    return matrices.unflatten(-1, (heads, -1)).transpose(-3, -2).contiguous()


def _side_by_side(matrices: torch.Tensor) -> torch.Tensor:
    """Undo `_by_head`: (..., heads, q, p) to (..., q, heads * p)."""
    return matrices.transpose(-3, -2).flatten(-2)


def _scaled(matrices: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply (..., q, heads * p) by a factor for every row and head (..., q, heads)."""
    return (matrices.unflatten(-1, (factors.shape[-1], -1)) * factors[..., None]).flatten(-2)


def _decays(passed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return exp(passed_i - passed_j) for i >= j, else 1, from cumulated rates (..., q), in another precision."""
    difference = (passed[..., :, None] - passed[..., None, :]).to(dtype)
    return difference.tril_().exp_()  # what lies ahead could overflow


def _rows(states: list[torch.Tensor], groups: int) -> torch.Tensor:
    """Return states (b, h, p, n) in a row as (b, c, g, h/g * p, n)."""
    return torch.stack(states, dim=1).unflatten(2, (groups, -1)).flatten(3, 4)


def _carry(added: torch.Tensor, decay: torch.Tensor, state: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the states (b, h, p, n) that pass between chunks, from `state` if there is one to that after the last."""
    states = [] if state is None else [state]
    for chunk in range(added.shape[1]):
        new = added[:, chunk].unflatten(2, (decay.shape[-1], -1)).flatten(1, 2)
        states.append(new + decay[:, chunk].flatten(1)[..., None, None] * states[-1] if states else new)
    return states


def check_floats(name: str, value: Any) -> None:
    """Refuse what is no dense float tensor; values are looked at on the CPU only, where that costs next to nothing."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a float tensor, got {shorten(value)} ({type(value).__name__})")
    if not value.is_floating_point() or value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense float tensor, got one of {value.dtype} and {value.layout}")
    if value.device.type == "cpu" and not math.isfinite(value.detach().sum()) and not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_shapes(x: Any, dt: Any, A: Any, B: Any, C: Any, initial_state: Any) -> None:
    """Refuse what `ssd_scan` cannot take, whose docstring has the shapes."""
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    if initial_state is not None:
        named["initial_state"] = initial_state
    for name, value in named.items():
        check_floats(name, value)
    if dt.device.type == "cpu" and dt.numel() and dt.min() < 0:
        raise ValueError(f"dt must be >= 0, got {float(dt.min()):g}")
    if A.device.type == "cpu" and A.numel() and A.max() > 0:
        raise ValueError(f"A must be <= 0, got {float(A.max()):g}")
    if x.ndim != 4 or not x.numel():
        raise ValueError(f"x must have shape (batch, time >= 1, heads, p), got {tuple(x.shape)}")
    batch, time, heads, p = x.shape
    groups, n = B.shape[2:] if B.ndim == 4 else (0, 0)
    if B.ndim != 4 or not groups or not n or heads % groups:
        raise ValueError(f"B must have shape ({batch}, {time}, groups dividing {heads}, n), got {tuple(B.shape)}")
    expected = {"dt": (batch, time, heads), "A": (heads,), "B": (batch, time, groups, n), "C": (batch, time, groups, n)}
    for name, shape in (expected | {"initial_state": (batch, heads, p, n)}).items():
        if name in named and tuple(named[name].shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(named[name].shape)}")
