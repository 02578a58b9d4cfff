"""The early-exit classifier of CALM (arXiv 2207.07061, section 3.5): one linear layer that all layers share."""

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hsdlab.errors import UserError


class ExitClassifier(nn.Module):
    """Estimates from a layer's output whether the layer already predicts the token of the full model; d + 1 parameters.

    Its file is a safetensors file with two tensors, ``weight`` [1, d] and ``bias`` [1].

    Args:
        hidden_size: d, the width of the hidden states. All parameters start at 0.

    Attributes:
        weight: Parameter [1, d].
        bias: Parameter [1].

    Example:
        >>> classifier = ExitClassifier(4)
        >>> classifier.confidence(torch.zeros(2, 4)).tolist()  # not trained yet
        [0.5, 0.5]
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    @property
    def hidden_size(self) -> int:
        """d, the width of the hidden states that it takes."""
        return self.weight.shape[1]

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the log-odds that the full model predicts the same token.

        Args:
            hidden: Layer outputs before the final norm, [rows, d]; cast to the dtype of the parameters.

        Returns:
            [rows], in the dtype of the parameters.
        """
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).squeeze(-1)

    def confidence(self, hidden: Tensor) -> Tensor:
        """Compute the probability that the full model predicts the same token: the sigmoid of ``forward``.

        Args:
            hidden: Layer outputs before the final norm, [rows, d].

        Returns:
            [rows], from 0 to 1.
        """
        return torch.sigmoid(self(hidden))

    def save(self, path: str | Path) -> None:
        """Write the parameters to a safetensors file.

        Args:
            path: Where to; its folder has to exist, and a file that is there is overwritten.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        Path(path).write_bytes(save(state))  # `save_file` tells of a full disk by an error of its own

    @classmethod
    def load(cls, path: str | Path, hidden_size: int | None = None) -> Self:
        """Read a classifier from its file.

        Args:
            path: A file that ``save`` wrote.
            hidden_size: d of the model for which it is loaded. None leaves the width unchecked.

        Returns:
            The classifier on the CPU, without gradients.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: The file is not an exit classifier's, or it was trained for another width.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"classifier={str(path)!r}: there is no such file; expected an exit classifier's.")
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise UserError(f"classifier={str(path)!r}: not a safetensors file ({error}).") from error
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if set(shapes) != {"weight", "bias"} or len(shapes["weight"]) != 2 or shapes != _shapes(shapes["weight"][1]):
            raise UserError(
                f"classifier={str(path)!r}: holds {shapes}; expected an exit classifier's weight (1, d) and bias (1,)."
            )
        width = shapes["weight"][1]
        if hidden_size not in (None, width):
            raise UserError(
                f"classifier={str(path)!r}: made for hidden states of width {width}; this model's have {hidden_size}. "
                "Give the classifier that was trained with this model."
            )
        classifier = cls(width)
        classifier.load_state_dict(state)
        return classifier.requires_grad_(False)


def _shapes(hidden_size: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (1, hidden_size), "bias": (1,)}
