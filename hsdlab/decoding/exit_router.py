"""The router of LearnedExit: a small network, shared by the layers, that decides whether a token exits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hsdlab.errors import UserError

_INPUTS_BESIDE_HIDDEN = 2  # the position, and the confidence of the check before


class ExitRouter(nn.Module):
    """Decides from a layer's output, the token's position and the confidence of the check before whether to exit.

    The hidden state is divided by its root mean square, since its size differs by orders between layers. Each layer has
    biases of its own; the matrices are shared.

    Its file is a safetensors file with the parameters, and with the layers in its metadata.

    Args:
        hidden_size: d, the width of the hidden states.
        layers: The layers after which it decides, ascending.
        width: Hidden units between its two layers. 0 makes it one linear layer.

    Attributes:
        layers: As given.
        width: As given.
        hidden_size: As given.

    Example:
        >>> router = ExitRouter(4, layers=[1, 3])
        >>> router(torch.ones(2, 4), layer=3, position=0.5, last=torch.zeros(2)).shape
        torch.Size([2])
    """

    def __init__(self, hidden_size: int, layers: Sequence[int], width: int = 0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.layers = tuple(layers)
        self.width = width
        self.read = nn.Linear(hidden_size + _INPUTS_BESIDE_HIDDEN, width or 1, bias=False)
        # one dimension, since it is no matrix that a hidden state is multiplied with
        self.layer_biases = nn.Parameter(torch.zeros(len(self.layers) * (width or 1)))
        self.decide = nn.Linear(width, 1) if width else None
        if self.decide is None:
            nn.init.zeros_(self.read.weight)

    def forward(self, hidden: Tensor, layer: int, position: float | Tensor, last: Tensor) -> Tensor:
        """Compute the log-odds of an exit.

        Args:
            hidden: The layer's output before the final norm, [rows, d]; cast to the dtype of the parameters.
            layer: One of ``layers``.
            position: t / T of the decode step, from 0 to 1; one for all rows, or [rows].
            last: What ``confidence`` gave at the check before in the same step, [rows]; 0 at the first.

        Returns:
            [rows], in the dtype of the parameters.
        """
        dtype = self.read.weight.dtype
        state = nn.functional.rms_norm(hidden.to(dtype), (self.hidden_size,))
        last = last.to(dtype)
        position = torch.as_tensor(position, dtype=dtype, device=hidden.device).expand_as(last)
        inputs = torch.cat([state, position[:, None], last[:, None]], dim=1)  # (rows, d + 2)
        bias = self.layer_biases.view(len(self.layers), -1)[self.layers.index(layer)]
        units = self.read(inputs) + bias  # (rows, width or 1)
        return (units if self.decide is None else self.decide(units.relu())).squeeze(1)

    def confidence(self, hidden: Tensor, layer: int, position: float | Tensor, last: Tensor) -> Tensor:
        """Compute the probability of an exit: the sigmoid of ``forward``.

        Args:
            hidden: As for ``forward``.
            layer: As for ``forward``.
            position: As for ``forward``.
            last: As for ``forward``.

        Returns:
            [rows], from 0 to 1.
        """
        return torch.sigmoid(self(hidden, layer, position, last))

    def save(self, path: str | Path) -> None:
        """Write the parameters and the layers to a safetensors file.

        Args:
            path: Where to; its folder has to exist, and a file that is there is overwritten.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        Path(path).write_bytes(save(state, metadata={"layers": json.dumps(self.layers)}))

    @classmethod
    def load(cls, path: str | Path, hidden_size: int | None = None, num_layers: int | None = None) -> Self:
        """Read a router from its file.

        Args:
            path: A file that ``save`` wrote.
            hidden_size: d of the model for which it is loaded. None leaves the width unchecked.
            num_layers: L of the model. None leaves the layers unchecked.

        Returns:
            The router on the CPU, without gradients.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: The file is not an exit router's, or it was trained for a model of other sizes.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"router={str(path)!r}: there is no such file; expected an exit router's.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        except SafetensorError as error:
            raise UserError(f"router={str(path)!r}: not a safetensors file ({error}).") from error
        if "layers" not in metadata or "read.weight" not in state or state["read.weight"].dim() != 2:
            raise UserError(f"router={str(path)!r}: not an exit router's file, as `fit_exit_router` writes it.")
        units, inputs = state["read.weight"].shape
        layers, width = json.loads(metadata["layers"]), units if "decide.weight" in state else 0
        with torch.device("meta"):  # initial weights would draw from torch's random state
            router = cls(inputs - _INPUTS_BESIDE_HIDDEN, layers, width)
        try:
            router.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"router={str(path)!r}: its parameters do not fit together ({error}).") from error
        if hidden_size not in (None, router.hidden_size):
            raise UserError(
                f"router={str(path)!r}: made for hidden states of width {router.hidden_size}; this model's have "
                f"{hidden_size}. Give the router that was trained with this model."
            )
        if num_layers is not None and max(router.layers) >= num_layers - 1:
            raise UserError(
                f"router={str(path)!r}: made for exits after the layers {list(router.layers)}; this model has layers 0 "
                f"to {num_layers - 1}, with no exit after the last. Give the router that was trained with this model."
            )
        return router.requires_grad_(False)
