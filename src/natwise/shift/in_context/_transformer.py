"""The transformer: queries that only they themselves can see, shared positions, rotary embeddings, a cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from natwise.core.validation import check_array, check_integer, shorten

Cache: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"
_UNUSED = re.compile(r"(_network\.)?wte\.weight|.*\.attn\.(bias|masked_bias|embed_positions)")  # never enter the logits


class InContextTransformer(nn.Module):
    """Transformer over context tokens and queries; one logit per query.

    A stack of GPT-J's blocks, ``x + attention(norm(x)) + mlp(norm(x))`` with one layer norm each, no dropout. A token
    sees the context tokens up to itself; a query is seen by itself alone, and takes no position: it stands where
    the next context token stands. Logits hence do not depend on which other queries are asked.

    Parameters
    ----------
    n_features : int
        Width of a token. Projected linearly to `d_model` where it differs.
    n_layer, d_model, n_head : int
        Blocks, width, and heads, which divide the width.
    rotary_dim : int, optional
        Leading dimensions of every head that are rotated by the position; even. Default: 64, or the whole head where
        that is smaller.
    n_positions : int
        Longest sequence that is taken, queries not counted.

    Examples
    --------
    >>> model = InContextTransformer(5, n_layer=1, d_model=8, n_head=2)
    >>> tokens = torch.randn(7, 5)
    >>> model(tokens, torch.tensor([2, 6])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        n_features: int,
        n_layer: int = 6,
        d_model: int = 768,
        n_head: int = 8,
        *,
        rotary_dim: int | None = None,
        n_positions: int = 4096,
    ):
        super().__init__()
        sizes = {"n_features": n_features, "n_layer": n_layer, "d_model": d_model, "n_head": n_head}
        for name, value in {**sizes, "n_positions": n_positions}.items():
            check_integer(name, value, minimum=1)
        if d_model % n_head:
            raise ValueError(f"n_head must divide d_model {d_model}, got {n_head}")
        head_dim = d_model // n_head
        if rotary_dim is None:
            rotary_dim = min(64, head_dim - head_dim % 2)
        if check_integer("rotary_dim", rotary_dim, minimum=0, maximum=head_dim) % 2:
            raise ValueError(f"rotary_dim must be even, got {rotary_dim}")
        self.n_features, self.rotary_dim, self.n_positions = n_features, rotary_dim, n_positions
        self.input = nn.Identity() if n_features == d_model else nn.Linear(n_features, d_model, bias=False)
        self.blocks = nn.ModuleList(Block(d_model, n_head) for _ in range(n_layer))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, 1)
        self.apply(_initialize)

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Any], *, n_head: int, rotary_dim: int, n_positions: int = 4096
    ) -> InContextTransformer:
        """Return the model that holds the weights of the original implementation.

        Parameters
        ----------
        state_dict : mapping of str to array or tensor
            The original's names: ``_network.h.0.ln_1.weight`` ... ``_fc.bias``. The embedding of words that the
            original carries and never uses is left out.
        n_head, rotary_dim : int
            Not to be read off the weights.
        n_positions : int
            Longest sequence that is taken.

        Raises
        ------
        TypeError, ValueError
            For a name that is missing or unknown, or a weight of a wrong shape.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping of names to weights, got {type(state_dict).__name__}")
        weights = {name: torch.as_tensor(w) for name, w in state_dict.items() if not _UNUSED.fullmatch(name)}
        layers = {int(found[1]) for name in weights if (found := re.match(r"_network\.h\.(\d+)\.", name))}
        try:
            ours = _translate(weights, len(layers))
        except KeyError as error:
            raise ValueError(f"state_dict must hold {error.args[0]!r}, got {shorten(sorted(state_dict))}") from None
        if weights:
            raise ValueError(f"state_dict must hold the original's names alone, got {shorten(sorted(weights))}")
        d_model = len(ours["norm.weight"])
        with torch.device("meta"):  # draws nothing
            model = cls(d_model, len(layers), d_model, n_head, rotary_dim=rotary_dim, n_positions=n_positions)
        try:
            model.load_state_dict({name: weight.clone() for name, weight in ours.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(f"state_dict must fit together: {' '.join(str(error).split())}") from None
        return model.eval()

    def forward(self, tokens: torch.Tensor | np.ndarray, query_positions: Any) -> torch.Tensor:
        """Return the logits of the queries, after the definition: one pass over the whole sequence.

        Parameters
        ----------
        tokens : float tensor of shape (n_tokens, n_features) or (n_sequences, n_tokens, n_features)
            Context tokens and queries. A NumPy array is cast to the weights' dtype, and gives logits without gradient.
        query_positions : int tensor or array of shape (n_queries,)
            Which tokens are queries; the same in all sequences.

        Returns
        -------
        tensor of shape (n_queries,) or (n_sequences, n_queries)
            Logit of class 1.

        Raises
        ------
        TypeError, ValueError
            For tokens of a wrong shape, of another dtype than the weights, not finite or too many; for positions that
            are no distinct integers among them.
        """
        if isinstance(tokens, np.ndarray):
            with torch.no_grad():
                weight = self.head.weight
                finite = torch.from_numpy(check_array("tokens", tokens))
                return self.forward(finite.to(weight.device, weight.dtype), query_positions)
        tokens = self._check_tokens(tokens)
        if not tokens.isfinite().all():
            raise ValueError("tokens must be finite, got NaN or infinity")
        chosen = self._check_positions(query_positions, tokens)
        is_query = torch.zeros(tokens.shape[-2], dtype=torch.bool, device=tokens.device)
        is_query[chosen] = True
        self._check_length(int(token_positions(is_query).max()) + 1)
        x, _ = self._run(tokens, token_positions(is_query), attention_mask(is_query))
        return self._logits(x[..., chosen, :])

    def encode(self, tokens: torch.Tensor) -> Cache:
        """Return keys and values of every layer for context tokens (..., n_tokens, n_features), without queries.

        Raises
        ------
        TypeError, ValueError
            For tokens that are no float tensor of this shape and of the dtype of the weights, or too many.
        """
        tokens = self._check_tokens(tokens)
        is_query = torch.zeros(tokens.shape[-2], dtype=torch.bool, device=tokens.device)
        self._check_length(len(is_query) + 1)
        return self._run(tokens, token_positions(is_query), attention_mask(is_query))[1]

    def score(self, queries: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Return the logits (..., n_queries) of query tokens (..., n_queries, n_features) behind an encoded context.

        The same numbers as `forward` on the context followed by the queries, without running the context again.

        Raises
        ------
        TypeError, ValueError
            For queries that are no float tensor of this shape and of the dtype of the weights.
        """
        queries = self._check_tokens(queries)
        n_queries, n_context = queries.shape[-2], cache[0][0].shape[-2]
        positions = torch.full((n_queries,), n_context, device=queries.device)
        own = torch.eye(n_queries, dtype=torch.bool, device=queries.device)
        mask = torch.cat([own.new_ones(n_queries, n_context), own], dim=1)
        return self._logits(self._run(queries, positions, mask, cache)[0])

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Cache | None = None
    ) -> tuple[torch.Tensor, Cache]:
        """Return what the blocks make of tokens (..., n, d_model), and their keys and values; see `Block.forward`."""
        x, computed = self.input(tokens), []
        angles = _angles(positions, self.rotary_dim)
        for i, block in enumerate(self.blocks):
            x, pair = block(x, angles, mask, cache[i] if cache else None)
            computed.append(pair)
        return x, computed

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., n) of x (..., n, d_model)."""
        logits: torch.Tensor = self.head(self.norm(x)).squeeze(-1)
        return logits

    def _check_tokens(self, tokens: Any) -> torch.Tensor:
        if not isinstance(tokens, torch.Tensor) or not tokens.is_floating_point() or tokens.is_sparse:
            kind = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise TypeError(f"tokens must be a dense float tensor, got {kind}")
        if tokens.dtype != self.head.weight.dtype:
            raise TypeError(f"tokens must have the dtype of the weights, {self.head.weight.dtype}, got {tokens.dtype}")
        if tokens.ndim not in (2, 3) or tokens.shape[-1] != self.n_features or 0 in tokens.shape:
            raise ValueError(f"tokens must have shape (..., n_tokens, {self.n_features}), got {tuple(tokens.shape)}")
        return tokens

    def _check_positions(self, query_positions: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Return which tokens are queries, int64 (n_queries,) on the device of the tokens."""
        if isinstance(query_positions, torch.Tensor):
            query_positions = query_positions.detach().cpu()
        if check_array("query_positions", query_positions).ndim != 1:
            raise ValueError(f"query_positions must have shape (n_queries,), got {shorten(query_positions)}")
        chosen = np.asarray(query_positions)
        if chosen.dtype.kind not in "iu":
            raise TypeError(f"query_positions must hold integers, got {chosen.dtype}")
        n_tokens = tokens.shape[-2]
        if len(np.unique(chosen)) < max(len(chosen), 1):
            raise ValueError(f"query_positions must be distinct and of shape (n_queries,), got {shorten(chosen)}")
        if chosen.min() < 0 or chosen.max() >= n_tokens:
            raise ValueError(f"query_positions must lie within 0 and {n_tokens - 1}, got {shorten(chosen)}")
        return torch.from_numpy(chosen.astype(np.int64)).to(tokens.device)

    def _check_length(self, length: int) -> None:
        if length > self.n_positions:
            raise ValueError(f"tokens must take at most n_positions = {self.n_positions} positions, got {length}")


class Block(nn.Module):
    """Attention and perceptron side by side behind one layer norm."""

    def __init__(self, d_model: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(approximate="tanh"), nn.Linear(4 * d_model, d_model)
        )

    def forward(
        self,
        x: torch.Tensor,
        angles: torch.Tensor,
        mask: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the new x (..., n, d_model), and keys and values (..., n_head, n, head_dim) of its tokens.

        `angles` (n, rotary_dim / 2) are those of the positions, `mask` (n, n_past + n) says who sees whom, `past` holds
        the keys and values of tokens before.
        """
        normed = self.norm(x)
        query, key, value = (
            part.unflatten(-1, (self.n_head, -1)).transpose(-2, -3) for part in self.qkv(normed).chunk(3, -1)
        )
        query, key = _rotate(query, angles), _rotate(key, angles)
        keys, values = key, value
        if past is not None:
            keys, values = torch.cat([past[0], key], dim=-2), torch.cat([past[1], value], dim=-2)
        attended = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return x + self.out(attended.transpose(-2, -3).flatten(-2)) + self.mlp(normed), (key, value)


def attention_mask(is_query: torch.Tensor) -> torch.Tensor:
    """Return who sees whom, bool (n_tokens, n_tokens): what came before and is no query, and everyone itself.

    Parameters
    ----------
    is_query : bool tensor of shape (n_tokens,)
    """
    n = len(is_query)
    order = torch.arange(n, device=is_query.device)
    seen = (order[None, :] <= order[:, None]) & ~is_query
    return seen | torch.eye(n, dtype=torch.bool, device=is_query.device)


def token_positions(is_query: torch.Tensor) -> torch.Tensor:
    """Return the position of every token (n_tokens,): its place less the number of queries before it."""
    order = torch.arange(len(is_query), device=is_query.device)
    return order - (is_query.cumsum(0) - is_query.long())


def _angles(positions: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Return position x 10000^(-2i / rotary_dim) of shape (n_tokens, rotary_dim / 2), float64."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device) / max(rotary_dim, 1)
    return positions.double()[:, None] * 10000.0**-exponents


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (2i, 2i + 1) of the leading dimensions of x (..., n_tokens, head_dim)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned, rest = x[..., : 2 * angles.shape[-1]], x[..., 2 * angles.shape[-1] :]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _translate(weights: dict[str, torch.Tensor], n_layer: int) -> dict[str, torch.Tensor]:
    """Take the original's weights out of `weights` and return them under our names."""
    ours = {f"norm.{kind}": weights.pop(f"_network.ln_f.{kind}") for kind in ("weight", "bias")}
    ours |= {f"head.{kind}": weights.pop(f"_fc.{kind}") for kind in ("weight", "bias")}
    for i in range(n_layer):
        theirs = f"_network.h.{i}."
        parts = [weights.pop(f"{theirs}attn.{name}_proj.weight") for name in "qkv"]
        ours[f"blocks.{i}.qkv.weight"] = torch.cat(parts)
        ours[f"blocks.{i}.out.weight"] = weights.pop(f"{theirs}attn.out_proj.weight")
        for name, original in {"norm": "ln_1", "mlp.0": "mlp.fc_in", "mlp.2": "mlp.fc_out"}.items():
            for kind in ("weight", "bias"):
                ours[f"blocks.{i}.{name}.{kind}"] = weights.pop(f"{theirs}{original}.{kind}")
    return ours
