"""A causal language model that thinks in superposed tokens: training in one pass, decoding, sampled thoughts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_option, check_real, shorten
from natwise.lm.continuous_cot._checks import check_drawn, check_ids, check_mask, check_simplex, check_targets
from natwise.lm.continuous_cot._distributions import divergence, evaluation, floored, probabilities

FEEDBACKS = ("distribution", "token", "hidden")
FORCINGS = ("hard", "soft")
RATIOS = ("geometric", "temperature")
Feed: TypeAlias = Callable[[int, torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Generation:
    """What a model thought and answered.

    Attributes
    ----------
    distributions : tensor of shape (n_prompts, steps, n_tokens), float32 or float64
        Distribution over the vocabulary at every step; the last is the answer's.
    """

    distributions: torch.Tensor

    @property
    def answer(self) -> torch.Tensor:
        """The most probable last token, shape (n_prompts,), int64."""
        return self.distributions[:, -1].argmax(dim=-1)


def check_cot(cot: Any) -> None:
    """Refuse a model that was not made a `ContinuousCoT`."""
    if not isinstance(cot, ContinuousCoT):
        raise TypeError(f"cot must be a ContinuousCoT, got {shorten(cot)} ({type(cot).__name__})")


class ContinuousCoT(torch.nn.Module):
    """Continuous chain of thought (CoT2) on a causal language model: thoughts are mixtures of token embeddings.

    An answer takes m steps. The thoughts of steps 1 … m-1 are distributions over the vocabulary, fed back as the
    mean of the tokens' embeddings under them; step m is the answer, one token. With one-hot thoughts it is the
    usual discrete chain of thought, with m = 1 there is none.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model in the manner of transformers: takes ``inputs_embeds``, returns ``logits``, has
        ``get_input_embeddings``. It is trained in place. One that returns ``past_key_values`` is decoded with its
        cache, any other by passes over the whole sequence.

    Notes
    -----
    The original code trains with m calls in a row; since the thoughts are given in training, one call over
    [prompt; thoughts] has all m losses and the same gradient. Distributions are computed in float32 at least.

    Source: Gozeten, Ildiz, Zhang, Harutyunyan, Rawat, Oymak: Continuous Chain of Thought Enables Parallel
    Exploration and Reasoning, 2025, sections 2 and 4.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    >>> cot = ContinuousCoT(GPT2LMHeadModel(config))
    >>> thought = cot.generate(torch.tensor([[1, 2, 3]]), steps=4)
    >>> thought.distributions.shape, thought.answer.shape
    (torch.Size([1, 4, 8]), torch.Size([1]))
    """

    model: Any

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_input_embeddings"):
            kind = type(model).__name__
            raise TypeError(f"model must be a torch module with get_input_embeddings, got {kind}")
        parameters = inspect.signature(model.forward).parameters
        self._accepted = frozenset(parameters)
        self._wraps = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())  # hands on
        if "inputs_embeds" not in self._accepted and not self._wraps:
            raise TypeError(f"model must take inputs_embeds, got {type(model).__name__} that does not")
        self.model = model

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_input_embeddings().weight.device

    def forward(self, prompt: Any, thoughts: torch.Tensor, mask: Any = None) -> torch.Tensor:
        """Return the logits of all steps for given thoughts, in one pass.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens.
        thoughts : tensor of shape (n_prompts, steps - 1, n_tokens), float, or (n_prompts, steps - 1, k), int64
            Distributions over the vocabulary, or k drawn tokens each, of which the mean is fed. `n_prompts` must
            agree with the prompt.
        mask : array or tensor of shape (n_prompts, length), optional
            1 for the prompt's tokens and 0 for padding, which must stand on the left.

        Returns
        -------
        tensor of shape (n_prompts, steps, n_tokens)
            In the model's dtype; the last step is the answer.

        Raises
        ------
        TypeError, ValueError
            For tokens outside the vocabulary, thoughts that are not distributions over it, wrong shapes.
        """
        ids, mask = self.check_prompt(prompt, mask)
        return self._one_pass(ids, self._check_thoughts(thoughts, len(ids)), mask)

    def _one_pass(self, ids: torch.Tensor, thoughts: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the logits (n_prompts, steps, n_tokens) that `forward` does, of arguments that are checked."""
        embedded = torch.cat([self.model.get_input_embeddings()(ids), self.embed(thoughts)], dim=1)
        steps = thoughts.shape[1] + 1
        return self._call(embedded, mask, logits_to_keep=steps, use_cache=False).logits[:, -steps:]

    def loss(self, prompt: Any, targets: Any, *, forcing: str = "hard", mask: Any = None) -> torch.Tensor:
        """Return the KL divergence of the model's distributions from the targets: sum over steps, mean over prompts.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens.
        targets : array or tensor of shape (n_prompts, steps, n_tokens)
            Superposed traces (`mnns_dataset`, `GraphQuestions`); one-hot rows train a discrete chain of thought,
            one step trains without a chain.
        forcing : {"hard", "soft"}
            Thoughts fed in training: the targets, all steps in one pass; or the model's own distributions (with
            gradient), as in decoding, `steps` passes.
        mask : array or tensor of shape (n_prompts, length), optional
            See `forward`.

        Returns
        -------
        tensor of shape ()
            In nats, in float32 at least.

        Raises
        ------
        TypeError, ValueError
            For tokens outside the vocabulary, targets that are not distributions over it, wrong shapes.
        """
        check_option("forcing", forcing, FORCINGS)
        prompt, mask = self.check_prompt(prompt, mask)
        aims = check_targets(targets, len(prompt), self.n_tokens, self.device)
        if forcing == "hard":
            return divergence(self._one_pass(prompt, aims[:, :-1], mask), aims)
        logits = self.unroll(
            prompt, aims.shape[1], lambda step, logits, output: self.embed(probabilities(logits)), mask
        )
        return divergence(logits, aims)

    @torch.no_grad()
    def generate(self, prompt: Any, steps: int, *, feedback: str = "distribution", mask: Any = None) -> Generation:
        """Think on the model's own thoughts, in evaluation mode; nothing is random.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens.
        steps : int
            Number of outputs, the answer among them: `steps` - 1 thoughts.
        feedback : {"distribution", "token", "hidden"}
            What is fed back: the distribution (CoT2), its most probable token (greedy discrete chain of thought),
            or the last hidden state (Coconut).
        mask : array or tensor of shape (n_prompts, length), optional
            See `forward`.

        Returns
        -------
        Generation
            ``.distributions`` (n_prompts, steps, n_tokens) and ``.answer`` (n_prompts,).
        """
        check_option("feedback", feedback, FEEDBACKS)

        def feed(step: int, logits: torch.Tensor, output: Any) -> torch.Tensor:
            if feedback == "hidden":
                return output.hidden_states[-1][:, -1:]
            if feedback == "token":
                return self.embed(logits.argmax(dim=-1)[..., None])
            return self.embed(probabilities(logits))

        with evaluation(self):
            logits = self.unroll(prompt, steps, feed, mask, hidden=feedback == "hidden")
        return Generation(probabilities(logits))

    @torch.no_grad()
    def sample(
        self, prompt: Any, steps: int, n_tokens: int, random_state: RandomState = None, *,
        ratio: str = "geometric", mask: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Multi-token sampling (MTS): each thought is the mean of drawn tokens' embeddings, the answer is drawn.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens; repeat rows for several rollouts.
        steps : int
            Number of outputs, the answer among them.
        n_tokens : int
            Tokens per thought (K), drawn independently with replacement. 1 is the discrete chain of thought.
        random_state : int, Generator, RandomState, Streams or None
        ratio : {"geometric", "temperature"}
            Convention of `grpo_loss`: with "temperature" the tokens of thoughts come from softmax(logits / K).
        mask : array or tensor of shape (n_prompts, length), optional
            See `forward`.

        Returns
        -------
        tokens : int64 tensor of shape (n_prompts, steps - 1, n_tokens)
        final : int64 tensor of shape (n_prompts,)
        """
        k = check_integer("n_tokens", n_tokens, minimum=1)
        temperature = k if check_option("ratio", ratio, RATIOS) == "temperature" else 1
        generator = self._generator(random_state)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            p = probabilities(logits[:, 0] / temperature)
            return torch.multinomial(p, k, replacement=True, generator=generator)[:, None]

        drawn, final = self._rollout(prompt, steps, draw, generator, mask)
        return torch.cat([final.new_empty(len(final), 0, k), *drawn], dim=1), final

    @torch.no_grad()
    def sample_dirichlet(
        self, prompt: Any, steps: int, concentration: float, random_state: RandomState = None, *,
        floor: float = 1e-3, mask: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Sample each thought from a Dirichlet distribution around the model's; the answer is drawn.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens; repeat rows for several rollouts.
        steps : int
            Number of outputs, the answer among them.
        concentration : float
            Sum of the Dirichlet parameters; large values stay close to the model's distribution.
        random_state : int, Generator, RandomState, Streams or None
        floor : float
            Smallest probability before renormalisation (see `floored`), so that every density exists.
        mask : array or tensor of shape (n_prompts, length), optional
            See `forward`.

        Returns
        -------
        points : float64 tensor of shape (n_prompts, steps - 1, n_tokens)
            Positive, rows sum to one.
        final : int64 tensor of shape (n_prompts,)
        """
        scale = check_real("concentration", concentration, minimum=0.0, exclusive=True)
        check_real("floor", floor, minimum=0.0, maximum=1.0, exclusive=True)
        generator = self._generator(random_state)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            gammas = torch._standard_gamma(scale * floored(probabilities(logits.double()), floor), generator=generator)
            gammas = gammas.clamp(min=1e-290)  # small parameters underflow; the density needs positive points
            return gammas / gammas.sum(dim=-1, keepdim=True)

        drawn, final = self._rollout(prompt, steps, draw, generator, mask)
        none = torch.empty(len(final), 0, self.n_tokens, dtype=torch.float64, device=final.device)
        return torch.cat([none, *drawn], dim=1), final

    def _rollout(
        self, prompt: Any, steps: int, draw: Callable[[torch.Tensor], torch.Tensor], generator: torch.Generator,
        mask: Any,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
        """Return what is drawn from each thought's logits (n_prompts, 1, n_tokens), and the answers (n_prompts,)."""
        drawn: list[torch.Tensor] = []

        def feed(step: int, logits: torch.Tensor, output: Any) -> torch.Tensor:
            drawn.append(draw(logits))
            return self.embed(drawn[-1])

        with evaluation(self):
            logits = self.unroll(prompt, steps, feed, mask)
        return drawn, torch.multinomial(probabilities(logits[:, -1]), 1, generator=generator)[:, 0]

    def unroll(
        self, prompt: Any, steps: int, feed: Feed, mask: Any = None, *, hidden: bool = False
    ) -> torch.Tensor:  # fmt: skip
        """Return the logits of all steps when a function makes each thought: `steps` calls, with cache.

        Parameters
        ----------
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens.
        steps : int
            Number of outputs, the answer among them.
        feed : callable
            ``feed(step, logits, output)`` returns the embedded thought (n_prompts, 1, width) that follows step 0, 1,
            …, from its logits (n_prompts, 1, n_tokens) and the model's whole output.
        mask : array or tensor of shape (n_prompts, length), optional
            See `forward`.
        hidden : bool
            Ask the model for ``output.hidden_states``.

        Returns
        -------
        tensor of shape (n_prompts, steps, n_tokens)
        """
        check_integer("steps", steps, minimum=1)
        ids, mask = self.check_prompt(prompt, mask)
        embedded, cache, found = self.model.get_input_embeddings()(ids), None, []
        for step in range(steps):
            more = step + 1 < steps
            output = self._call(embedded, mask, cache, hidden=hidden, use_cache=more, logits_to_keep=1)
            if hidden and getattr(output, "hidden_states", None) is None:
                raise ValueError(f"model must return hidden_states, got a {type(self.model).__name__} that does not")
            found.append(output.logits[:, -1:])
            if more:
                thought = feed(step, found[-1], output)
                cache = getattr(output, "past_key_values", None)
                embedded = torch.cat([embedded, thought], dim=1) if cache is None else thought
        return torch.cat(found, dim=1)

    def embed(self, thoughts: torch.Tensor) -> torch.Tensor:
        """Return the embedding of distributions (…, n_tokens), or the mean over drawn tokens (…, k): (…, width)."""
        embedding = self.model.get_input_embeddings()
        if thoughts.is_floating_point():
            weight = embedding.weight
            return thoughts.to(weight.dtype) @ weight * getattr(embedding, "embed_scale", 1.0)
        return embedding(thoughts).mean(dim=-2)

    def _call(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, cache: Any = None, *, hidden: bool = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Return the model's output for embeddings (n_prompts, positions, width) that follow what is cached."""
        options = {name: value for name, value in options.items() if name in self._accepted}
        if cache is not None:
            options["past_key_values"] = cache
        if hidden and (self._wraps or "output_hidden_states" in self._accepted):
            options["output_hidden_states"] = True
        if mask is not None:
            length = embedded.shape[1] + (0 if cache is None else cache.get_seq_length())
            whole = torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=1)
            positions = (whole.cumsum(dim=1) - 1).clamp(min=0)
            options |= {"attention_mask": whole, "position_ids": positions[:, -embedded.shape[1] :]}
        return self.model(inputs_embeds=embedded, **options)

    def check_prompt(self, prompt: Any, mask: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return prompt and mask as int64 tensors on the model's device; `ValueError` for tokens it does not know."""
        ids = check_ids("prompt", prompt, ("n_prompts", "length"), self.n_tokens, self.device)
        if not ids.numel():
            raise ValueError(f"prompt must hold at least one token, got shape {tuple(ids.shape)}")
        return ids, None if mask is None else check_mask(mask, tuple(ids.shape), self.device)

    def _check_thoughts(self, thoughts: Any, n_prompts: int) -> torch.Tensor:
        """Return thoughts (n_prompts, steps - 1, n_tokens or k) on the model's device."""
        if not isinstance(thoughts, torch.Tensor):
            raise TypeError(f"thoughts must be a tensor, of floats or int64, got {type(thoughts).__name__}")
        if thoughts.is_floating_point():
            return check_simplex("thoughts", thoughts, (n_prompts, "steps - 1", self.n_tokens), self.device)
        return check_drawn("thoughts", thoughts, (n_prompts, "steps - 1", "k"), self.n_tokens, self.device)

    def _generator(self, random_state: RandomState) -> torch.Generator:
        return Streams.of(random_state).torch("thoughts", self.device)
