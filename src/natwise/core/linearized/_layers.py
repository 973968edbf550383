"""Run a module on a block of samples and read off the gradient features of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from natwise.core.linearized._features import BUILDERS, Dense, GradientFeature
from natwise.core.validation import shorten

_CHECK_TOLERANCE = 1e-3


@dataclass
class Layer:
    """A module whose parameters have a structured formula, and what it saw in the last forward pass."""

    module: nn.Module
    parameters: dict[str, str]  # name inside the module -> name in the network
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def features(self, cotangents: Tensor) -> dict[str, GradientFeature]:
        """Return the features of its trainable parameters by their names in the network."""
        inputs, _ = self.calls[0]
        built = BUILDERS[type(self.module)](self.module, inputs, cotangents)
        return {name: built[local] for local, name in self.parameters.items()}


class Network:
    """A module in evaluation mode and how the gradients of its parameters are found.

    Each structured formula is checked against autograd on the first samples; a parameter whose formula does not
    apply (weights that are shared, used outside their layer, applied twice, mixed axes) joins `fallback`, whose
    gradients come from `torch.func`.
    """

    def __init__(self, module: nn.Module, parameters: dict[str, nn.Parameter], probe: Tensor, structured: bool):
        self.module = module
        self.fallback = dict(parameters)
        self.layers = _structured_layers(module, parameters) if structured else []
        if self.layers:
            self._keep_verified(probe)

    def features(self, inputs: Tensor) -> dict[str, GradientFeature]:
        """Return the features of all parameters for a block of samples."""
        features: dict[str, GradientFeature] = self._structured(inputs) if self.layers else {}
        if self.fallback:
            features["fallback"] = Dense(_jacobian(self.module, self.fallback, inputs))
        return features

    def _structured(self, inputs: Tensor) -> dict[str, GradientFeature]:
        _, cotangents = self._backward(inputs)
        features: dict[str, GradientFeature] = {}
        for layer, cotangent in zip(self.layers, cotangents, strict=True):
            features |= layer.features(cotangent)
            layer.calls.clear()
        return features

    def _backward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs (b, k) and, per layer, their gradients with respect to what the layer returned."""
        with torch.enable_grad(), _recording(self.layers):
            outputs = flat_outputs(self.module, inputs)
        if any(len(layer.calls) != 1 for layer in self.layers):
            raise ValueError("module must run the same layers on every batch; use method='jacobian'")
        targets = [layer.calls[0][1] for layer in self.layers]
        per_output = [_gradient(outputs[:, o].sum(), targets) for o in range(outputs.shape[1])]
        return outputs, [torch.stack(columns, dim=1) for columns in zip(*per_output, strict=True)]

    def _keep_verified(self, probe: Tensor) -> None:
        """Keep the layers whose formula reproduces autograd's gradient of a weighted sum over the probe samples."""
        with torch.enable_grad(), _recording(self.layers):
            flat_outputs(self.module, probe)
        self.layers = [layer for layer in self.layers if _is_applicable(layer, len(probe))]
        outputs, cotangents = self._backward(probe)
        weights = _test_weights(outputs)
        names = [name for layer in self.layers for name in layer.parameters.values()]
        exact = _gradient((outputs * weights).sum(), [self.fallback[name] for name in names])
        expected = dict(zip(names, exact, strict=True))
        self.layers = [
            layer
            for layer, cotangent in zip(self.layers, cotangents, strict=True)
            if _is_verified(layer.features(cotangent), weights, expected)
        ]
        for layer in self.layers:
            layer.calls.clear()
            for name in layer.parameters.values():
                del self.fallback[name]


def flat_outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Run the module and return its outputs as (b, k)."""
    try:
        outputs = module(inputs)
    except RuntimeError as error:  # torch's name for shapes that do not fit
        raise ValueError(f"X must fit the module, got shape {tuple(inputs.shape)}: {shorten(error, 120)}") from error
    if not isinstance(outputs, Tensor):
        raise TypeError(f"module must return a tensor, got {type(outputs).__name__}")
    if outputs.ndim == 0 or len(outputs) != len(inputs):
        raise ValueError(
            f"module must return one row of outputs per sample, got shape {tuple(outputs.shape)} for {len(inputs)}"
        )
    return outputs.reshape(len(outputs), -1)


def last_layer(module: nn.Module, parameters: dict[str, nn.Parameter], probe: Tensor) -> dict[str, nn.Parameter]:
    """Return the parameters of the module that is called last."""
    owners = {owner: names for owner, names in _direct_parameters(module, parameters).items() if names}
    order: list[nn.Module] = []
    hooks = [owner.register_forward_hook(lambda owner, _, __: order.append(owner)) for owner in owners]
    try:
        with torch.no_grad():
            module(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: parameters[name] for name in owners[order[-1]].values()}


def _direct_parameters(module: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """Return, for each submodule, its own parameters: name inside the submodule -> name in the network."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        child: {
            local: names[id(parameter)]
            for local, parameter in child.named_parameters(recurse=False)
            if id(parameter) in names
        }
        for child in module.modules()
    }


def _structured_layers(module: nn.Module, parameters: dict[str, nn.Parameter]) -> list[Layer]:
    """Return the layers that have a formula and own their parameters alone."""
    owned = _direct_parameters(module, parameters)
    owners: dict[str, int] = {}
    for names in owned.values():
        for name in names.values():
            owners[name] = owners.get(name, 0) + 1
    return [
        Layer(child, names)
        for child, names in owned.items()
        if names and _has_formula(child) and all(owners[name] == 1 for name in names.values())
    ]


def _has_formula(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) in BUILDERS


def _is_applicable(layer: Layer, n_samples: int) -> bool:
    """Say whether the layer ran once, on one tensor whose first axis is the samples."""
    if len(layer.calls) != 1:
        return False
    inputs, outputs = layer.calls[0]
    batched = inputs.ndim > 1 or isinstance(layer.module, nn.Embedding)
    return batched and len(inputs) == len(outputs) == n_samples and outputs.requires_grad


def _is_verified(features: dict[str, GradientFeature], weights: Tensor, expected: dict[str, Tensor]) -> bool:
    return all(
        _close(torch.einsum("bk,bkp->p", weights, feature.dense()), expected[name].flatten())
        for name, feature in features.items()
    )


@contextmanager
def _recording(layers: list[Layer]) -> Iterator[None]:
    """Let each layer note its input and output; the hooks are removed whatever happens."""

    def hook_of(layer: Layer) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            layer.calls.append((args[0].detach(), output))
            return output.clone()  # what follows may change it in place

        return hook

    hooks = []
    try:
        for layer in layers:
            layer.calls.clear()
            hooks.append(layer.module.register_forward_hook(hook_of(layer)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _jacobian(module: nn.Module, parameters: dict[str, nn.Parameter], inputs: Tensor) -> Tensor:
    """Return the gradients of every output with respect to `parameters`, side by side: (b, k, p)."""
    try:
        jacobian = _batched_jacobian(module, parameters, inputs)
    except (RuntimeError, NotImplementedError, ValueError):  # an operation that vmap cannot batch
        jacobian = None
    # vmap of some operations is silently wrong for some batch sizes (PReLU in torch 2.13), hence the check
    if jacobian is None or not _agrees(jacobian, module, parameters, inputs):
        jacobian = torch.stack([_sample_jacobian(module, parameters, sample) for sample in inputs])
    return jacobian


def _batched_jacobian(module: nn.Module, parameters: dict[str, nn.Parameter], inputs: Tensor) -> Tensor:
    values = {name: parameter.detach() for name, parameter in parameters.items()}

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, values, (sample[None],)).reshape(-1)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule", category=UserWarning)
        blocks = vmap(jacrev(outputs), in_dims=(None, 0))(values, inputs)
    return torch.cat([blocks[name].flatten(2) for name in values], dim=2)


def _agrees(jacobian: Tensor, module: nn.Module, parameters: dict[str, nn.Parameter], inputs: Tensor) -> bool:
    """Compare a weighted sum of gradients with autograd's gradient of the weighted sum."""
    with torch.enable_grad():
        outputs = flat_outputs(module, inputs)
    weights = _test_weights(outputs)
    exact = _gradient((outputs * weights).sum(), list(parameters.values()))
    found = torch.einsum("bk,bkp->p", weights, jacobian)
    return _close(found, torch.cat([gradient.flatten() for gradient in exact]))


def _sample_jacobian(module: nn.Module, parameters: dict[str, nn.Parameter], sample: Tensor) -> Tensor:
    with torch.enable_grad():
        outputs = flat_outputs(module, sample[None])[0]
    rows = [_gradient(output, list(parameters.values())) for output in outputs]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


def _gradient(value: Tensor, targets: list[Tensor]) -> tuple[Tensor, ...]:
    """Return autograd's gradient, zero for what `value` does not depend on; the graph is kept."""
    if not targets or not value.requires_grad:
        return tuple(torch.zeros_like(target) for target in targets)
    return torch.autograd.grad(value, targets, retain_graph=True, allow_unused=True, materialize_grads=True)


def _test_weights(outputs: Tensor) -> Tensor:
    """Return weights in (-1, 1) without pattern, the same every time."""
    order = torch.arange(outputs.numel(), device=outputs.device, dtype=outputs.dtype)
    return torch.cos(order).reshape(outputs.shape)


def _close(found: Tensor, expected: Tensor) -> bool:
    error = torch.linalg.vector_norm(found - expected)
    return bool(error <= _CHECK_TOLERANCE * torch.linalg.vector_norm(expected) + 1e-30)
