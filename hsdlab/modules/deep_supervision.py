"""Deep supervision: every layer's output is trained to predict the next token through the model's own head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from hsdlab.decoding.families import DecoderParts, decoder_parts
from hsdlab.errors import UserError


@dataclass(frozen=True)
class DeepSupervision:
    """Train on a weighted mean of the losses of the model's own final norm and head on each layer's output.

    An exit after any layer then predicts better. The weights are normalised over the layers that a batch supervises, as
    in LayerSkip (arXiv 2404.16710).

    Attributes:
        weights: "calm", proportional to l + 1 (CALM, arXiv 2207.07061: ω_i = i/Σj); "uniform"; or "layerskip",
            proportional to 1 + 2 + … + (l + 1), LayerSkip's quadratic ones in the form of torchtune's
            `sum_l_loss_scale`, by an author of the paper (whose own text was not at hand). torchtune sums over the
            supervised layers only; here a layer's weight does not depend on which others are supervised beside it.
        scale: Factor on all weights but the last layer's, before they are normalised: LayerSkip's e_scale; more than
            0, 1 at most. The smaller, the nearer to plain training.
        rotation: R: a batch supervises every R-th layer, the next batch those after them, and always the last one:
            LayerSkip's rotational curriculum; 1 for all layers at once. torchtune turns the pattern round the end of
            the layers; here layer l has its turn in batches l, l + R, l + 2R …

    Raises:
        UserError: A number out of its range, or weights of another name.
    """

    weights: Literal["calm", "uniform", "layerskip"] = "calm"
    scale: float = 1.0
    rotation: int = 1

    def __post_init__(self) -> None:
        if self.weights not in ("calm", "uniform", "layerskip"):
            raise UserError(f"deep_supervision.weights={self.weights!r}: expected calm, uniform or layerskip.")
        if not 0 < self.scale <= 1:
            raise UserError(
                f"deep_supervision.scale={self.scale}: expected more than 0 and 1 at most; to train the last layer "
                "only, leave deep_supervision out."
            )
        if self.rotation < 1:
            raise UserError(f"deep_supervision.rotation={self.rotation}: expected 1 (all layers at once) or more.")

    def layer_weights(self, num_layers: int, batch: int) -> list[float]:
        """Return each layer's share of the loss, 0 for those that the batch does not supervise; they sum to 1.

        Args:
            num_layers: L of the model.
            batch: Number of the batch, counted from the start of the training: the same in every process, so that all
                supervise the same layers, and after a resume.
        """
        last = num_layers - 1
        grown = {
            "calm": [layer + 1 for layer in range(num_layers)],
            "uniform": [1] * num_layers,
            "layerskip": [(layer + 1) * (layer + 2) // 2 for layer in range(num_layers)],
        }[self.weights]
        weights = [self.scale * grown[layer] * ((batch - layer) % self.rotation == 0) for layer in range(last)]
        weights.append(grown[last])
        return [weight / sum(weights) for weight in weights]


def supervised_loss(
    model: nn.Module, outputs: Sequence[Tensor], last_loss: Tensor, batch: dict[str, Tensor], weights: Sequence[float]
) -> Tensor:
    """Compute the weighted mean of all layers' losses.

    The head is applied to the reference's tokens only, and the logits of one layer at a time are in memory: the
    backward pass computes them again, so a supervised layer costs two forward passes of the head and one backward.

    Args:
        model: A decoder-only transformers model, or a peft model around one.
        outputs: Of its layers in a forward pass of the batch, [rows, length, d] each (`layer_outputs`).
        last_loss: `reference_loss` of that forward pass, which is the last layer's.
        batch: Of `collate_pairs`.
        weights: Of the layers.

    Returns:
        A scalar.
    """
    parts = decoder_parts(model)
    predicted = batch["target_mask"][:, 1:]  # (rows, length - 1)
    tokens = batch["input_ids"][:, 1:][predicted]  # (tokens,)
    loss = weights[-1] * last_loss
    for output, weight in zip(outputs[:-1], weights[:-1], strict=True):
        if weight:
            states = output[:, :-1][predicted]  # (tokens, d)
            loss = loss + weight * checkpoint(_exit_loss, parts, states, tokens, use_reentrant=False)
    return loss


def _exit_loss(parts: DecoderParts, states: Tensor, tokens: Tensor) -> Tensor:
    logits = parts.logits(states)  # (tokens, vocabulary)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens)
