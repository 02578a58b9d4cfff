"""The exits that a model was trained for, and their adapters between the final norm and the head.

A model trained for exits (`DeepSupervision`) says after which layers, in a file beside its weights. Each exit may have
an adapter with few parameters. The token of an exit after layer i is head(adapter_i(norm(h))). This holds for
intermediate predictions, and for every token whose last executed layer is i: in decoding, in ``replay`` and in drafts.
After the last layer there is none, so full depth is the model as it is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from hsdlab.errors import UserError

FILE = "exits.safetensors"
"""In the folder of a model or of a LoRA adapter."""

ATTRIBUTE = "hsdlab_exits"
"""Of the transformers model, where a model has exits."""


class ExitAdapter(nn.Module):
    """Scales each channel of a state, as a norm's weight does, and adds a low-rank map of it; at first the identity.

    Args:
        size: Channels of the state after the final norm.
        rank: Rank of the map; 0 leaves it out.
        seed: Of the map's first matrix. The second one starts at 0.
    """

    def __init__(self, size: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(size))  # the scale is 1 + gain
        if rank:
            drawn = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed)) / size**0.5
            self.down = nn.Parameter(drawn)
            self.up = nn.Parameter(torch.zeros(size, rank))
        self.rank = rank

    def forward(self, states: Tensor) -> Tensor:
        """Adapt states.

        Args:
            states: After the final norm, [..., size].

        Returns:
            The input of the head, of the same shape.
        """
        given = states.to(self.gain.dtype)  # in training, the adapter may be wider than the model
        adapted = given * (1 + self.gain)
        if self.rank:
            adapted = adapted + nn.functional.linear(nn.functional.linear(given, self.down), self.up)
        return adapted.to(states.dtype)


def _checked(about: dict[str, Any]) -> dict[str, Any]:
    """Return the layers, the size and the rank that a file gives.

    Raises:
        KeyError: One is missing.
        ValueError: One is none of these.
    """
    layers, size, rank = (about[name] for name in ("layers", "size", "rank"))
    numbers = layers if isinstance(layers, list) else [None]
    if not numbers or any(type(each) is not int or each < 0 for each in numbers) or numbers != sorted({*numbers}):
        raise ValueError(f"layers={layers!r}: expected indices of layers, ascending")
    if type(size) is not int or size < 1 or not (rank is None or (type(rank) is int and rank >= 0)):
        raise ValueError(f"size={size!r}, rank={rank!r}: expected whole numbers")
    return {"layers": layers, "size": size, "rank": rank}


def _check_finite(state: dict[str, Tensor]) -> None:
    """Refuse adapters with which every prediction is NaN, with a ValueError."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")


class Exits(nn.Module):
    """The layers after which a model was trained to exit, with an adapter for each, or without.

    Args:
        layers: The layers, ascending, without the last one.
        size: Channels of the state after the final norm.
        rank: Of the adapters' low-rank map. 0 for the weight of a norm alone. None for no adapters.

    Attributes:
        layers: As given.
        size: As given.
        rank: As given.
    """

    def __init__(self, layers: Sequence[int], size: int, rank: int | None = None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.size = size
        self.rank = rank
        self.adapters = nn.ModuleDict()
        if rank is not None:
            self.adapters.update({str(layer): ExitAdapter(size, rank, seed=layer) for layer in self.layers})

    def forward(self, states: Tensor, layer: int | None) -> Tensor:
        """Adapt the states of an exit.

        Args:
            states: After the final norm, [..., size].
            layer: The last executed layer; None for the model's last one.

        Returns:
            The input of the head; the states themselves where the layer has no adapter.
        """
        name = str(layer)
        return self.adapters[name](states) if name in self.adapters else states

    def of_tokens(self, states: Tensor, last: Tensor) -> Tensor:
        """Adapt the states of tokens that exited after different layers.

        Args:
            states: After the final norm, [rows, tokens, size].
            last: The last executed layer of each token, LongTensor [rows or 1, tokens or more] on the CPU; of more
                tokens, the last ones count.

        Returns:
            The input of the head, [rows, tokens, size].
        """
        rows, tokens = states.shape[:2]
        last = last[:, -tokens:].expand(rows, tokens)
        for name, adapter in self.adapters.items():
            row, token = (last == int(name)).nonzero(as_tuple=True)
            if len(row):
                place = row.to(states.device), token.to(states.device)
                states = states.index_put(place, adapter(states[place]))
        return states

    def weights(self, layer: int | None) -> int:
        """Count the weights in the matrices of an exit's adapter.

        Args:
            layer: The last executed layer.

        Returns:
            What a state is multiplied with; 0 without an adapter.
        """
        return 2 * self.size * (self.rank or 0) if str(layer) in self.adapters else 0

    def save(self, folder: str | Path) -> None:
        """Write the exits beside the weights of a model or adapter.

        Args:
            folder: Has to exist.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        about = {"layers": json.dumps(self.layers), "size": json.dumps(self.size), "rank": json.dumps(self.rank)}
        (Path(folder) / FILE).write_bytes(save(state, metadata=about))

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Read the exits of a model or adapter.

        Args:
            folder: Its folder.

        Returns:
            The exits on the CPU, without gradients; None where the folder has no such file.

        Raises:
            UserError: The file is not one of exits.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            exits = cls(**_checked(about))
            exits.load_state_dict(state)
            _check_finite(state)
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} is not the file of a model's exits ({error}); train the exits again.") from error
        return exits.requires_grad_(False)


def layers_without_weights(model: nn.Module) -> str:
    """Name the exits of a model that have no adapters, which no tensor of the model shows.

    Args:
        model: Any module.

    Returns:
        Such as "exits (1, 3)"; empty for a model without exits, or with adapters, whose names have the layers.
    """
    found = [module for module in model.modules() if isinstance(module, Exits) and module.rank is None]
    return "".join(f"exits {exits.layers}" for exits in found)


def last_layers(executed: Tensor) -> Tensor:
    """Find the last executed layer of each token.

    Args:
        executed: BoolTensor [..., layers].

    Returns:
        LongTensor [...]; the model's last layer for a token that runs none (padding).
    """
    num_layers = executed.shape[-1]
    return num_layers - 1 - executed.flip(-1).to(torch.uint8).argmax(dim=-1)


def attach_exits(model: PreTrainedModel, exits: Exits) -> None:
    """Give a model its exits, in place. They become a part of it, with parameters that move with the model's.

    Args:
        model: A transformers language model.
        exits: Of a model of the same sizes.

    Raises:
        UserError: They are another model's.
    """
    config = model.config.get_text_config(decoder=True)
    num_layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers  # T5 counts them apart
    width = model.get_output_embeddings().weight.shape[1]
    if exits.size != width or max(exits.layers) >= num_layers - 1:
        raise UserError(
            f"The exits are for a head of width {exits.size} and exit after the layers {list(exits.layers)}; this "
            f"model has a head of width {width} and layers 0 to {num_layers - 1}. They are another model's."
        )
    setattr(model, ATTRIBUTE, exits.to(model.device, model.dtype))
