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
    """Train on a weighted mean over the layers: the loss of each layer's intermediate prediction.

    An exit after any layer then predicts better. The weights are normalised over the layers that a batch supervises, as
    in LayerSkip (arXiv 2404.16710).

    Attributes:
        weights: Weight of layer l, before normalisation. "calm": l + 1 (CALM, arXiv 2207.07061: ω_i = i/Σj).
            "uniform": the same for all. "layerskip": 1 + 2 + … + (l + 1), LayerSkip's quadratic weights in the form of
            torchtune's `sum_l_loss_scale`, by an author of the paper (whose own text was not at hand). torchtune sums
            over the supervised layers only; here a layer's weight does not depend on which others are supervised.
        scale: Factor on all weights but the last layer's, before normalisation: LayerSkip's e_scale. More than 0, 1 at
            most. A smaller factor is nearer to plain training.
        rotation: R: a batch supervises the last layer and every R-th of the others, the next batch the layers after
            these (LayerSkip's rotational curriculum). 1 supervises all layers in each batch. torchtune wraps the
            pattern at the last layer; here layer l has its turn in batches l, l + R, l + 2R …

    Raises:
        UserError: A number out of its range, or an unknown name of weights.
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
        """Compute each layer's share of the loss.

        Args:
            num_layers: L of the model.
            batch: Number of the batch, counted from the start of the training. It is the same in every process and
                after a resume, so that all processes supervise the same layers.

        Returns:
            L shares that sum to 1; 0 for a layer that the batch does not supervise.
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

    The head is applied to the reference's tokens only. The logits of one layer at a time are in memory: the backward
    pass computes them again, so a supervised layer costs two forward passes of the head and one backward pass.

    Args:
        model: A transformers model, or a peft model around one.
        outputs: Outputs of its L decoder layers in a forward pass, [rows, length, d] each (`layer_outputs`).
        last_loss: The last layer's loss: `reference_loss` of that forward pass, a scalar in nats.
        batch: input_ids and target_mask, [rows, length], of `collate_pairs`.
        weights: L shares of `DeepSupervision.layer_weights`. A layer of weight 0 is not computed.

    Returns:
        A scalar in nats per token, with gradient.
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
