"""State space scans in plain torch: that of Mamba-2 (a decay per head) in chunks, that of Mamba-1 by doubling."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from natwise.core.validation import check_integer


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
        For inputs of other kinds or shapes, or a `chunk_size` below 1.

    Notes
    -----
    Section 6 of Dao and Gu (2024). Decays are summed in float64, and the upper triangle masked before the exponential.
    """
    size = check_integer("chunk_size", chunk_size, minimum=1)
    _check_shapes(x, dt, A, B, C, initial_state)
    (batch, time, heads, p), (groups, n) = x.shape, B.shape[2:]
    size = min(size, time)
    n_chunks, missing = -(-time // size), -time % size
    precise = torch.float64  # sums of rates reach thousands, and their differences are what counts

    def chunked(tensor: torch.Tensor) -> torch.Tensor:
        padded = pad(tensor, (0, 0, 0, 0, 0, missing)) if missing else tensor  # with steps of length zero
        return padded.view(batch, n_chunks, size, *tensor.shape[2:])

    driven = chunked(x * dt[..., None]).transpose(2, 3).unflatten(2, (groups, -1))  # (b, c, g, h/g, q, p)
    keys, queries = (chunked(part).transpose(2, 3) for part in (B, C))  # (b, c, g, q, n)
    rates = chunked((dt.to(precise) * A.to(precise))[..., None])[..., 0]
    passed = rates.cumsum(dim=2).transpose(2, 3).unflatten(2, (groups, -1))  # (b, c, g, h/g, q)
    weights = (queries @ keys.mT)[:, :, :, None] * _decays(passed, x.dtype)
    y = weights @ driven
    left = (passed[..., -1:] - passed).to(x.dtype).exp()  # decay from each step to the end of its chunk
    added = (driven * left[..., None]).mT @ keys[:, :, :, None]  # (b, c, g, h/g, p, n)
    state = x.new_zeros(batch, heads, p, n) if initial_state is None else initial_state.to(x.dtype)
    before, state = _carry(added, passed[..., -1].exp().to(x.dtype), state.view(batch, groups, -1, p, n))
    if n_chunks > 1 or initial_state is not None:
        y = y + (queries[:, :, :, None] @ before.mT) * passed.exp().to(x.dtype)[..., None]
    y = y.flatten(2, 3).transpose(2, 3).reshape(batch, n_chunks * size, heads, p)
    return y[:, :time], state.flatten(1, 2)


def ssd_attention_map(dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """Return the matrix of which `ssd_scan` is the product with x: masked attention with decay.

    Parameters
    ----------
    dt, A, B, C : tensor
        As in `ssd_scan`.

    Returns
    -------
    tensor (batch, heads, time, time)
        M with y_i = sum_j M_ij x_j.
    """
    heads, groups = dt.shape[2], B.shape[2]
    passed = (dt.double() * A.double()).cumsum(dim=1).transpose(1, 2)
    scores = (C.transpose(1, 2) @ B.transpose(1, 2).mT).repeat_interleave(heads // groups, dim=1)
    return scores * _decays(passed, scores.dtype) * dt.transpose(1, 2)[:, :, None]


def linear_recurrence(decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """Return all states of h_t = decay_t h_{t-1} + inputs_t along dimension 1.

    Parameters
    ----------
    decay, inputs : tensor (batch, time, ...)
    initial : tensor (batch, ...)
        h before the first step.

    Notes
    -----
    log2(time) passes over the whole tensor instead of `time` small steps; the backward pass is the same recurrence in
    reverse and stores only the decays and the states.
    """
    states: torch.Tensor = _LinearRecurrence.apply(decay, inputs, initial)
    return states


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        states = inputs.clone()
        states[:, 0] += decay[:, 0] * initial
        _double(decay.clone(), states)
        ctx.save_for_backward(decay, states, initial)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        decay, states, initial = ctx.saved_tensors
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
        through = outer.flip(1).contiguous()
        _double(later.flip(1), through)
        through = through.flip(1)
        earlier = torch.cat([initial[:, None], states[:, :-1]], dim=1)
        return through * earlier, through, through[:, 0] * decay[:, 0]


def _double(decay: torch.Tensor, states: torch.Tensor) -> None:
    """Run the recurrence along dimension 1 in place: each pass doubles how far every step has looked back."""
    step = 1
    while step < states.shape[1]:
        states[:, step:] += decay[:, step:] * states[:, :-step]
        decay[:, step:] = decay[:, step:] * decay[:, :-step]
        step *= 2


def _decays(passed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return exp(passed_i - passed_j) for i >= j, else 0, from cumulated rates (..., q), in another precision."""
    size = passed.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=passed.device).triu(1)
    difference = (passed[..., :, None] - passed[..., None, :]).to(dtype)
    return difference.masked_fill(future, -torch.inf).exp()


def _carry(added: torch.Tensor, decay: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the state before each chunk (b, c, g, h/g, p, n), and the one after the last."""
    before = []
    for chunk in range(added.shape[1]):
        before.append(state)
        state = decay[:, chunk, ..., None, None] * state + added[:, chunk]
    return torch.stack(before, dim=1), state


def _check_shapes(x: Any, dt: Any, A: Any, B: Any, C: Any, initial_state: Any) -> None:
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C} | (
        {} if initial_state is None else {"initial_state": initial_state}
    )
    for name, value in named.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got {type(value).__name__}")
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
