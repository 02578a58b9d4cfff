"""The loss of fine-tuning: cross-entropy of the reference's tokens, and nothing else."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def reference_loss(logits: Tensor, input_ids: Tensor, target_mask: Tensor) -> Tensor:
    """Compute the mean cross-entropy of the reference's tokens, in nats; each token weighs the same.

    The first one is predicted at the end of the prompt, and the end of sequence is one of them. Prompt and padding
    count nothing; nor does a token at position 0, which nothing predicts.

    Args:
        logits: [rows, length, vocabulary]; those at position p are for the token at p + 1.
        input_ids: [rows, length].
        target_mask: BoolTensor [rows, length], true at the tokens of the reference.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: A shape does not fit, or no token is marked.
    """
    if target_mask.dtype != torch.bool or not logits.shape[:2] == input_ids.shape == target_mask.shape:
        raise ValueError(
            f"logits, input_ids and target_mask have shapes {tuple(logits.shape)}, {tuple(input_ids.shape)} and "
            f"{tuple(target_mask.shape)} ({target_mask.dtype}); expected rows × length × vocabulary, rows × length and "
            "a BoolTensor of rows × length."
        )
    predicted = target_mask[:, 1:]  # (rows, length - 1)
    wanted = logits[:, :-1][predicted]  # (tokens, vocabulary)
    if not len(wanted):
        raise ValueError("target_mask marks no token: expected at least one token of a reference.")
    if wanted.dtype in (torch.bfloat16, torch.float16):
        wanted = wanted.float()
    return cross_entropy(wanted, input_ids[:, 1:][predicted])


def perplexity(loss: Tensor) -> Tensor:
    """exp(loss): of a mean cross-entropy in nats, 1 at best, the vocabulary's size for a uniform guess."""
    return loss.exp()
