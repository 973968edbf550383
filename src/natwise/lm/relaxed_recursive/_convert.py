"""From a trained vanilla model to a recursive one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_flag, check_integer, check_option, shorten, suggest
from natwise.lm.relaxed_recursive._config import FAMILIES, RecursiveConfig
from natwise.lm.relaxed_recursive._folding import LLAMA, READERS, Tensors, fold_norms as fold, has_other_vectors
from natwise.lm.relaxed_recursive._layers import LayerPlan, plan_layers
from natwise.lm.relaxed_recursive._linear import RelaxedLinear
from natwise.lm.relaxed_recursive._lowrank import low_rank
from natwise.lm.relaxed_recursive._model import RecursiveForCausalLM, copy_outside, is_shared, layers_of, set_parameter
from natwise.result import Result, provenance

LORA_INITS = ("svd", "zero")
KIND = "lm.relaxed_recursive/conversion"


def to_recursive(
    model: PreTrainedModel,
    num_loops: int,
    init: str = "stepwise",
    lora_rank: int | None = None,
    lora_init: str = "svd",
    fold_norms: bool = False,
    sharing: str = "cycle",
    on_indivisible: str = "raise",
    random_state: RandomState = None,
) -> RecursiveForCausalLM:
    """Convert a trained language model into one that loops over fewer layers.

    Parameters
    ----------
    model : PreTrainedModel
        A dense causal language model of a type that `RecursiveConfig` lists; on the meta device, only its structure.
    num_loops : int
        How often the shared layers are applied.
    init : {"stepwise", "average", "lower", "upper", "random"}
        What is shared: source layers at equal distances with the first and the last, means over the depths that a layer
        serves, the first, the last, or random source layers in their order.
    lora_rank : int, optional
        Rank of the delta of every linear map at every depth. Default: none, all depths of a layer are equal.
    lora_init : {"svd", "zero"}
        The truncated decomposition of source minus shared (zero where nothing is missing), or zero everywhere.
    fold_norms : bool
        First move norm gains into the linear maps that read them, which changes no output; biases and other gains stay
        with every depth. With deltas of full rank the result then *equals* the source. The paper does not do it.
    sharing : {"cycle", "sequence", "middle_cycle", "middle_sequence"}
        The block again and again (the paper), each layer several times in a row, or so with both end layers alone.
    on_indivisible : {"raise", "drop", "extend"}
        When loops do not divide the depth: refuse, drop source layers at equal distances, or use some twice.
    random_state : int, Generator or None
        For random layers, deltas that start from zero, and randomised decompositions.

    Returns
    -------
    RecursiveForCausalLM
        With dtype, device and generation settings of the source. ``conversion`` is a `Result` with a row per depth and
        matrix: ``residual``, Frobenius norm of source minus shared; ``error``, what its delta leaves; ``optimum``, the
        least that one of that ``rank`` can leave (Eckart-Young). None on the meta device.

    Raises
    ------
    TypeError, ValueError
        Before anything is allocated: for a model of another type, without head, quantised, with layers of unequal
        shape or weights that are not finite; loops that do not divide the depth; options that are unknown.

    Notes
    -----
    Bae et al. (2025), sections 2.2, 2.3. The baseline of random weights there: ``RecursiveForCausalLM(config)``.
    """
    family = _check_model(model)
    _check_options(lora_rank, lora_init, fold_norms)
    streams = Streams.of(random_state)
    options: dict[str, Any] = {"init": init, "sharing": sharing, "on_indivisible": on_indivisible}
    plan = plan_layers(len(layers_of(model)), num_loops, **options, random_state=streams)
    others = fold_norms and has_other_vectors(_check_foldable(model, family), family)
    with torch.device("meta"):
        recursive = RecursiveForCausalLM(_config(model, plan, num_loops, sharing, lora_rank, not others))
    nn.Module.to(recursive, model.dtype)
    if model.device.type != "meta":
        with torch.no_grad(), provenance(seed=None) as record:
            conversion = _Conversion(model, recursive, plan, streams, fold_norms, lora_init)
            conversion.run()
        options |= {"lora_rank": recursive.config.lora_rank, "lora_init": lora_init, "fold_norms": fold_norms}
        recursive.conversion = conversion.result({"num_loops": recursive.config.num_loops, **options}, record)
    recursive.generation_config = copy.deepcopy(model.generation_config)
    return recursive.train(model.training)


@dataclass
class _Conversion:
    """Fills a recursive model matrix by matrix, so that only copies of one matrix at all depths are alive."""

    source: PreTrainedModel
    target: RecursiveForCausalLM
    plan: LayerPlan
    streams: Streams
    folds: bool
    lora_init: str
    rows: list[str] = field(default_factory=list)
    numbers: list[tuple[float, ...]] = field(default_factory=list)

    def run(self) -> None:
        """Fill in all parameters, layer by layer."""
        copy_outside(self.source, self.target)
        depths_of: dict[int, list[int]] = {}
        for depth, unique in enumerate(self.plan.layer_map):
            depths_of.setdefault(unique, []).append(depth)
        for unique, depths in depths_of.items():
            self._fill_layer(self.plan.sources[unique], depths)
        self.target.tie_weights()

    def _fill_layer(self, sources: Sequence[int], depths: Sequence[int]) -> None:
        """Fill in all depths of one unique layer."""
        layers = [self.target.model.layers[depth] for depth in depths]
        needed = dict.fromkeys([*sources, *(self.plan.kept[depth] for depth in depths)])
        for names in _folded_together(self.source, self.folds):
            state = {layer: self._read(layer, names) for layer in needed}
            for name in names:
                shared = _mean([state[layer][name] for layer in sources])
                own = [state[self.plan.kept[depth]][name] for depth in depths]
                if is_shared(name, shared, self.target.config.tie_vectors):
                    set_parameter(layers[0], name, shared)
                    self._fill_deltas(name, shared, own, depths)
                else:
                    for layer, value in zip(layers, own, strict=True):
                        set_parameter(layer, name, value.clone())

    def _read(self, layer: int, names: Sequence[str]) -> Tensors:
        """Return parameters of a source layer by name, each of its own shape."""
        parameters = dict(layers_of(self.source)[layer].named_parameters())
        state = {name: parameters[name].detach() for name in names}
        return fold(state, self.source.config.model_type) if self.folds else state

    def _fill_deltas(self, name: str, shared: torch.Tensor, own: list[torch.Tensor], depths: Sequence[int]) -> None:
        """Give a matrix `shared` (out, in) its delta towards `own` at every depth, and note how near it comes."""
        if shared.ndim != 2:
            return
        wide = torch.promote_types(shared.dtype, torch.float32)
        for depth, value in zip(depths, own, strict=True):
            module = self.target.model.layers[depth].get_submodule(name.removesuffix(".weight"))
            residual = value.to(wide) - shared.to(wide)
            self.rows.append(f"layers.{depth}.{name.removesuffix('.weight')}")
            self.numbers.append(self._fill_delta(module, residual, self.streams.torch(self.rows[-1])))

    def _fill_delta(
        self, module: nn.Module, residual: torch.Tensor, generator: torch.Generator
    ) -> tuple[float, float, float, int]:
        """Set the delta of one map from its residual (out, in); return a row of the report."""
        norm = float(torch.linalg.matrix_norm(residual))
        if not isinstance(module, RelaxedLinear):
            return norm, norm, norm, 0
        rank = len(module.lora_a)
        if norm == 0.0 or self.lora_init == "zero":
            a = torch.randn(module.lora_a.shape, generator=generator) / module.in_features**0.5
            b, error, optimum = torch.zeros(module.lora_b.shape), norm, norm
        else:
            found = low_rank(residual, rank, generator)
            a, b, error, optimum = found.a, found.b, found.error, found.optimum
        for name, value in (("lora_a", a), ("lora_b", b)):
            set_parameter(module, name, value.to(residual.device, module.lora_a.dtype).contiguous())
        return norm, error, optimum, rank

    def result(self, params: dict[str, Any], record: dict[str, Any]) -> Result:
        """Return the report: arrays with an entry per row, and their norms."""
        columns = ("residual", "error", "optimum", "rank")
        table = np.array(self.numbers, dtype=np.float64).reshape(-1, len(columns))
        arrays = dict(zip(columns, table.T.copy(), strict=True))
        scalars = {f"total_{name}": float(np.linalg.norm(arrays[name])) for name in columns[:3]}
        return Result(KIND, arrays=arrays, scalars=scalars, rows=self.rows, params=params, provenance=record)


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of tensors of one shape as a tensor of its own."""
    if len(values) == 1:
        return values[0].clone()
    total = values[0].to(torch.promote_types(values[0].dtype, torch.float32), copy=True)
    for value in values[1:]:
        total += value
    return (total / len(values)).to(values[0].dtype)


def _folded_together(model: PreTrainedModel, folds: bool) -> Iterator[list[str]]:
    """Yield names of parameters that must be read together: all of a layer when norms are folded, else one."""
    names = [name for name, _ in layers_of(model)[0].named_parameters()]
    yield from [names] if folds else [[name] for name in names]


def _check_model(model: Any) -> str:
    """Return the type of a model that can be converted."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    family = model.config.model_type
    if family not in FAMILIES:
        listed = ", ".join(FAMILIES)
        raise ValueError(f"model must be of type {listed}, got {shorten(family)}.{suggest(family, FAMILIES)}")
    if not model.can_generate():
        raise ValueError(f"model must have a language modelling head (…ForCausalLM), got {type(model).__name__}")
    weights = [parameter for layer in layers_of(model) for parameter in layer.parameters()]
    if getattr(model, "is_quantized", False) or not all(weight.is_floating_point() for weight in weights):
        raise ValueError("model must have dense floating point weights, got quantised ones")
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in layers_of(model)]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"model must have layers of equal shape, got another one at layer {number}")
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            raise ValueError(f"model must have finite weights, got NaN or infinity in {name}")
    return family


def _check_options(lora_rank: Any, lora_init: Any, fold_norms: Any) -> None:
    check_option("lora_init", lora_init, LORA_INITS)
    check_flag("fold_norms", fold_norms)
    if lora_rank is not None:
        check_integer("lora_rank", lora_rank, minimum=1)


def _check_foldable(model: PreTrainedModel, family: str) -> Tensors:
    """Return the parameters of the first layer, whose norms can be folded."""
    layer = dict(layers_of(model)[0].named_parameters())
    for norm, readers in READERS.get(family, LLAMA).items():
        lacking = [reader for reader in readers if f"{norm}.bias" in layer and f"{reader}.bias" not in layer]
        if lacking:
            raise ValueError(
                f"fold_norms needs a bias in {lacking[0]}, which the bias of {norm} is moved into, got none"
            )
    return layer


def _config(
    model: PreTrainedModel,
    plan: LayerPlan,
    num_loops: int,
    sharing: str,
    lora_rank: int | None,
    tie_vectors: bool,
) -> RecursiveConfig:
    """Return the configuration of the model that a plan makes of a source."""
    fields = model.config.to_dict()
    for name in ("model_type", "architectures"):
        fields.pop(name, None)
    if fields.get("layer_types"):
        fields["layer_types"] = [fields["layer_types"][layer] for layer in plan.kept]
    fields["num_hidden_layers"] = len(plan.kept)
    config = RecursiveConfig(
        **fields,
        base_model_type=model.config.model_type,
        num_loops=int(num_loops),
        sharing=sharing,
        lora_rank=None if lora_rank is None else int(lora_rank),
        tie_vectors=tie_vectors,
    )
    config._attn_implementation = model.config._attn_implementation
    return config
