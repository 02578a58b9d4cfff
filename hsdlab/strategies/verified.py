"""Verified: any strategy drafts, full depth verifies, no token changes.

Self-speculative decoding: Draft & Verify (Zhang et al. 2023, arXiv 2309.08168) and LayerSkip (Elhoushi et al. 2024,
arXiv 2404.16710) draft with a fixed set of layers; here any strategy drafts, in batches of any size.
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hsdlab.decoding import StepState
from hsdlab.decoding.cost import draft_cost
from hsdlab.decoding.draft_length import VERIFIED_TOKEN, DraftLength
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.verified_loop import DraftedStrategy
from hsdlab.errors import UserError
from hsdlab.strategies.arguments import init_arguments
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.vocabulary import VocabularyOption


class Verified(SkipStrategy, DraftedStrategy):
    """Drafts tokens under another strategy and verifies them at full depth: greedy text is that of full depth.

    Sampled text has the distribution of full depth. Beam search is refused: its scores need every beam at every step.

    Args:
        draft: Drafts the tokens; any strategy but an oracle.
        num_draft_tokens: The most tokens that are drafted before a verification, 1 or more.
        adaptive: Whether each sequence drafts the number that its acceptance so far makes the fastest, up to
            ``num_draft_tokens``; else always ``num_draft_tokens``. In a batch, a sequence that drafts fewer waits for
            the others, so that a fixed number was the faster one there.
        stop_below: A draft ends after a token to which it gives a smaller probability (softmax response), from 0,
            which never ends one, to 1.
        draft_vocabulary: For which tokens the head of a draft is computed, besides those of the prompts. A file that
            ``hsdlab count-tokens`` wrote: the most frequent tokens of some texts (FR-Spec, arXiv 2502.14856). A number:
            so many tokens with the lowest ids, which in vocabularies made by byte-pair encoding are the pieces that
            were merged first. None: all tokens. The text stays that of full depth; a token outside cannot be drafted.

    Raises:
        UserError: A draft that is an oracle, another ``Verified`` or no strategy, or a number out of its range.
    """

    rows_depend = None

    def __init__(
        self,
        draft: SkipStrategy,
        num_draft_tokens: int = 4,
        adaptive: bool = False,
        stop_below: float = 0.0,
        draft_vocabulary: int | str | None = None,
    ) -> None:
        if not isinstance(draft, SkipStrategy) or isinstance(draft, Verified) or draft.is_oracle:
            raise UserError(f"Verified: draft={draft!r}; expected a strategy that drafts, such as HSD(3, 0, 4).")
        if not _is_number(num_draft_tokens):
            raise UserError(f"Verified: num_draft_tokens={num_draft_tokens!r}; expected a whole number, 1 or more.")
        VocabularyOption("Verified", "draft_vocabulary", draft_vocabulary).check()
        if not isinstance(adaptive, bool):
            raise UserError(f"Verified: adaptive={adaptive!r}; expected true or false.")
        if isinstance(stop_below, bool) or not isinstance(stop_below, int | float) or not 0 <= stop_below <= 1:
            raise UserError(f"Verified: stop_below={stop_below!r}; expected a probability from 0 to 1.")
        self.draft = draft
        self.num_draft_tokens = num_draft_tokens
        self.adaptive = adaptive
        self.stop_below = stop_below
        self.draft_vocabulary = draft_vocabulary
        self._draft_ids: Tensor | None = None

    @property
    def _vocabulary(self) -> VocabularyOption:
        return VocabularyOption("Verified", "draft_vocabulary", self.draft_vocabulary)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a vocabulary, of the draft's head or of its checks, that was counted with another tokenizer."""
        self._vocabulary.check_tokenizer(tokenizer)
        self.draft.check_tokenizer(tokenizer)

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that the draft does not fit, a prompt schedule, and tokens that the model does not have."""
        super().check_model(parts)
        self.draft.check_model(parts)
        if getattr(self.draft, "scheduled_prompt", lambda *_: None)(1, parts.num_layers) is not None:
            raise UserError(
                f"Verified: {self.draft!r} skips layers in the prompt, which full depth does not; leave its prompt "
                "schedule out."
            )
        self._draft_ids = self._vocabulary.ids(parts)

    def shown_parameters(self) -> dict[str, Any]:
        """Show the draft and its length, and of the others those that are not at their defaults."""
        always, defaults = ("draft", "num_draft_tokens"), init_arguments(type(self))
        return {name: value for name, value in self.parameters().items() if name in always or value != defaults[name]}

    def plan(self, state: StepState) -> Tensor:
        """Give all layers, which every token of the text has run."""
        return torch.ones(state.rows, state.num_layers, dtype=torch.bool)

    def scheduled_layers(self, num_layers: int, max_steps: int) -> list[range]:
        """Give all layers for all steps."""
        return [range(num_layers)] * (max_steps - 1)

    def never_skip(self) -> Self | None:
        """Make the setting whose draft runs all layers."""
        draft = self.draft.never_skip()
        return None if draft is None else self._with(draft=draft)

    def resolved(self, num_layers: int) -> "Verified":
        """Fill in the parameters of the draft that depend on the model."""
        return self._with(draft=self.draft.resolved(num_layers))

    def draft_length(self, parts: DecoderParts, max_steps: int) -> DraftLength:
        """Draft ``num_draft_tokens``, or as many as the acceptance so far makes the fastest."""
        cost = self.cost_of_a_draft(parts, max_steps) + VERIFIED_TOKEN if self.adaptive else None
        return DraftLength(self.num_draft_tokens, cost, self.stop_below)

    def cost_of_a_draft(self, parts: DecoderParts, max_steps: int) -> float:
        """Compute what a draft step costs of a decode step at full depth, where reading the weights takes the time.

        Args:
            parts: Of a model that ``check_model`` has taken.
            max_steps: T.

        Returns:
            A share, from 0 to 1, without the tokens of the prompts that a ``draft_vocabulary`` gets too.
        """
        head_tokens = None if self._draft_ids is None else len(self._draft_ids)
        return draft_cost(parts, self.draft, max_steps, head_tokens)

    def draft_tokens(self, input_ids: Tensor) -> Tensor | None:
        """Take ``draft_vocabulary`` and the tokens of the prompts."""
        if self.draft_vocabulary is None:
            return None
        if self._draft_ids is None:
            raise RuntimeError("Verified reads its draft vocabulary when it meets a model: use generate().")
        return torch.cat([self._draft_ids.to(input_ids.device), input_ids.flatten()]).unique()


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
