"""StartingWeights: what a model said before it was trained, as a teacher that does not move."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class StartingWeights:
    """The trained weights of a model as they are now: all of them, or LoRA's matrices only.

    Args:
        model: A transformers model, with LoRA's layers in it or without. The copy takes as much memory as the weights
            that require a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}

    def logits(self, model: nn.Module, **inputs: Any) -> Tensor:
        """Compute the logits that the model gave with these weights.

        Args:
            model: The model, trained since.
            **inputs: Of its forward pass.

        Returns:
            Logits [rows, length, vocabulary].
        """
        devices = {name: weight.device for name, weight in model.named_parameters()}
        self._weights = {name: weight.to(devices[name]) for name, weight in self._weights.items()}
        return functional_call(model, self._weights, kwargs=inputs).logits
