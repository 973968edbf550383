"""Mimetic initialisation: state space layers that start as attention of tokens to their like."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_flag, check_integer, check_real
from natwise.lm.mimetic_init._mamba import exclude_from_decay

UNIT_STEP = math.log(math.e - 1)  # softplus of it is 1
KEPT_AT_LEAST = 0.5
DECAYS = (-10.0, 60.0)  # beyond, a state is lost or kept whole in any precision, and A would not be finite
SUPPORTED = "natwise's Mamba2 and Mamba1, transformers' Mamba2Mixer and MambaMixer, mamba_ssm's Mamba2 and Mamba, and \
torch.nn.MultiheadAttention"


@dataclass(frozen=True)
class _Options:
    """Checked options of `mimetic_init_`."""

    state: bool
    conv: bool
    blend: float
    decay: float
    streams: Streams


def mimetic_init_(
    module: nn.Module,
    *,
    state: bool = True,
    conv: bool = False,
    blend: float = 0.5,
    decay: float = 8.0,
    max_length: int | None = None,
    random_state: RandomState = None,
) -> nn.Module:
    r"""Initialise all state space and attention layers of a module in place, so that they start out copying.

    State space layers get, in this order:

    1. `state`: ``A_log = -decay`` and a step of 1 whatever the input: exp(-exp(-decay)) of a state is kept per token;
    2. `blend`: :math:`W_C \leftarrow blend \cdot W_B + (1 - blend) W_C`, so that a token reads what its like wrote;
    3. `conv`: the convolution becomes the identity.

    Attention layers get :math:`W_Q W_K^T = .7 Z_1 + .7 I` per head and :math:`W_V W_O = .4 Z_2 - .4 I`, with entries
    of Z from N(0, 1/d), each by the best factorisation of its rank.

    Parameters
    ----------
    module : torch.nn.Module
        A layer or a model with some: natwise's `Mamba2`, `Mamba1`, transformers' ``Mamba2Mixer``, ``MambaMixer``,
        mamba_ssm's ``Mamba2``, ``Mamba``, or ``torch.nn.MultiheadAttention``.
    state, conv : bool
        Whether to do 1 and 3. The convolution hurt Mamba-2 on copying in our runs, and is off.
    blend : float
        In [0, 1]; 0 leaves C as it is.
    decay : float
        c of ``A_log = -c``, in [-10, 60]; see `safe_decay` for long sequences.
    max_length : int, optional
        The longest sequence, in tokens; with `state`, warns when less than half of a state survives it.
    random_state : int, Generator, RandomState or None
        For attention only; the others draw nothing.

    Returns
    -------
    module

    Raises
    ------
    TypeError, ValueError
        For no supported layer, one that was initialised so before (2 is not idempotent), weights on the meta device
        or quantised, a limit on steps that excludes 1, options out of range; nothing has been changed then.

    Notes
    -----
    Trockman et al. (2024), as described in reviews and independent ports. ``A_log``, ``dt_bias`` and ``D`` are marked
    ``_no_weight_decay``: see `parameter_groups`.

    Examples
    --------
    >>> from natwise.lm import Mamba2, mimetic_init_
    >>> mimetic_init_(Mamba2(32, d_state=16, head_dim=16, random_state=0)).A_log.tolist()
    [-8.0, -8.0, -8.0, -8.0]
    """
    blend = check_real("blend", blend, minimum=0.0, maximum=1.0)
    decay = check_real("decay", decay, minimum=DECAYS[0], maximum=DECAYS[1])
    state, conv = check_flag("state", state), check_flag("conv", conv)
    length = None if max_length is None else check_integer("max_length", max_length, minimum=1)
    if state and length is not None:
        _warn_when_short(decay, length)
    options = _Options(state, conv, blend, decay, Streams.of(random_state))
    with torch.no_grad():
        for number, (layer, change) in enumerate(_supported(module)):
            change(layer, options, number)
            layer._mimetic_init = True
    return module


def safe_decay(length: int, kept: float = 0.9) -> float:
    """Return the smallest decay c at which at least `kept` of a state survives `length` tokens: exp(-length e^-c).

    Parameters
    ----------
    length : int
        Tokens, at least 1.
    kept : float
        In (0, 1).

    Returns
    -------
    float
        For `mimetic_init_`.
    """
    length = check_integer("length", length, minimum=1)
    kept = check_real("kept", kept, minimum=0.0, maximum=1.0, exclusive=True)
    return math.log(length) - math.log(-math.log(kept))


def _supported(module: Any) -> list[tuple[Any, Callable[[Any, _Options, int], None]]]:
    """Return the layers of a module that can be initialised and how, or say what is wrong with it."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch module, got {type(module).__name__}")
    layers = [(layer, change) for layer in module.modules() if (change := _change_for(layer))]
    if not layers:
        raise TypeError(f"module must be or contain one of {SUPPORTED}, got {type(module).__name__}")
    for layer, _ in layers:
        _check_layer(layer)
    return layers


def _change_for(layer: nn.Module) -> Callable[[Any, _Options, int], None] | None:
    """Recognise a layer by the names of its parameters, which all implementations share."""
    if isinstance(layer, nn.MultiheadAttention):
        return _change_attention
    if not all(hasattr(layer, name) for name in ("in_proj", "conv1d", "A_log", "D", "out_proj")):
        return None
    if hasattr(layer, "x_proj") and hasattr(layer, "dt_proj"):
        return _change_mamba1
    return _change_mamba2 if hasattr(layer, "dt_bias") else None


def _change_mamba2(layer: Any, options: _Options, number: int) -> None:
    """Change a layer whose in_proj has the rows gate, x, B, C and one step per head."""
    heads, weight = layer.dt_bias.numel(), layer.in_proj.weight
    shared = (layer.conv1d.in_channels - _inner_width(layer)) // 2
    start = len(weight) - heads - 2 * shared
    if options.state:
        layer.A_log.fill_(-options.decay)
        weight[-heads:] = 0.0
        if layer.in_proj.bias is not None:
            layer.in_proj.bias[-heads:] = 0.0
        layer.dt_bias.fill_(UNIT_STEP)
    B, C = weight[start : start + shared], weight[start + shared : start + 2 * shared]
    C.lerp_(B, options.blend)
    if options.conv:
        _identity_convolution(layer.conv1d)
    exclude_from_decay(layer.A_log, layer.dt_bias, layer.D)


def _inner_width(layer: Any) -> int:
    """Return the width of x; mamba_ssm's layers can leave a part of the inner width to a gated linear unit."""
    return int(getattr(layer, "d_ssm", layer.out_proj.in_features))


def _change_mamba1(layer: Any, options: _Options, number: int) -> None:
    """Change a layer whose x_proj has the rows of the low-rank step, B and C."""
    states = layer.A_log.shape[1]
    weight = layer.x_proj.weight
    if options.state:
        layer.A_log.fill_(-options.decay)
        layer.dt_proj.weight.zero_()
        layer.dt_proj.bias.fill_(UNIT_STEP)
    weight[-states:].lerp_(weight[-2 * states : -states], options.blend)
    if options.conv:
        _identity_convolution(layer.conv1d)
    exclude_from_decay(layer.A_log, layer.dt_proj.bias, layer.D)


def _change_attention(layer: Any, options: _Options, number: int) -> None:
    """Change a layer whose in_proj_weight (3 width, width) stacks queries, keys and values."""
    width, head = layer.embed_dim, layer.head_dim
    rng = options.streams.child("attention").numpy(number)

    def noise() -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((width, width)) / math.sqrt(width))

    identity = torch.eye(width, dtype=torch.float64)
    for start in range(0, width, head):
        queries, keys = best_factors(0.7 * noise() + 0.7 * identity, head)
        layer.in_proj_weight[start : start + head] = queries.T
        layer.in_proj_weight[width + start : width + start + head] = keys.T
    values, outputs = best_factors(0.4 * noise() - 0.4 * identity, width)
    layer.in_proj_weight[2 * width :] = values.T
    layer.out_proj.weight.copy_(outputs)
    if layer.in_proj_bias is not None:
        layer.in_proj_bias.zero_()
        layer.out_proj.bias.zero_()


def best_factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return L and R (d, rank) with L R^T the best approximation of a matrix (d, d), their columns of equal norms."""
    left, values, right = torch.linalg.svd(matrix)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, right[:rank].T * roots


def _identity_convolution(conv: nn.Conv1d) -> None:
    """Set the last tap of weights (channels, 1, taps) to 1, all else to 0."""
    conv.weight.zero_()
    conv.weight[:, :, -1] = 1.0
    if conv.bias is not None:
        conv.bias.zero_()


def _check_layer(layer: Any) -> None:
    """Refuse a layer that cannot be changed in place, or was before."""
    name = type(layer).__name__
    if getattr(layer, "_mimetic_init", False):
        raise ValueError(f"module must not be initialised twice, got a {name} that was; build a new one")
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is None:
        raise ValueError(f"module must have queries, keys and values of one width, got a {name} with others")
    weights = [part.weight for part in layer.modules() if hasattr(part, "weight")]  # a function in quantised layers
    for weight in [*layer.parameters(), *weights]:
        if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.is_floating_point():
            kind = getattr(weight, "dtype", "another kind") if not getattr(weight, "is_meta", False) else "no values"
            raise ValueError(f"module must have float weights in memory, got a {name} with weights of {kind}")
    low, high = getattr(layer, "time_step_limit", None) or getattr(layer, "dt_limit", None) or (0.0, math.inf)
    if not low <= 1.0 <= high:
        raise ValueError(f"module must allow steps of 1, got a {name} that limits them to [{low}, {high}]")


def _warn_when_short(decay: float, length: int) -> None:
    """Warn when less than half of a state survives `length` tokens."""
    kept = math.exp(-math.exp(math.log(length) - decay))
    if kept < KEPT_AT_LEAST:
        text = f"only {100 * kept:.0f} % of a state survives max_length={length} tokens at decay={decay:g}"
        warnings.warn(f"{text}; take decay={safe_decay(length):.1f} or more", UserWarning, stacklevel=3)
