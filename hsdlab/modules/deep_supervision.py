"""Deep supervision: every layer's output is trained to predict the next token through the model's own head."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, nll_loss
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hsdlab.decoding.families import DecoderParts, decoder_parts
from hsdlab.errors import UserError
from hsdlab.exits import Exits, attach_exits
from hsdlab.modules.losses import reference_loss


@dataclass(frozen=True)
class DeepSupervision:
    """Train on a weighted mean over the layers: the loss of each layer's intermediate prediction.

    An exit after any layer then predicts better. The weights are normalised over the layers that a batch supervises, as
    in LayerSkip (arXiv 2404.16710).

    The layers that are supervised are the model's exits. They are saved with the model, and strategies check there
    unless they are told otherwise.

    Attributes:
        weights: Weight of layer l, before normalisation, or a list with one for each exit and one for the last layer.
            "calm": l + 1 (CALM, arXiv 2207.07061: ω_i = i/Σj).
            "uniform": the same for all. "layerskip": 1 + 2 + … + (l + 1), LayerSkip's quadratic weights in the form of
            torchtune's `sum_l_loss_scale`, by an author of the paper (whose own text was not at hand). torchtune sums
            over the supervised layers only; here a layer's weight does not depend on which others are supervised.
        scale: Factor on all weights but the last layer's, before normalisation: LayerSkip's e_scale. More than 0, 1 at
            most. A smaller factor is nearer to plain training.
        rotation: R: a batch supervises the last layer and every R-th of the exits, the next batch the exits after
            these (LayerSkip's rotational curriculum). 1 supervises all layers in each batch. torchtune wraps the
            pattern at the last layer; here exit l has its turn in batches l, l + R, l + 2R …
        layers: The exits: k for every k-th layer, or a list of layers below the last. None for all.
        distillation: Share of an exit's loss, 0 to 1, that is the divergence from the last layer's prediction in this
            step. The rest is cross-entropy with the text. The exits then learn what a check asks: whether the token is
            the final one.
        positions: Share of the texts' tokens, above 0 to 1, on which a batch supervises the exits, drawn anew for each
            batch. The head is a large part of a small model: a smaller share makes a step cheaper.
        exiting: Share of the batches, 0 to 1, in which tokens of the texts exit during the pass, as in decoding: the
            layers above see the state with which a token exited (`draw_exits`). The last layer's part of the loss is
            then that of each token's own exit, which is also the teacher of the exits below it. An exit that no token
            reaches has a loss of 0 in such a batch. With 0, the exits learn
            from tokens that ran all layers, and decoding meets keys and values that the training had not.
        adapter_rank: Give each exit an adapter after the final norm (`ExitAdapter`): 0 for the weights of a norm, more
            for a low-rank map beside it. None for none, as in LayerSkip and LITE (arXiv 2310.18581).

    Raises:
        UserError: A number out of its range, or an unknown name of weights.
    """

    weights: Literal["calm", "uniform", "layerskip"] | list[float] = "calm"
    scale: float = 1.0
    rotation: int = 1
    layers: int | list[int] | None = None
    distillation: float = 0.0
    positions: float = 1.0
    exiting: float = 0.0
    adapter_rank: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, list):
            if not self.weights or not all(0 < weight < math.inf for weight in self.weights):
                raise UserError(f"deep_supervision.weights={self.weights}: expected finite numbers above 0.")
            if isinstance(self.layers, list) and self.layers != sorted(set(self.layers)):
                raise UserError(
                    f"deep_supervision.layers={self.layers}: the weights go to the exits in their order; name each "
                    "layer once, in ascending order."
                )
        elif self.weights not in ("calm", "uniform", "layerskip"):
            raise UserError(f"deep_supervision.weights={self.weights!r}: expected calm, uniform or layerskip.")
        if not 0 <= self.distillation <= 1:
            raise UserError(f"deep_supervision.distillation={self.distillation}: expected a share, 0 to 1.")
        if not 0 < self.positions <= 1:
            raise UserError(f"deep_supervision.positions={self.positions}: expected a share above 0, 1 at most.")
        if not 0 <= self.exiting <= 1:
            raise UserError(f"deep_supervision.exiting={self.exiting}: expected a share of the batches, 0 to 1.")
        if self.adapter_rank is not None and self.adapter_rank < 0:
            raise UserError(f"deep_supervision.adapter_rank={self.adapter_rank}: expected 0 or more.")
        if not 0 < self.scale <= 1:
            raise UserError(
                f"deep_supervision.scale={self.scale}: expected more than 0 and 1 at most; to train the last layer "
                "only, leave deep_supervision out."
            )
        if self.rotation < 1:
            raise UserError(f"deep_supervision.rotation={self.rotation}: expected 1 (all layers at once) or more.")

    def exits(self, num_layers: int) -> list[int]:
        """List the layers that are supervised beside the last one.

        Args:
            num_layers: L of the model.

        Returns:
            Their indices, ascending.

        Raises:
            UserError: `layers` names none of this model, or `weights` has another number of them.
        """
        last = num_layers - 1
        if isinstance(self.layers, list):
            exits = sorted(set(self.layers))
        else:
            every = self.layers or 1
            exits = list(range(every - 1, last, every))
        if (isinstance(self.layers, int) and self.layers < 1) or not exits or exits[0] < 0 or exits[-1] >= last:
            raise UserError(
                f"deep_supervision.layers={self.layers}: expected every k-th layer, or layers from 0 to {last - 1} of "
                f"this model's {num_layers}."
            )
        if isinstance(self.weights, list) and len(self.weights) != len(exits) + 1:
            raise UserError(
                f"deep_supervision.weights has {len(self.weights)} numbers; expected one for each of the "
                f"{len(exits)} exits {exits} and one for the last layer."
            )
        return exits

    def layer_weights(self, num_layers: int, batch: int) -> list[float]:
        """Compute each layer's share of the loss.

        Args:
            num_layers: L of the model.
            batch: Number of the batch, counted from the start of the training. It is the same in every process and
                after a resume, so that all processes supervise the same layers.

        Returns:
            L shares that sum to 1; 0 for a layer that the batch does not supervise.

        Raises:
            UserError: See `exits`.
        """
        last, exits = num_layers - 1, self.exits(num_layers)
        if isinstance(self.weights, list):
            given = dict(zip([*exits, last], self.weights, strict=True))
            grown = [given.get(layer, 0.0) for layer in range(num_layers)]
        else:
            grown = _GROWN[self.weights](num_layers)
        turns = {layer for place, layer in enumerate(exits) if (batch - place) % self.rotation == 0}
        weights = [self.scale * grown[layer] * (layer in turns) for layer in range(last)]
        weights.append(grown[last])
        return [weight / sum(weights) for weight in weights]

    def draw_exits(self, executed: Tensor, target_mask: Tensor) -> Tensor:
        """Draw where the tokens of the texts exit, from torch's random state, as dropout does.

        The batch draws its deepest exit, or the last layer. An example draws a probability from 0 to 1, with which its
        tokens leave at each exit that they reach. No token reads the layers above the deepest exit, so that they need
        not run for the prompts either. Under a schedule a token leaves at exits that it runs, and the deepest one is
        drawn from those that all tokens of the texts run.

        Args:
            executed: BoolTensor [rows, length, layers], or [rows, length, layers, 2] for attention and MLP apart: the
                layers that each token runs if it does not exit.
            target_mask: BoolTensor [rows, length], true at the tokens of the texts. The others run to the deepest exit.

        Returns:
            The layers that each token runs, of the shape of `executed`, on the CPU.
        """
        executed, target_mask = executed.cpu(), target_mask.cpu()
        layers = executed if executed.dim() == 3 else executed.any(dim=-1)
        num_layers = layers.shape[-1]
        exits = torch.tensor([*self.exits(num_layers), num_layers - 1])
        runs = layers[:, :, exits]  # (rows, length, exits)
        runs[:, :, -1] = True  # the end of the schedule
        leaves = torch.rand(runs.shape) < torch.rand(len(runs), 1, 1)
        shared = runs[target_mask].all(dim=0).nonzero().squeeze(1)
        deepest = shared[torch.randint(len(shared), ())]
        leaves[:, :, deepest:] = True
        drawn = exits[(leaves & runs).to(torch.uint8).argmax(dim=-1)]  # (rows, length), the first at which it leaves
        last = drawn.where(target_mask, exits[deepest])
        below = torch.arange(num_layers) <= last[..., None]  # (rows, length, layers)
        return executed & (below if executed.dim() == 3 else below[..., None])


_GROWN: dict[str, Callable[[int], list[float]]] = {
    "calm": lambda num_layers: [layer + 1.0 for layer in range(num_layers)],
    "uniform": lambda num_layers: [1.0] * num_layers,
    "layerskip": lambda num_layers: [(layer + 1) * (layer + 2) / 2 for layer in range(num_layers)],
}


def supervised_loss(
    model: nn.Module,
    outputs: Mapping[int, Tensor],
    logits: Tensor,
    batch: dict[str, Tensor],
    weights: Sequence[float],
    supervision: DeepSupervision,
    executed: Tensor | None = None,
) -> Tensor:
    """Compute the weighted mean of all supervised layers' losses.

    The head is applied to the reference's tokens only, or to a sample of them. On all of them, the logits of one layer
    at a time are in memory: the backward pass computes them again, so a supervised layer costs two forward passes of
    the head and one backward pass. Those of a sample are kept.

    Args:
        model: A transformers model, or a peft model around one.
        outputs: Outputs of its decoder layers in a forward pass of the batch, [rows, length, d] each
            (`layer_outputs`).
        logits: Of that pass, [rows, scored, vocabulary], of the last positions.
        batch: input_ids and target_mask, [rows, length], of `collate_pairs`.
        weights: L shares of `DeepSupervision.layer_weights`. A layer of weight 0 is not computed.
        supervision: The distillation, and the share of the tokens. These are drawn from torch's random state.
        executed: The layers that each token ran in that pass, BoolTensor [rows, length, layers] or
            [rows, length, layers, 2]; None if all ran all layers. An exit then learns from the tokens of the texts that
            ran its layer, and not from the end of the prompt, where decoding does not exit.

    Returns:
        A scalar in nats per token, with gradient.
    """
    parts, scored = decoder_parts(model), logits.shape[1]
    ids, targets = batch["input_ids"][:, -scored:], batch["target_mask"][:, -scored:]
    loss = weights[-1] * reference_loss(logits, ids, targets)
    rows, places = targets[:, 1:].nonzero(as_tuple=True)  # (tokens,) each
    if supervision.positions < 1:
        drawn = torch.randperm(len(rows))[: max(1, round(supervision.positions * len(rows)))].to(rows.device)
        rows, places = rows[drawn], places[drawn]
    ran = None
    if executed is not None:
        layers = (executed if executed.dim() == 3 else executed.any(dim=-1))[:, -scored:].to(rows.device)
        ran = layers[rows, places] & targets[rows, places, None]  # (tokens, layers)
    supervised = set()
    for layer, weight in enumerate(weights[:-1]):
        if not weight:
            continue
        row, place = (rows, places) if ran is None else (rows[ran[:, layer]], places[ran[:, layer]])
        if not len(row):
            continue
        supervised.add(layer)
        states, tokens = outputs[layer][:, -scored:][row, place], ids[row, place + 1]  # (tokens, d), (tokens,)
        teacher = _log_probabilities(logits.detach()[row, place]) if supervision.distillation else None
        arguments = parts, states, layer, tokens, teacher, supervision.distillation
        if supervision.positions < 1:
            loss = loss + weight * _exit_loss(*arguments)
        else:
            loss = loss + weight * checkpoint(_exit_loss, *arguments, use_reentrant=False)
    return loss + _nothing(parts.exits, supervised)


def validation_loss(
    model: nn.Module,
    outputs: Mapping[int, Tensor],
    logits: Tensor,
    batch: dict[str, Tensor],
    supervision: DeepSupervision,
) -> Tensor:
    """Compute the same weighted mean without anything drawn: all exits, on all tokens, which run all layers.

    Args:
        model: As for `supervised_loss`.
        outputs: As for `supervised_loss`.
        logits: As for `supervised_loss`.
        batch: As for `supervised_loss`.
        supervision: The weights and the distillation.

    Returns:
        A scalar in nats per token.
    """
    whole = replace(supervision, rotation=1, positions=1.0)
    return supervised_loss(model, outputs, logits, batch, whole.layer_weights(len(outputs), batch=0), whole)


def add_exits(model: PreTrainedModel, supervision: DeepSupervision) -> None:
    """Give a model the exits that are supervised, with parameters to train. Exits that it has are trained further.

    The adapters are in float32 or wider, as peft keeps LoRA's matrices: in 16 bits a small step would change nothing.

    Args:
        model: A transformers language model.
        supervision: Names the exits and their adapters.

    Raises:
        UserError: The model has other exits, or not the layers that are named.
    """
    parts = decoder_parts(model)
    wanted = Exits(supervision.exits(parts.num_layers), parts.head_weights[1], supervision.adapter_rank)
    known = parts.exits
    if known is None:
        attach_exits(model, wanted)
        known = wanted
    elif (known.layers, known.rank) != (wanted.layers, wanted.rank):
        raise UserError(
            f"deep_supervision: the model has exits after the layers {list(known.layers)} with adapter_rank="
            f"{known.rank}; this setting has {list(wanted.layers)} with adapter_rank={wanted.rank}. Give those of the "
            "model, or train the model that it was made from."
        )
    known.requires_grad_(True).to(torch.promote_types(model.dtype, torch.float32))


def _exit_loss(
    parts: DecoderParts, states: Tensor, layer: int, tokens: Tensor, teacher: Tensor | None, distillation: float
) -> Tensor:
    predicted = _log_probabilities(parts.logits(states, layer))  # (tokens, vocabulary)
    if teacher is None:
        return nll_loss(predicted, tokens)
    divergence = kl_div(predicted, teacher, reduction="batchmean", log_target=True)
    return (1 - distillation) * nll_loss(predicted, tokens) + distillation * divergence


def _log_probabilities(logits: Tensor) -> Tensor:
    return log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _nothing(exits: Exits | None, supervised: Collection[int]) -> Tensor | float:
    """Give the adapters of exits without a loss a gradient of zero, for which DistributedDataParallel waits."""
    if exits is None or exits.rank is None or not exits.training:
        return 0.0
    idle = [adapter for name, adapter in exits.adapters.items() if int(name) not in supervised]
    return 0.0 * torch.stack([weight.sum() for each in idle for weight in each.parameters()]).sum() if idle else 0.0
