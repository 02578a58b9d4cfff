"""A prefill in which each token of the prompt runs its own layers (the decoding semantics extended, point 8)."""

from itertools import product

import pytest
import torch

from hsdlab import HSD, FullDepth, UserError, generate
from hsdlab import testing as laws
from hsdlab.testing import prompts, watched
from tests.law_cells import by_family, ids
from tests.strategies_for_tests import Changing, RandomPlan


class RandomPrompt:
    """Gives a strategy random layers for each token of a prompt, also tokens without any neighbour's layers."""

    def scheduled_prompt(self, prompt_length, num_layers):
        random = torch.Generator().manual_seed(prompt_length)
        layers = torch.rand(prompt_length, num_layers, generator=random) < 0.5
        layers[:, 1] |= ~layers.any(dim=1)
        return [each.nonzero().squeeze(1).tolist() for each in layers]


class Scheduled(RandomPrompt, HSD):
    pass


class Grows(RandomPrompt, Changing):
    pass


class Rows(RandomPrompt, RandomPlan):
    pass


STRATEGIES = [Scheduled(1, 0, 3), Grows(), Rows()]


WAYS = list(product(STRATEGIES, laws.MODES))


@pytest.mark.parametrize(("family_model", "strategy", "mode"), by_family(WAYS), ids=ids, indirect=["family_model"])
def test_decoding_equals_replay(family_model, strategy, mode):
    laws.law_3_replay(family_model, strategy, mode)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_the_trace_is_what_hooks_count(tiny, strategy):
    ids, mask = prompts(3)
    with watched(tiny()) as passes:
        trace = generate(
            tiny(), input_ids=ids, attention_mask=mask, strategy=strategy, max_new_tokens=6, eos_token_id=None
        ).trace
    real = mask.bool()
    ran = (trace.prompt & real[..., None]).sum(dim=1)  # (rows, layers)
    rectangles = ran.amax(dim=0) * (ran > 0).sum(dim=0)  # rows repeat their last token
    assert passes.tokens_run[0] == rectangles.tolist()
    assert passes.tokens_late[0] == trace.layers.prompt_late_tokens.tolist()
    assert trace.filled == sum(map(sum, passes.tokens_late[1:]))
    assert trace.mask(5)[:, :5].equal(trace.prompt)


@pytest.mark.parametrize("mode", laws.MODES)
def test_a_family_that_is_not_listed_prefills_each_beam(mode):
    model = laws.tiny_model("qwen3", head_dim=8, num_key_value_heads=2)
    laws.decode(model, FullDepth())  # the first decode of an unlisted family is checked, which computes more
    laws.law_3_replay(model, Grows(), mode)
    laws.law_4_trace(model, Grows(), mode)


def test_sampled_sequences_of_one_source_have_its_prompt_in_the_trace(tiny):
    ids, mask = prompts(3)
    options = {"max_new_tokens": 3, "do_sample": True, "num_return_sequences": 2}
    trace = generate(tiny(), input_ids=ids, attention_mask=mask, strategy=Grows(), **options).trace
    assert len(trace.prompt) == 6
    assert torch.equal(trace.prompt[::2], trace.prompt[1::2])
    alone = generate(tiny(), input_ids=ids[1:2], attention_mask=mask[1:2], strategy=Grows(), max_new_tokens=3).trace
    assert torch.equal(trace.prompt[2:3], alone.prompt)


def test_all_layers_are_the_prefill_of_full_depth(tiny):
    class All(HSD):
        def scheduled_prompt(self, prompt_length, num_layers):
            return [range(num_layers)] * prompt_length

    ids, mask = prompts(3)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "num_beams": 2, "output_scores": True}
    here, there = (generate(tiny(), strategy=each, **call) for each in (All(), HSD()))
    assert torch.equal(here.sequences, there.sequences)
    assert all(torch.equal(a, b) for a, b in zip(here.scores, there.scores, strict=True))
    assert here.cache_bytes == there.cache_bytes
    assert here.trace.prompt.all()
    assert generate(tiny(), strategy=FullDepth(), **call).trace.prompt is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[0]], "for a prompt of 5 tokens; expected a list"),
        ([[0], [1], [], [0], [0]], "runs no layer in token 2 of the prompt"),
        ([[0], [1], [6], [0], [0]], r"runs layers \[6\] in token 2 of the prompt"),
    ],
)
def test_a_wrong_schedule_is_refused(tiny, answer, message):
    class Wrong(HSD):
        def scheduled_prompt(self, prompt_length, num_layers):
            return answer

    ids, _ = prompts(1)
    with pytest.raises(UserError, match=message):
        generate(tiny(), input_ids=ids, strategy=Wrong(), max_new_tokens=4)
