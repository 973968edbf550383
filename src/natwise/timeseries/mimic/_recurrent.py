"""Recurrent layers with the semantics of the published models (Keras 2.1), many of them in one scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LSTMLayer(nn.Module):
    """Several independent LSTMs that read one sequence, each some of its columns, forwards or also backwards.

    As in Keras 2.1: gates by hard_sigmoid(x) = clip(0.2 x + 0.5, 0, 1), one bias vector with 1 for the forget gate,
    Glorot uniform input weights, orthogonal recurrent weights, one dropout mask of the inputs for all time steps, and
    padding that is skipped: state and output stay as they were.

    Parameters
    ----------
    columns : sequence of sequence of int
        Which columns each LSTM reads.
    hidden : int
        Units of each LSTM and direction.
    bidirectional : bool
        Read also from the end, and append these outputs.
    dropout : float
        Share of inputs that are dropped in training.
    """

    def __init__(
        self, columns: Sequence[Sequence[int]], hidden: int, *, bidirectional: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        self.hidden, self.directions, self.dropout = hidden, 1 + bidirectional, dropout
        self.columns = [list(column) for column in columns] * self.directions
        self.kernels = nn.ParameterList(torch.empty(len(column), 4 * hidden) for column in self.columns)
        self.recurrent = nn.Parameter(torch.empty(len(self.columns), hidden, 4 * hidden))
        self.bias = nn.Parameter(torch.zeros(len(self.columns), 4 * hidden))
        self.reset_parameters()

    @property
    def n_outputs(self) -> int:
        """Columns of the output."""
        return len(self.columns) * self.hidden

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's global generator."""
        for kernel in self.kernels:
            nn.init.xavier_uniform_(kernel)
        for matrix in self.recurrent:
            nn.init.orthogonal_(matrix)
        with torch.no_grad():
            self.bias.zero_()
            self.bias[:, self.hidden : 2 * self.hidden] = 1.0  # gates stand as input, forget, output, cell

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Return the outputs (batch, steps, n_outputs) of x (batch, steps, columns), skipping what is not `inside`."""
        if self.dropout and self.training:
            x = x * nn.functional.dropout(torch.ones_like(x[:, :1]), self.dropout)
        gates = [
            torch.addmm(bias, x[..., columns].flatten(0, 1), kernel).view(*x.shape[:2], -1)
            for columns, kernel, bias in zip(self.columns, self.kernels, self.bias, strict=True)
        ]
        half = len(gates) // self.directions
        inputs = torch.stack([*gates[:half], *(gate.flip(1) for gate in gates[half:])])
        masks = torch.stack([inside] * half + [inside.flip(1)] * (len(gates) - half))
        outputs = self._scan(inputs, masks)
        outputs = torch.cat([outputs[:half], outputs[half:].flip(2)])
        return outputs.permute(1, 2, 0, 3).flatten(2)

    def _scan(self, gates: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return outputs (LSTMs, batch, steps, hidden) for the gates' share of x (LSTMs, batch, steps, 4 hidden)."""
        output = gates.new_zeros(*gates.shape[:2], self.hidden)
        cell = torch.zeros_like(output)
        padded = not bool(masks.all())
        keep = masks[..., None].to(gates.dtype).unbind(2)
        outputs = []
        for step, arriving in enumerate(gates.unbind(2)):
            summed = torch.baddbmm(arriving, output, self.recurrent)
            opened, new = summed.split([3 * self.hidden, self.hidden], dim=-1)
            enter, forget, leave = hard_sigmoid(opened).chunk(3, dim=-1)
            updated = torch.addcmul(forget * cell, enter, torch.tanh(new))
            given = leave * torch.tanh(updated)
            cell = torch.lerp(cell, updated, keep[step]) if padded else updated
            output = torch.lerp(output, given, keep[step]) if padded else given
            outputs.append(output)
        return torch.stack(outputs, dim=2)


def hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return clip(0.2 x + 0.5, 0, 1) in the shape of x: Keras's gate; torch's has slope 1/6."""
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def inside_mask(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """Return (batch, steps) bool: which steps are no padding."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]
