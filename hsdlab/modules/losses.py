"""The losses of fine-tuning: cross-entropy of the reference's tokens, divergence from a teacher; agreement with it."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hsdlab.errors import UserError


def reference_loss(logits: Tensor, input_ids: Tensor, target_mask: Tensor) -> Tensor:
    """Compute the mean cross-entropy of the reference's tokens. Each token has the same weight.

    The last token of the prompt predicts the first one, and the end of sequence is one of them. Prompt and padding do
    not count, nor does a token at position 0, which nothing predicts.

    Args:
        logits: [rows, length, vocabulary]; those at position p predict the token at p + 1.
        input_ids: [rows, length].
        target_mask: BoolTensor [rows, length], true at the tokens of the reference.

    Returns:
        A scalar in nats, float32 or wider.

    Raises:
        UserError: A shape does not fit, or no token is marked.
    """
    predicting = _predicting(logits, input_ids, target_mask)
    return cross_entropy(predicting, input_ids[:, 1:][target_mask[:, 1:]])


def distilled_loss(logits: Tensor, teacher: Tensor, share: Tensor, input_ids: Tensor, target_mask: Tensor) -> Tensor:
    """Compute the mean over the reference's tokens of (1 - share) · cross-entropy + share · KL(teacher ‖ model).

    Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) at temperature 1.

    Args:
        logits: [rows, length, vocabulary]; those at position p predict the token at p + 1.
        teacher: The teacher's logits, of the same shape. They get no gradient.
        share: Float [rows], 0 to 1. 0 for a sequence that learns from the reference alone.
        input_ids: [rows, length].
        target_mask: BoolTensor [rows, length], true at the tokens of the reference.

    Returns:
        A scalar in nats, float32 or wider.

    Raises:
        UserError: A shape does not fit, or no token is marked.
    """
    predicting = log_softmax(_predicting(logits, input_ids, target_mask), dim=-1)  # (tokens, vocabulary)
    wanted = input_ids[:, 1:][target_mask[:, 1:]]  # (tokens,)
    taught = log_softmax(_predicting(teacher.detach(), input_ids, target_mask), dim=-1)  # (tokens, vocabulary)
    divergence = kl_div(predicting, taught, reduction="none", log_target=True).sum(dim=-1)  # (tokens,)
    surprise = -predicting.gather(1, wanted[:, None])[:, 0]  # (tokens,)
    share = share[:, None].expand_as(input_ids)[:, 1:][target_mask[:, 1:]]  # (tokens,)
    return ((1 - share) * surprise + share * divergence).mean()


def agreement(logits: Tensor, other: Tensor, target_mask: Tensor) -> Tensor:
    """Tell for which tokens two depths of a model predict the same one: a greedy draft of them would be accepted.

    Args:
        logits: [rows, length, vocabulary]; those at position p predict the token at p + 1.
        other: Of the same shape.
        target_mask: BoolTensor [rows, length], true at the tokens that count.

    Returns:
        BoolTensor [tokens].
    """
    wanted = target_mask[:, 1:]
    return (logits[:, :-1].argmax(dim=-1) == other[:, :-1].argmax(dim=-1))[wanted]


def _predicting(logits: Tensor, input_ids: Tensor, target_mask: Tensor) -> Tensor:
    """Return the logits that predict the reference's tokens, [tokens, vocabulary], in float32 or wider."""
    if target_mask.dtype != torch.bool or not logits.shape[:2] == input_ids.shape == target_mask.shape:
        raise UserError(
            f"logits, input_ids and target_mask have shapes {tuple(logits.shape)}, {tuple(input_ids.shape)} and "
            f"{tuple(target_mask.shape)} ({target_mask.dtype}); expected rows × length × vocabulary, rows × length and "
            "a BoolTensor of rows × length."
        )
    predicting = logits[:, :-1][target_mask[:, 1:]]  # (tokens, vocabulary)
    if not len(predicting):
        raise UserError("target_mask marks no token: expected at least one token of a reference.")
    return predicting.float() if predicting.dtype in (torch.bfloat16, torch.float16) else predicting


def perplexity(loss: Tensor) -> Tensor:
    """Compute exp(loss).

    Args:
        loss: A mean cross-entropy in nats.

    Returns:
        1 at best; the size of the vocabulary for a uniform guess. Of the shape of `loss`.
    """
    return loss.exp()
