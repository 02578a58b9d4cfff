"""Which drafted tokens full depth accepts, and the token that it writes after them.

Greedy drafts are accepted while they are the argmax. Sampled drafts are accepted by the rule of speculative sampling
(Leviathan et al. 2023, arXiv 2211.17192, algorithm 1), so that the distribution is that of full depth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hsdlab.decoding.device import sent
from hsdlab.decoding.drafts import Resumed


@dataclass
class Draft:
    """The drafts of one round.

    Attributes:
        tokens: LongTensor [rows, most drafts].
        counts: Drafted tokens of each row, LongTensor [rows] on the CPU.
        probabilities: From which each was sampled, [rows, most drafts, vocabulary]; None for greedy drafts.
        resumed: What the drafts computed at full depth; None where it cannot be kept.
    """

    tokens: Tensor
    counts: Tensor
    probabilities: Tensor | None
    resumed: Resumed | None


def greedy(scores: Tensor, draft: Draft) -> tuple[Tensor, Tensor]:
    """Accept drafts while they are full depth's own tokens.

    Args:
        scores: Of full depth, after the last token and after each draft, [rows, drafts + 1, vocabulary].
        draft: The drafts.

    Returns:
        How many drafts of each row are accepted, LongTensor [rows] on the CPU, and the token after them, LongTensor
        [rows].
    """
    own = scores.argmax(dim=-1)  # (rows, drafts + 1)
    accepted = _leading((own[:, :-1] == draft.tokens).cpu(), draft.counts)
    return accepted, own.gather(1, sent(accepted, own.device)[:, None]).squeeze(1)


def sampled(probabilities: Tensor, draft: Draft) -> tuple[Tensor, Tensor]:
    """Accept drafts by speculative sampling.

    Args:
        probabilities: Of full depth, after the last token and after each draft, [rows, drafts + 1, vocabulary].
        draft: The drafts, with the probabilities from which they were sampled; None where nothing was drafted.

    Returns:
        See :func:`greedy`.
    """
    if draft.probabilities is None:
        return draft.counts, torch.multinomial(probabilities[:, 0], 1).squeeze(1)
    tokens = draft.tokens[:, :, None]
    wanted = probabilities[:, :-1].gather(2, tokens).squeeze(2)  # (rows, drafts)
    drawn_from = draft.probabilities.gather(2, tokens).squeeze(2)
    accepted = _leading((torch.rand_like(wanted) * drawn_from < wanted).cpu(), draft.counts)
    place = sent(accepted, probabilities.device)
    rows = torch.arange(len(place), device=place.device)
    own = probabilities[rows, place]  # (rows, vocabulary)
    rejected = sent(accepted < draft.counts, place.device)[:, None]
    left_out = draft.probabilities[rows, place.clamp(max=wanted.shape[1] - 1)]
    rest = (own - left_out).clamp(min=0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, own)  # equal up to rounding
    return accepted, torch.multinomial(torch.where(rejected, rest, own), 1).squeeze(1)


def _leading(fits: Tensor, counts: Tensor) -> Tensor:
    """Count the drafts of each row before the first that does not fit, BoolTensor [rows, drafts], of those it has."""
    fits = fits & (torch.arange(fits.shape[1]) < counts[:, None])
    return fits.long().cumprod(dim=1).sum(dim=1)
