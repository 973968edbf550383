"""Serving a looped model: rows at different loops and positions in one call of its block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natwise.core.validation import check_array, check_integer, check_option, check_real, shorten
from natwise.lm.mixture_of_recursions._loops import looped
from natwise.lm.mixture_of_recursions._routing import Tokens, where

SCHEDULES = ("depthwise", "sequence", "static")
POLICIES = ("recursion_wise", "share_first", "copy_hidden", "recompute")


@dataclass
class _Board:
    """Who sits in which slot, and how far each is; one entry per slot unless said otherwise."""

    request: Tensor  # -1 when free
    loop: Tensor
    ordinal: Tensor  # of the token that is in the loop
    made: Tensor  # new tokens so far
    token: Tensor
    begins: Tensor  # whether the token has yet to be embedded
    waits: Tensor  # whether it has left the loop and waits for the others (not depth-wise)
    hidden: Tensor  # (slots, places, d): one place, or all tokens when states are kept for later
    reached: Tensor  # (slots, places): loops that each token has passed, -1 where there is none
    exits: Tensor  # (requests, new tokens): loops asked for
    limits: Tensor  # (requests,) new tokens
    output: Tensor  # (requests, new tokens)

    @classmethod
    def of(cls, requests: list[dict[str, Any]], n_slots: int, keep: int, like: Tensor, n_loops: int) -> _Board:
        device = like.device
        limits = torch.tensor([one["max_new_tokens"] for one in requests], device=device)
        exits = torch.full((len(requests), int(limits.max())), n_loops, device=device)
        for i, one in enumerate(requests):
            if one["exits"] is not None:
                exits[i, : len(one["exits"])] = torch.from_numpy(one["exits"]).to(device)
        slots = torch.zeros(n_slots, dtype=torch.int64, device=device)
        return cls(
            request=slots - 1, loop=slots.clone(), ordinal=slots.clone(), made=slots.clone(), token=slots.clone(),
            begins=slots.bool(), waits=slots.bool(), hidden=like.new_zeros(n_slots, keep, like.shape[-1]),
            reached=torch.full((n_slots, keep), -1, device=device), exits=exits, limits=limits,
            output=torch.full_like(exits, -1),
        )  # fmt: skip


class DepthwiseBatchingEngine:
    """Greedy decoding of many requests with continuous depth-wise batching.

    Each call of the block takes every occupied slot one loop further, whatever loop it is at. What leaves the loop
    emits a token and starts its next one at once; what is finished makes place for the next request, in order of
    arrival. The tokens are those of decoding one request at a time, and the calls of the block those of the paper's
    scheduler.

    Parameters
    ----------
    model : MoRForCausalLM or RecursiveForCausalLM
        Put into evaluation mode. A mixture of recursions exits by its router; a recursive model runs all loops unless
        `threshold` is given. A request's own `exits` (an oracle's) go first.
    max_slots : int
        Requests in work at the same time.
    schedule : {"depthwise", "sequence", "static"}
        The others are baselines: ``"sequence"`` takes all slots through a token's loops together and refills free slots
        between tokens; ``"static"`` refills when all slots are free.
    threshold : float, optional
        For a recursive model: exit once the most probable token has this probability at the end of a loop. Costs the
        head at every loop.
    missing_kv : {"recursion_wise", "share_first", "copy_hidden", "recompute"}
        What deeper loops see of tokens that exited early: nothing; the first loop's keys and values, for all tokens;
        what the state they left with would give; or their true ones, computed when a later token comes to that loop
        (exact for a model that was trained without exits). A mixture of recursions has the first or second by its `kv`.
    lora : {"gather", "grouped"}
        How low-rank deltas are applied: a copy of them for each row (small ranks), or row by row of the same loop.
    eos_token_id : int, optional
        Ends a request.

    Attributes
    ----------
    stats : dict
        After `generate`: ``block_calls`` and ``rows`` (of decoding, not of prompts), ``tokens``, ``seconds``,
        ``prefill_seconds``, ``model_seconds`` and ``block_seconds`` (calls of the block alone).

    Notes
    -----
    Bae et al., Relaxed Recursive Transformers (ICLR 2025), whose figures are simulated; Bae et al., Mixture of
    Recursions (NeurIPS 2025). Neither published code for it.

    Examples
    --------
    >>> import torch
    >>> from natwise.core.random import global_generators_kept
    >>> from natwise.lm import MoRConfig, MoRForCausalLM
    >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    >>> with global_generators_kept():
    ...     model = MoRForCausalLM(MoRConfig(num_hidden_layers=5, num_recursions=3, **sizes))
    >>> engine = DepthwiseBatchingEngine(model, max_slots=2)
    >>> request = {"input_ids": [1, 2, 3], "max_new_tokens": 2, "exits": [1, 3]}
    >>> [len(tokens) for tokens in engine.generate([request] * 3)], engine.stats["block_calls"]
    ([2, 2, 2], 8)
    """

    def __init__(
        self,
        model: Any,
        max_slots: int,
        *,
        schedule: str = "depthwise",
        threshold: float | None = None,
        missing_kv: str = "recursion_wise",
        lora: str = "gather",
        eos_token_id: int | None = None,
    ):
        self.max_slots = check_integer("max_slots", max_slots, minimum=1)
        self.schedule = check_option("schedule", schedule, SCHEDULES)
        self.missing_kv = check_option("missing_kv", missing_kv, POLICIES)
        self.lora = check_option("lora", lora, ("gather", "grouped"))
        self.threshold = None if threshold is None else check_real("threshold", threshold, minimum=0.0, maximum=1.0)
        self.eos_token_id = None if eos_token_id is None else check_integer("eos_token_id", eos_token_id, minimum=0)
        self.model = model
        loop = looped(model, 1, missing_kv, lora)
        check_option("missing_kv", missing_kv, loop.policies)
        if threshold is not None and loop.routed:
            raise ValueError(f"threshold must be None for a model with routers, got {threshold}")
        self.stats: dict[str, float] = {}

    @torch.inference_mode()
    def generate(self, requests: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Decode requests greedily and return the new tokens of each, in the order of the requests.

        Parameters
        ----------
        requests : sequence of dict
            Each with ``input_ids`` (token ids (n,), n >= 1), ``max_new_tokens`` and, if wanted, ``exits`` (for each new
            token the loop after which it leaves, 1 ... number of loops).

        Raises
        ------
        ValueError, TypeError
            For a request that is none, before anything is decoded.
        """
        self.model.eval()
        self._loop = looped(self.model, self.max_slots, self.missing_kv, self.lora)
        checked = [self._check(i, one) for i, one in enumerate(requests)]
        self.stats = dict.fromkeys(
            ("block_calls", "rows", "tokens", "seconds", "prefill_seconds", "model_seconds", "block_seconds"), 0
        )
        if not checked:
            return []
        start = time.perf_counter()
        longest = max(len(one["input_ids"]) + one["max_new_tokens"] for one in checked)
        keep = longest if self.missing_kv == "recompute" else 1
        like = next(self.model.parameters()).new_zeros(self._loop.width)
        board = _Board.of(checked, self.max_slots, keep, like, self._loop.num_loops)
        oracle = torch.tensor([one["exits"] is not None for one in checked], device=like.device)
        queue = deque(range(len(checked)))
        while queue or bool((board.request >= 0).any()):
            self._refill(board, queue, checked)
            self._begin(board)
            self._step(board, oracle)
        self.stats["seconds"] = time.perf_counter() - start
        made = (board.output >= 0).sum(1).tolist()
        return [row[:n] for row, n in zip(board.output.tolist(), made, strict=True)]

    def _check(self, index: int, request: Mapping[str, Any]) -> dict[str, Any]:
        name, config = f"requests[{index}]", self.model.config
        if not isinstance(request, Mapping):
            raise TypeError(f"{name} must be a dict, got {shorten(request)} ({type(request).__name__})")
        known = {"input_ids", "max_new_tokens", "exits"}
        if not {"input_ids", "max_new_tokens"} <= set(request) <= known:
            raise ValueError(f"{name} must have input_ids, max_new_tokens and perhaps exits, got {sorted(request)}")
        ids = check_array(f"{name} input_ids", request["input_ids"], shape=("n",), dtype="int64")
        if not len(ids) or ids.min() < 0 or ids.max() >= config.vocab_size:
            raise ValueError(
                f"{name} input_ids must be tokens in 0..{config.vocab_size - 1}, got {shorten(ids.tolist())}"
            )
        n = check_integer(f"{name} max_new_tokens", request["max_new_tokens"], minimum=1)
        if len(ids) + n > config.max_position_embeddings:
            longest = config.max_position_embeddings
            raise ValueError(f"{name} must stay within max_position_embeddings={longest}, got {len(ids)} + {n} tokens")
        exits = request.get("exits")
        if exits is not None:
            exits = check_array(f"{name} exits", exits, shape=(n,), dtype="int64")
            if exits.min() < 1 or exits.max() > self._loop.num_loops:
                raise ValueError(f"{name} exits must be in 1..{self._loop.num_loops}, got {shorten(exits.tolist())}")
        return {"input_ids": torch.from_numpy(ids), "max_new_tokens": n, "exits": exits}

    def _refill(self, board: _Board, queue: deque[int], requests: list[dict[str, Any]]) -> None:
        """Give free slots to the requests that have waited longest."""
        busy = board.request >= 0
        synchronous = self.schedule != "depthwise" and bool(
            (busy & ~board.waits).any() and (board.loop[busy] > 0).any()
        )
        if not queue or synchronous or (self.schedule == "static" and bool(busy.any())):
            return
        start = time.perf_counter()
        for slot in (~busy).nonzero()[:, 0].tolist():
            if not queue:
                break
            index = queue.popleft()
            ids = requests[index]["input_ids"].to(self.model.device)
            self._loop.clear(slot)
            if len(ids) > 1:
                self._loop.prefill(ids[:-1], slot)
            board.request[slot], board.ordinal[slot], board.token[slot] = index, len(ids) - 1, ids[-1]
            board.made[slot] = board.loop[slot] = 0
            board.reached[slot] = -1
            board.begins[slot], board.waits[slot] = True, False
        self.stats["prefill_seconds"] += time.perf_counter() - start

    def _begin(self, board: _Board) -> None:
        """Embed the tokens that are to enter the loop."""
        slots = (board.begins & (board.request >= 0)).nonzero()[:, 0]
        if not len(slots):
            return
        start = time.perf_counter()
        entering = self._loop.begin(board.token[slots], board.ordinal[slots], slots)
        self.stats["model_seconds"] += time.perf_counter() - start
        place = self._place(board, slots)
        board.hidden[slots, place], board.reached[slots, place] = entering, 0
        board.begins[slots] = False

    def _step(self, board: _Board, oracle: Tensor) -> None:
        """Take every slot that does not wait one loop further, and let out what has arrived."""
        slots = ((board.request >= 0) & ~board.waits).nonzero()[:, 0]
        loops = board.loop[slots]
        tokens = self._due(board, slots)
        x = tokens.take(board.hidden[slots])
        ordinals = tokens.index if board.hidden.shape[1] > 1 else board.ordinal[slots, None]
        start = time.perf_counter()
        x = self._loop.step(x, tokens.valid, loops, ordinals, slots)
        spent = time.perf_counter() - start
        self.stats["block_seconds"] += spent
        self.stats["model_seconds"] += spent
        self.stats["block_calls"] += 1
        self.stats["rows"] += int(tokens.valid.sum())
        board.hidden[slots] = tokens.put(board.hidden[slots], x)
        board.reached[slots] = board.reached[slots].scatter_add(1, tokens.index, tokens.valid.long())
        board.loop[slots] = loops + 1
        self._let_out(board, slots, oracle)

    def _let_out(self, board: _Board, slots: Tensor, oracle: Tensor) -> None:
        hidden, loops = board.hidden[slots, self._place(board, slots)], board.loop[slots]
        request = board.request[slots]
        asked = board.exits[request, board.made[slots]]
        own = self._own_exit(hidden, loops, board.ordinal[slots], slots)
        leaves = (loops >= self._loop.num_loops) | torch.where(oracle[request], loops >= asked, own)
        out = slots[leaves]
        if len(out):
            self._emit(board, out, hidden[leaves])
        if self.schedule == "depthwise":
            return
        board.waits[out] = board.request[out] >= 0
        if bool((board.waits | (board.request < 0)).all()):  # the token's round is over
            board.waits[:] = False

    def _own_exit(self, hidden: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Return where the model itself says to leave."""
        if self._loop.routed:
            return ~self._loop.goes_on(hidden, loops, slots)
        if self.threshold is None:
            return torch.zeros_like(loops, dtype=torch.bool)
        sure = self._loop.finish(hidden, ordinals, slots).float().softmax(-1).amax(-1)
        return sure >= self.threshold

    def _emit(self, board: _Board, slots: Tensor, hidden: Tensor) -> None:
        """Write the next token of slots; start their next one, or free them."""
        start = time.perf_counter()
        if self.missing_kv == "copy_hidden":
            early = board.loop[slots] < self._loop.num_loops
            gone = slots[early]
            self._loop.fill(hidden[early], board.loop[gone], board.ordinal[gone], gone)
        tokens = self._loop.finish(hidden, board.ordinal[slots], slots).argmax(-1)
        self.stats["model_seconds"] += time.perf_counter() - start
        request = board.request[slots]
        board.output[request, board.made[slots]] = tokens
        board.made[slots] += 1
        board.ordinal[slots] += 1
        board.token[slots], board.loop[slots], board.begins[slots] = tokens, 0, True
        self.stats["tokens"] += len(slots)
        done = board.made[slots] >= board.limits[request]
        if self.eos_token_id is not None:
            done |= tokens == self.eos_token_id
        board.request[slots[done]] = -1

    def _due(self, board: _Board, slots: Tensor) -> Tokens:
        """Return which of a slot's tokens take part: the current one, and those left behind at its loop."""
        return where(board.reached[slots] == board.loop[slots, None])

    def _place(self, board: _Board, slots: Tensor) -> Tensor:
        """Return where the current token's state stands."""
        return board.ordinal[slots] if board.hidden.shape[1] > 1 else torch.zeros_like(slots)
