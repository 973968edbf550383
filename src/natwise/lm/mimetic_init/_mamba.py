"""Mamba-2 and Mamba-1 in plain torch, with the parameter names of transformers: they run on CPU and GPU alike."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad, rms_norm, silu, softplus

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_flag, check_integer, check_option, check_real, shorten
from natwise.lm.mimetic_init._scan import check_floats, selective_scan, ssd_attention_map, ssd_scan

DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


class Mamba2(nn.Module):
    r"""The Mamba-2 layer: a gated state space model with one decay per head (Dao and Gu 2024).

    .. math:: [z|x|B|C|dt] = W_{in} u, \quad x,B,C \leftarrow silu(conv(\cdot)), \quad dt \leftarrow softplus(dt + b),
       \quad y = ssd(x, dt, -\exp(A_{log}), B, C) + D x, \quad out = W_{out} (norm(y \cdot silu(z)))

    Parameters
    ----------
    d_model : int
        Width of input and output.
    d_state : int
        Length of B and C.
    head_dim : int
        Must divide ``expand * d_model``.
    expand : int
        Inner width over outer width.
    n_groups : int
        Groups of heads that share B and C; must divide the number of heads.
    d_conv : int
        Taps of the causal depthwise convolution.
    chunk_size : int
        See `ssd_scan`.
    random_state : int, Generator, RandomState or None
        Draws the initial weights.

    Shapes
    ------
    (batch, time, d_model) -> (batch, time, d_model)

    Notes
    -----
    Parameters are named as in transformers' ``Mamba2Mixer``, whose state dict can be loaded. Initial values are those
    of mamba_ssm (decay rates uniform in [1, 16], steps log-uniform in [.001, .1]), not those of transformers.
    ``A_log``, ``dt_bias`` and ``D`` are marked ``_no_weight_decay``; see `parameter_groups`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        n_groups: int = 1,
        d_conv: int = 4,
        chunk_size: int = 64,
        random_state: RandomState = None,
    ):
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "head_dim": head_dim, "expand": expand, "n_groups": n_groups}
        for name, value in {**sizes, "d_conv": d_conv, "chunk_size": chunk_size}.items():
            check_integer(name, value, minimum=1)
        self.d_inner, self.d_state, self.head_dim, self.n_groups = expand * d_model, d_state, head_dim, n_groups
        if self.d_inner % head_dim:
            raise ValueError(f"head_dim must divide expand * d_model = {self.d_inner}, got {head_dim}")
        self.n_heads, self.chunk_size = self.d_inner // head_dim, chunk_size
        if self.n_heads % n_groups:
            raise ValueError(f"n_groups must divide the {self.n_heads} heads, got {n_groups}")
        channels = self.d_inner + 2 * n_groups * d_state
        streams = Streams.of(random_state)
        with streams.torch_global("weights"):
            self.in_proj = nn.Linear(d_model, self.d_inner + channels + self.n_heads, bias=False)
            self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)
            self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
            self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log_())
            self.dt_bias = nn.Parameter(inverse_softplus(_initial_steps(self.n_heads)))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = _Weight(self.d_inner)
        exclude_from_decay(self.A_log, self.dt_bias, self.D)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for u, both (batch, time, d_model); there is no residual connection."""
        gate, x, dt, B, C = self._project(u)
        y, _ = ssd_scan(x, dt, -self.A_log.exp(), B, C, self.chunk_size)
        y = (y + self.D[:, None] * x).flatten(2) * silu(gate)
        normed = rms_norm(y.unflatten(-1, (self.n_groups, -1)), (self.d_inner // self.n_groups,), eps=1e-5).flatten(2)
        out: torch.Tensor = self.out_proj(normed * self.norm.weight)
        return out

    def attention_map(self, u: torch.Tensor) -> torch.Tensor:
        """Return M (batch, heads, time, time) for u (batch, time, d_model): y_i = sum_j M_ij x_j + D x_i."""
        _, _, dt, B, C = self._project(u)
        return ssd_attention_map(dt, -self.A_log.exp(), B, C)

    def _project(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return gate (batch, time, d_inner), and x, dt, B and C as `ssd_scan` takes them."""
        _check_input(u, self.in_proj.in_features)
        sizes = [self.d_inner, self.conv1d.in_channels, self.n_heads]
        gate, mixed, dt = self.in_proj(u).split(sizes, dim=-1)
        mixed = silu(causal_convolution(mixed, self.conv1d))
        shared = self.n_groups * self.d_state
        x, B, C = mixed.split([self.d_inner, shared, shared], dim=-1)
        B, C = (part.unflatten(-1, (self.n_groups, self.d_state)) for part in (B, C))
        return gate, x.unflatten(-1, (self.n_heads, self.head_dim)), softplus(dt + self.dt_bias), B, C


class Mamba1(nn.Module):
    r"""The Mamba layer: a selective scan with a decay for every channel and state (Gu and Dao 2023).

    .. math:: [x|z] = W_{in} u, \quad x \leftarrow silu(conv(x)), \quad [\delta|B|C] = W_x x, \quad
       dt = softplus(W_{dt} \delta + b), \quad h_t = \exp(dt_t A) h_{t-1} + dt_t B_t x_t, \quad
       out = W_{out}((C_t \cdot h_t + D x_t) \cdot silu(z_t))

    Parameters
    ----------
    d_model, d_state, expand, d_conv, random_state
        See `Mamba2`.
    dt_rank : int, optional
        Width of delta; default d_model / 16, rounded up.

    Shapes
    ------
    (batch, time, d_model) -> (batch, time, d_model)

    Notes
    -----
    Parameters are named as in transformers' ``MambaMixer``, whose state dict can be loaded. All states, batch x time x
    inner width x d_state numbers, are held for the backward pass; a kernel that computes them again (mamba_ssm, on a
    GPU) needs less.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        dt_rank: int | None = None,
        random_state: RandomState = None,
    ):
        super().__init__()
        for name, value in {"d_model": d_model, "d_state": d_state, "expand": expand, "d_conv": d_conv}.items():
            check_integer(name, value, minimum=1)
        self.d_inner, self.d_state = expand * d_model, d_state
        rank = -(-d_model // 16) if dt_rank is None else check_integer("dt_rank", dt_rank, minimum=1)
        self.dt_rank = rank
        streams = Streams.of(random_state)
        with streams.torch_global("weights"):
            self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
            self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
            self.x_proj = nn.Linear(self.d_inner, rank + 2 * d_state, bias=False)
            self.dt_proj = nn.Linear(rank, self.d_inner)
            nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
            with torch.no_grad():
                self.dt_proj.bias.copy_(inverse_softplus(_initial_steps(self.d_inner)))
            self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        exclude_from_decay(self.A_log, self.D, self.dt_proj.bias)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for u, both (batch, time, d_model); there is no residual connection."""
        _check_input(u, self.in_proj.in_features)
        x, gate = self.in_proj(u).chunk(2, dim=-1)
        x = silu(causal_convolution(x, self.conv1d))
        low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = softplus(self.dt_proj(low))
        y = selective_scan(x, dt, -self.A_log.exp(), B, C) + self.D * x
        out: torch.Tensor = self.out_proj(y * silu(gate))
        return out


class MambaLM(nn.Module):
    """A language model of Mamba layers: embedding, blocks h + mixer(rms_norm(h)), a last norm, an output matrix.

    Parameters
    ----------
    vocabulary : int
        Number of tokens.
    d_model, n_layers : int
        Width and number of the blocks.
    mixer : {Mamba2, Mamba1}
        Class of the layers.
    tie_embeddings : bool
        Whether the output matrix is the embedding.
    random_state : int, Generator, RandomState or None
        Draws the initial weights.
    **options
        For the layers, such as ``d_state``.

    Shapes
    ------
    int (batch, time) -> logits (batch, time, vocabulary)

    Notes
    -----
    Embeddings start at N(0, .02), and output matrices of the layers divided by the root of their number, as in
    mamba_ssm.
    """

    def __init__(
        self,
        vocabulary: int,
        d_model: int,
        n_layers: int,
        *,
        mixer: type[nn.Module] = Mamba2,
        tie_embeddings: bool = True,
        random_state: RandomState = None,
        **options: Any,
    ):
        super().__init__()
        for name, value in {"vocabulary": vocabulary, "d_model": d_model, "n_layers": n_layers}.items():
            check_integer(name, value, minimum=1)
        check_option("mixer", mixer, [Mamba1, Mamba2])
        streams = Streams.of(random_state)
        layers: list[Any] = [
            mixer(d_model, random_state=streams.seed(f"layer-{i}"), **options) for i in range(n_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers + 1))
        with streams.torch_global("embedding"):
            self.embedding = nn.Embedding(vocabulary, d_model)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.head = nn.Linear(d_model, vocabulary, bias=False)
        if check_flag("tie_embeddings", tie_embeddings):
            self.head.weight = self.embedding.weight
        with torch.no_grad():
            for layer in layers:
                layer.out_proj.weight.div_(math.sqrt(n_layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, time, vocabulary) for int tokens (batch, time)."""
        _check_tokens(tokens, self.embedding.num_embeddings)
        hidden = self.embedding(tokens)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            hidden = hidden + layer(norm(hidden))
        logits: torch.Tensor = self.head(self.norms[-1](hidden))
        return logits


def causal_convolution(x: torch.Tensor, conv: nn.Conv1d) -> torch.Tensor:
    """Return the causal depthwise convolution of (batch, time, channels) with the weights of a `torch.nn.Conv1d`."""
    y: torch.Tensor = _CausalConvolution.apply(x, conv.weight[:, 0].to(x.dtype))
    return y if conv.bias is None else y + conv.bias.to(x.dtype)


class _CausalConvolution(torch.autograd.Function):
    """Channels stay innermost in memory, where torch's own gradient of a depthwise convolution takes twice the time.

    Inputs x (batch, time, channels) and taps (channels, n), of one dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        padded = pad(x, (0, 0, taps.shape[1] - 1, 0))
        ctx.save_for_backward(padded, taps)
        return _correlate(padded, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded, taps = ctx.saved_tensors
        n, time = taps.shape[1], outer.shape[1]
        to_taps = torch.stack([(padded[:, k : k + time] * outer).sum(dim=(0, 1)) for k in range(n)], dim=1)
        return _correlate(pad(outer, (0, 0, 0, n - 1)), taps.flip(1)), to_taps


def _correlate(padded: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Return y_t = sum_k taps_k padded_{t+k} of (batch, time + n - 1, channels) with (channels, n)."""
    y = conv2d(padded.mT[:, :, None], taps[:, None, None], groups=len(taps))
    return y[:, :, 0].mT


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimiser: `weight_decay` for most parameters, none for the marked ones.

    Decay rates, step biases and skip weights must not shrink: weight decay would undo `mimetic_init_` bit by bit.

    Parameters
    ----------
    model : torch.nn.Module
    weight_decay : float

    Returns
    -------
    list of dict
        For the constructor of a torch optimiser. Marked are parameters with an attribute ``_no_weight_decay``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    weight_decay = check_real("weight_decay", weight_decay, minimum=0.0)
    marked = [p for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    others = [p for p in model.parameters() if not getattr(p, "_no_weight_decay", False)]
    return [{"params": others, "weight_decay": weight_decay}, {"params": marked, "weight_decay": 0.0}]


def exclude_from_decay(*parameters: torch.Tensor | None) -> None:
    """Mark parameters that weight decay must leave alone, as mamba_ssm does."""
    for parameter in parameters:
        if parameter is not None:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]


def inverse_softplus(y: torch.Tensor) -> torch.Tensor:
    """Return x with softplus(x) = y, entry by entry, in the shape of y."""
    return y + torch.log(-torch.expm1(-y))


def _initial_steps(n: int) -> torch.Tensor:
    """Draw steps (n,) log-uniformly, from torch's global generator."""
    low, high = (math.log(bound) for bound in DT_RANGE)
    return torch.empty(n).uniform_(low, high).exp_().clamp_min_(DT_FLOOR)


def _check_input(u: Any, width: int) -> None:
    """Refuse what is no finite float tensor (batch >= 1, time >= 1, width)."""
    check_floats("u", u)
    if u.ndim != 3 or u.shape[2] != width or not u.numel():
        raise ValueError(f"u must have shape (batch, time >= 1, {width}), got {tuple(u.shape)}")


def _check_tokens(tokens: Any, vocabulary: int) -> None:
    """Refuse what is no int tensor (batch, time >= 1), and on the CPU tokens that there are not."""
    if not isinstance(tokens, torch.Tensor):
        raise TypeError(f"tokens must be a tensor, got {shorten(tokens)} ({type(tokens).__name__})")
    if tokens.dtype not in (torch.int64, torch.int32) or tokens.layout != torch.strided:
        raise TypeError(f"tokens must be dense and of int64 or int32, got {tokens.dtype} and {tokens.layout}")
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens must have shape (batch, time >= 1), got {tuple(tokens.shape)}")
    if tokens.device.type == "cpu" and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
        wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
        raise ValueError(f"tokens must be in 0 … {vocabulary - 1}, the vocabulary, got {int(wrong)}")


class _Weight(nn.Module):
    """A vector of weights under the name ``weight``."""

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
