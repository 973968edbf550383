"""The empirical neural tangent kernel of a PyTorch module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natwise.core.linearized._features import GradientFeature
from natwise.core.linearized._layers import Network, flat_outputs, last_layer
from natwise.core.linearized._memory import check_fits
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option

METHODS = ("auto", "structured", "jacobian", "projected", "last_layer")
_PROBE = 6
_WAY_OUT = "use outputs='mean' for one kernel shared by all outputs, or fewer samples"


def empirical_ntk(
    module: nn.Module,
    X: Any,
    X2: Any = None,
    *,
    method: str = "auto",
    outputs: str = "all",
    dtype: Any = None,
    n_projections: int = 2000,
    max_bytes: int = 2**28,
    random_state: RandomState = 0,
) -> np.ndarray:
    """Compute the neural tangent kernel ``J(X) J(X2)^T`` of a module at its present weights.

    J holds the gradients of every output with respect to every parameter that requires a gradient; as a whole it is
    never formed. Linear layers, convolutions, normalisations and embeddings contribute through inner products of
    inputs and output gradients, or through per-sample gradients, whichever is cheaper. Each formula is checked against
    autograd on the first samples; what has none (shared weights, other modules) goes through `torch.func`.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (b, ...) to (b, k) or (b,), every sample by itself. It is left as it was: weights, gradients, hooks, mode.
    X, X2 : array or tensor (n, ...), (n2, ...)
        Inputs; `X2` defaults to `X`.
    method : {"auto", "structured", "jacobian", "projected", "last_layer"}
        ``auto`` is ``structured``. ``jacobian`` takes everything through `torch.func`. ``projected`` keeps
        `n_projections` random coordinates per parameter tensor: an unbiased estimate. ``last_layer`` uses only the
        parameters of the module that is called last.
    outputs : {"all", "mean"}
        ``mean`` returns the (n, n2) mean over the outputs of their own kernels, what k outputs share in a wide network
        (exactly, when only a linear last layer is trained).
    dtype : dtype, optional
        Precision of the gradients, float32 or float64; default that of the module.
    n_projections : int
        Coordinates per parameter tensor for ``projected``.
    max_bytes : int
        Working memory: samples go through in blocks that keep gradients and activations below it, beside the kernel.
    random_state : int, Generator or None
        Chooses the coordinates for ``projected``; the same int gives kernels that fit together.

    Returns
    -------
    ndarray (n * k, n2 * k)
        Sample-major: row ``i * k + o`` is output o of sample i.

    Raises
    ------
    ValueError
        If dropout or batch normalisation is in training mode, no parameter requires a gradient, inputs are not finite,
        or the kernel exceeds the machine's memory (the bytes are said).
    """
    check_option("method", method, METHODS)
    check_option("outputs", outputs, ("all", "mean"))
    max_bytes = check_integer("max_bytes", max_bytes, minimum=1)
    n_projections = check_integer("n_projections", n_projections, minimum=1)
    check_evaluation_mode(module)
    module, parameters = _prepare(module, dtype)
    inputs = as_inputs("X", X, parameters)
    inputs2 = inputs if X2 is None else as_inputs("X2", X2, parameters)
    probe = inputs[:_PROBE]
    k = 1 if outputs == "mean" else _n_outputs(module, probe)
    rows, columns = len(inputs) * k, len(inputs2) * k
    check_fits(f"a kernel of {rows:,} x {columns:,}", rows * columns * _itemsize(parameters), _WAY_OUT)
    if method == "last_layer":
        parameters = last_layer(module, parameters, probe)
    network = Network(module, parameters, probe, structured=method != "jacobian")
    features = _compressed(network, method, outputs, n_projections, Streams.of(random_state))
    return _assemble(features, inputs, inputs2, _block_size(features(probe), len(probe), k, max_bytes))


def check_evaluation_mode(module: nn.Module) -> None:
    """Raise `ValueError` when a layer of the module would behave at random or mix the samples of a batch."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for name, child in module.named_modules():
        normalises = isinstance(child, nn.modules.batchnorm._BatchNorm)
        rate = getattr(child, "p" if isinstance(child, nn.modules.dropout._DropoutNd) else "dropout", 0)
        random = (isinstance(rate, float) and rate > 0) or isinstance(child, nn.RReLU)
        if child.training and (normalises or random):
            raise ValueError(
                f"module must be in evaluation mode, got {type(child).__name__} {name!r} in training mode; call "
                "module.eval() first"
            )
        if normalises and child.running_mean is None:
            raise ValueError(
                f"module must not mix samples, got {type(child).__name__} {name!r} without running statistics"
            )


def as_inputs(name: str, value: Any, parameters: dict[str, nn.Parameter]) -> Tensor:
    """Return inputs (n, ...) as a tensor on the device of the parameters; floats in their dtype, integers as int64."""
    like = next(iter(parameters.values()))
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.is_complex():
            raise TypeError(f"{name} must be numeric, got dtype {tensor.dtype}")
    else:
        array = np.asarray(value)
        array = array if array.dtype.kind in "iu" else check_array(name, value)
        tensor = torch.from_numpy(np.array(array))
    if tensor.ndim < 1 or len(tensor) == 0:
        raise ValueError(f"{name} must hold at least one sample, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        return tensor.to(like.device, torch.int64)
    tensor = tensor.to(like.device, like.dtype)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite in {like.dtype}, got NaN or infinity")
    return tensor


def _prepare(module: nn.Module, dtype: Any) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return the module, or a copy in another precision, and its trainable parameters."""
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError("module must have parameters that require a gradient, got none")
    present = {value.dtype for value in parameters.values()}
    wanted = _torch_dtype(dtype) if dtype is not None else max(present, key=lambda kind: torch.finfo(kind).bits)
    wanted = wanted if wanted in (torch.float32, torch.float64) else torch.float32
    if present == {wanted}:
        return module, parameters
    module = copy.deepcopy(module).to(wanted)
    return module, {name: value for name, value in module.named_parameters() if value.requires_grad}


def _torch_dtype(dtype: Any) -> torch.dtype:
    known = {torch.float32: torch.float32, torch.float64: torch.float64}
    if not isinstance(dtype, torch.dtype):
        try:
            dtype = {"float32": torch.float32, "float64": torch.float64}.get(np.dtype(dtype).name)
        except TypeError:
            dtype = None
    if dtype not in known:
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    return known[dtype]


def _itemsize(parameters: dict[str, nn.Parameter]) -> int:
    return next(iter(parameters.values())).element_size()


def _n_outputs(module: nn.Module, probe: Tensor) -> int:
    with torch.no_grad():
        return flat_outputs(module, probe).shape[1]


def _compressed(
    network: Network, method: str, outputs: str, n_projections: int, streams: Streams
) -> Callable[[Tensor], dict[str, GradientFeature]]:
    """Return the features of a block of samples as a function, in the form in which inner products are taken."""
    chosen: dict[str, Tensor] = {}

    def project(name: str, feature: GradientFeature) -> GradientFeature:
        size = feature.n_parameters()
        if size <= n_projections:
            return feature
        if name not in chosen:
            generator = streams.numpy(name)
            chosen[name] = torch.from_numpy(np.sort(generator.choice(size, n_projections, replace=False)))
        selected = feature.select(chosen[name].to(feature.stored()[0].device))
        selected.gradients *= (size / n_projections) ** 0.5
        return selected

    def compress(name: str, feature: GradientFeature) -> GradientFeature:
        feature = project(name, feature) if method == "projected" else feature
        feature = feature.merge_outputs() if outputs == "mean" else feature
        return feature.cheaper()

    return lambda block: {name: compress(name, feature) for name, feature in network.features(block).items()}


def _block_size(features: dict[str, GradientFeature], n_probe: int, k: int, max_bytes: int) -> int:
    """Return how many samples per block keep two blocks of features and their inner products within `max_bytes`."""
    stored = [tensor for feature in features.values() for tensor in feature.stored()]
    itemsize = max(tensor.element_size() for tensor in stored)
    per_sample = sum(tensor.numel() for tensor in stored) * itemsize / n_probe
    by_features = max_bytes / (4 * per_sample)  # two blocks, and as much again while they are made
    by_products = (max_bytes / (4 * itemsize)) ** 0.5 / k
    return max(1, int(min(by_features, by_products)))


def _assemble(
    features: Callable[[Tensor], dict[str, GradientFeature]], inputs: Tensor, inputs2: Tensor, step: int
) -> np.ndarray:
    """Fill the kernel block by block; a symmetric one from its upper blocks."""
    symmetric = inputs2 is inputs
    kernel: np.ndarray | None = None
    for start in range(0, len(inputs), step):
        rows = features(inputs[start : start + step])
        for start2 in range(start if symmetric else 0, len(inputs2), step):
            same = symmetric and start2 == start
            columns = rows if same else features(inputs2[start2 : start2 + step])
            block = _gram(rows, columns)
            b, k, b2, k2 = block.shape
            if kernel is None:
                kernel = np.empty((len(inputs) * k, len(inputs2) * k2), dtype=block.dtype)
            here = slice(start * k, start * k + b * k), slice(start2 * k2, start2 * k2 + b2 * k2)
            kernel[here] = block.reshape(b * k, b2 * k2)
            if symmetric and not same:
                kernel[here[::-1]] = kernel[here].T
    assert kernel is not None
    return kernel


def _gram(rows: dict[str, GradientFeature], columns: dict[str, GradientFeature]) -> np.ndarray:
    blocks = (feature.gram(columns[name]) for name, feature in rows.items())
    total = next(blocks)
    for block in blocks:
        total += block
    return total.cpu().numpy()
