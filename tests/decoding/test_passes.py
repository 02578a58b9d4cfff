"""Forward passes over several tokens of a row: each has its own layers, rows differ in length, tokens are taken back.

The reference is ``replay`` over each row's text (the decoding semantics extended, points 1 and 10).
"""

import pytest
import torch

from hsdlab import replay
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.passes import Passes
from hsdlab.decoding.sub_layers import apart
from hsdlab.testing import prompts, watched
from hsdlab.testing.expect import expect_close
from hsdlab.testing.tiny import VOCABULARY
from tests.strategies_for_tests import RandomPlan

ROWS, LAYERS, MOST = 3, 6, 24


class Text:
    """What each row holds after some passes: its tokens, the layers that ran for each, and the logits it gave."""

    def __init__(self, model, seed=0):
        self.model, self.parts = model, decoder_parts(model)
        self.random = torch.Generator().manual_seed(seed)
        self.prompt, self.mask = prompts(ROWS)
        self.cache = SkipCache(self.parts, Decisions(RandomPlan(), LAYERS, MOST))
        self.passes = Passes(self.parts, self.cache, self.mask)
        self.rows = [[] for _ in range(ROWS)]  # (token, executed, logits)
        with torch.no_grad():
            self.passes.prefill(self.prompt)

    def run(self, count, share=0.5, counts=None, parts=()):
        """Run a pass of ``count`` tokens a row, or fewer in the rows for which ``counts`` says so."""
        tokens = torch.randint(7, VOCABULARY, (ROWS, count), generator=self.random)
        executed = torch.rand(ROWS, count, LAYERS, *parts, generator=self.random) < share
        valid = None if counts is None else torch.arange(count) < torch.tensor(counts)[:, None]
        with torch.no_grad():
            logits = self.passes.run(tokens, executed, valid)
        for row, entries in enumerate(self.rows):
            kept = count if counts is None else counts[row]
            entries += [(tokens[row, k], executed[row, k], logits[row, k]) for k in range(kept)]

    def forget(self, kept):
        self.passes.forget(torch.tensor(kept))
        self.rows = [entries[:count] for entries, count in zip(self.rows, kept, strict=True)]

    def check(self):
        """The logits of all tokens are those of a replay of the row's whole text."""
        assert self.passes.lengths.tolist() == [len(entries) for entries in self.rows]
        for row, entries in enumerate(self.rows):
            prompt = self.prompt[row][self.mask[row].bool()]
            text = torch.cat([prompt, torch.stack([token for token, _, _ in entries])])[None]
            executed = torch.ones(1, text.shape[1], LAYERS, 2, dtype=torch.bool)
            executed[0, len(prompt) :] = torch.stack([apart(layers, dims=1) for _, layers, _ in entries])
            with torch.no_grad():
                expected = replay(self.model, input_ids=text, executed=executed)[0, len(prompt) :]
            logits = torch.stack([each for _, _, each in entries])
            expect_close(logits, expected, f"the logits of row {row} differ from replay's")


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_each_token_runs_its_own_layers(family_model, share):
    text = Text(family_model)
    for count in (3, 1, 4, 2):
        text.run(count, share)
    text.check()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_each_token_runs_its_own_attention_and_mlp(family_model, share):
    text = Text(family_model)
    text.run(3, share, parts=(2,))
    text.run(2, share)  # whole layers between
    text.run(4, share, counts=[4, 1, 3], parts=(2,))
    text.forget([6, 6, 7])
    text.run(1, share, parts=(2,))
    text.run(2, 1.0, parts=(2,))
    text.check()


def test_rows_carry_different_numbers_of_tokens(family_model):
    text = Text(family_model)
    text.run(4, counts=[4, 1, 2])
    text.run(3, counts=[1, 3, 2])
    text.run(2)
    text.check()


def test_tokens_taken_back_have_never_been(family_model):
    text = Text(family_model)
    text.run(4)
    text.forget([4, 1, 0])
    text.run(3, share=1.0)
    text.forget([5, 3, 3])
    text.run(2, share=0.3)
    text.run(2)
    text.check()


def test_what_stays_after_a_rollback_is_bitwise_what_it_was(tiny):
    text = Text(tiny())
    text.run(2)
    text.run(3, share=1.0)
    before = [storage.read(5) for storage in text.cache._store._layers]
    before = [(keys.clone(), values.clone()) for keys, values in before]
    text.run(4)
    text.forget([5, 5, 5])
    for storage, (keys, values) in zip(text.cache._store._layers, before, strict=True):
        assert torch.equal(storage.read(5)[0], keys)
        assert torch.equal(storage.read(5)[1], values)
    text.run(1, share=1.0)
    text.check()


def test_a_skipped_token_is_computed_up_to_its_keys_and_values_only(tiny):
    text = Text(tiny())
    with watched(text.model) as passes:
        text.run(3)
        text.run(2)
    executed = [torch.stack([layers for _, layers, _ in entries]) for entries in text.rows]  # rows of [tokens, layers]
    for number, tokens in enumerate([slice(0, 3), slice(3, 5)]):
        here = torch.stack([layers[tokens] for layers in executed])  # (rows, tokens, layers)
        widest = here.sum(dim=1).amax(dim=0) * here.any(dim=1).sum(dim=0)  # rows repeat their last token
        assert passes.tokens_run[number] == widest.tolist()
    assert text.cache.late_tokens.tolist() == [sum(each) for each in zip(*passes.tokens_late, strict=True)]


def test_a_pass_that_no_one_announced_is_refused(tiny):
    text = Text(tiny())
    with pytest.raises(ValueError, match="came with 2 tokens; expected 1"):
        text.passes._run(torch.ones(3, 2, dtype=torch.long), torch.ones(3, 7), torch.ones(3, 2, dtype=torch.long), 1)
