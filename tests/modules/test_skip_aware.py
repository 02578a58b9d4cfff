"""Training computes what decoding does: the logits of a forced decode, for every scheduled strategy and family."""

import math
from collections import Counter

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import hsdlab.strategies
from hsdlab import CALM, HSD, FullDepth, ScheduledStrategy, SkipDecode, StaticDepth, SubLayerStrategy
from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.modules import FinetuneModule, LoRA
from hsdlab.modules.losses import distilled_loss
from hsdlab.modules.skip_aware import SkipMixture
from hsdlab.testing import VOCABULARY, tiny_model, watched
from tests.law_cells import by_family, ids
from tests.strategies_for_tests import Changing, ChangingParts, ChangingPrompt, RandomPlan
from tests.tiny_checkpoints import tiny_tokenizer

MAX_NEW_TOKENS = 6
STRATEGIES = [
    FullDepth(),
    HSD(1, 0, 4),
    HSD(2, 1, 3, decay="cosine"),
    SkipDecode(1, 4),
    SkipDecode(0, 2, warmup=2),
    StaticDepth(3),
    Changing(),  # skips the first and the last layer too, and needs late fills
    SubLayerStrategy([1, 3, 4], [3]),
    ChangingParts(),
]
PROMPT_SCHEDULES = [
    HSD(1, 0, 4, prompt_min_exit=0, prompt_max_exit=3),
    SkipDecode(None, None, warmup=0, prompt_min_exit=1, prompt_max_exit=5),
    ChangingPrompt(),
]


class Force(LogitsProcessor):
    """Makes each row go on with its own text."""

    def __init__(self, texts, prompt_length):
        self.texts = texts  # (rows, T)
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        return torch.full_like(scores, -math.inf).scatter(1, self.texts[:, step, None], 0.0)


def pairs():
    """Prompts and references of different lengths, the longest reference of T tokens: all kinds of padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = [(5, 3), (2, MAX_NEW_TOKENS), (7, 1), (3, 4)]
    text = [torch.randint(7, VOCABULARY, (a + b,), generator=generator).tolist() for a, b in lengths]
    return [Pair(tokens[:a], tokens[a:]) for tokens, (a, _) in zip(text, lengths, strict=True)]


def decode_logits(model, strategy, rows):
    """Decode a left-padded batch along the references; the logits of each new token, [rows, T, vocabulary]."""
    prompts = collate_pairs([Pair(row.prompt_ids, []) for row in rows], pad_token_id=0)
    texts = torch.full((len(rows), MAX_NEW_TOKENS), 7)
    for row, pair in enumerate(rows):
        texts[row, : len(pair.target_ids)] = torch.tensor(pair.target_ids)
    with watched(model) as (logits, _), strategy.applied_to(model):
        model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([Force(texts, prompts["input_ids"].shape[1])]),
        )
    return torch.stack(logits, dim=1)


def test_every_scheduled_strategy_is_tested():
    scheduled = {cls for cls in vars(hsdlab.strategies).values() if isinstance(cls, type)}
    scheduled = {cls for cls in scheduled if issubclass(cls, ScheduledStrategy) and cls is not ScheduledStrategy}
    assert scheduled <= {type(strategy) for strategy in STRATEGIES}


SCHEDULED = STRATEGIES + PROMPT_SCHEDULES


@pytest.mark.parametrize(("family_model", "strategy"), by_family(SCHEDULED), ids=ids, indirect=["family_model"])
def test_training_logits_equal_decode_logits(family_model, strategy):
    rows = pairs()
    batch = collate_pairs(rows, pad_token_id=0)
    family_model.generation_config.eos_token_id = 1
    module = FinetuneModule(family_model, tiny_tokenizer(), MAX_NEW_TOKENS, skip_strategies=[FullDepth(), strategy])
    family_model.eval()
    try:
        with torch.no_grad():
            trained = module.training_logits(batch, drawn=[1])
            decoded = decode_logits(family_model, strategy, rows)
            full = module.training_logits(batch)
    finally:
        family_model.generation_config.eos_token_id = None
    assert trained.dtype == torch.float64
    for row, pair in enumerate(rows):
        new = len(pair.target_ids)
        torch.testing.assert_close(trained[row, -new - 1 : -1], decoded[row, :new], atol=1e-9, rtol=0)
    assert bool(module.mixture.skips[1]) == (not torch.allclose(trained[1], full[1]))


def test_each_row_may_have_a_strategy_of_its_own(tiny):
    model = tiny("llama", eos_token_id=1)
    batch = collate_pairs(pairs(), pad_token_id=0)
    module = FinetuneModule(model, tiny_tokenizer(), MAX_NEW_TOKENS, skip_strategies=STRATEGIES)
    model.eval()
    drawn = [1, 0, 7, 5]
    with torch.no_grad():
        mixed = module.training_logits(batch, drawn)
        for row, index in enumerate(drawn):
            alone = module.training_logits(batch, [index])
            real = batch["attention_mask"][row, -mixed.shape[1] :].bool()
            torch.testing.assert_close(mixed[row, real], alone[row, real], atol=1e-9, rtol=0)


def test_rows_that_skip_learn_from_full_depth_and_the_others_from_the_reference_alone(tiny):
    model = tiny("llama", eos_token_id=1)
    batch = collate_pairs(pairs(), pad_token_id=0)
    options = {"skip_strategies": [FullDepth(), HSD(1, 0, 2)]}
    module = FinetuneModule(model, tiny_tokenizer(), MAX_NEW_TOKENS, distillation=0.5, **options)
    model.eval()
    with torch.no_grad():
        full, skipping = module.training_logits(batch), module.training_logits(batch, [1])
        texts = (batch[name][:, -full.shape[1] :] for name in ("input_ids", "target_mask"))
        expected = distilled_loss(skipping, full, torch.full((4,), 0.5), *texts)
        assert module.training_loss(batch, [1]) == pytest.approx(expected.item(), abs=1e-12)
        assert module.training_loss(batch, [0]) == pytest.approx(module.loss(batch).item(), abs=1e-12)
        assert module.loss(batch, [1]) != pytest.approx(expected.item(), abs=1e-3)  # the validation's: no distillation


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_the_model_before_the_training_teaches_every_sequence(lora):
    model = tiny_model("llama", eos_token_id=1)
    batch = collate_pairs(pairs(), pad_token_id=0)
    options = {"lora": lora, "skip_strategies": [FullDepth(), HSD(1, 0, 2)], "distillation": 0.75, "teacher": "start"}
    module = FinetuneModule(model, tiny_tokenizer(), MAX_NEW_TOKENS, **options)
    module.eval()
    with torch.no_grad():
        before = module.training_logits(batch)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
        moved = module.training_logits(batch)
        assert (moved - before).abs().max() > 1e-3
        texts = [batch[name][:, -before.shape[1] :] for name in ("input_ids", "target_mask")]
        for drawn, logits in (([0], moved), ([1], module.training_logits(batch, [1]))):
            expected = distilled_loss(logits, before, torch.full((4,), 0.75), *texts)
            assert module.training_loss(batch, drawn) == pytest.approx(expected.item(), abs=1e-12)
        torch.testing.assert_close(module.training_logits(batch), moved)  # the teacher has left nothing behind


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("teacher", ["itself", "start"])
def test_the_teachers_pass_takes_no_gradient_away_under_autocast(lora, teacher):
    """Autocast keeps its casts of the weights, and those of a pass without gradients have none."""
    model = tiny_model(dtype=torch.float32, eos_token_id=1)
    options = {"lora": lora, "skip_strategies": [FullDepth(), HSD(1, 0, 2)], "distillation": 0.5, "teacher": teacher}
    module = FinetuneModule(model, tiny_tokenizer(), MAX_NEW_TOKENS, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.training_loss(collate_pairs(pairs(), pad_token_id=0), [1])
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


def test_the_mask_follows_each_rows_reference(tiny):
    model = tiny("llama")
    mixture = SkipMixture(model, [SkipDecode(0, 1)], None, MAX_NEW_TOKENS, seed=0)
    executed = executed_of(mixture, pairs())
    assert executed.shape == (4, 8, 6)
    assert executed[:, :, 0].all()
    assert not executed[1, -2].all()  # a token of the reference
    assert executed[1, -1].all()  # its T-th is the input of no step
    assert executed[0, :-3].all()  # the prompt and the padding


def executed_of(mixture, rows, drawn=(0,)):
    batch = collate_pairs(rows, 0)
    return mixture.executed(drawn, batch["target_mask"], batch["attention_mask"])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_by_default_every_layer_runs_for_the_prompt(tiny, strategy):
    mixture = SkipMixture(tiny("llama"), [strategy], None, MAX_NEW_TOKENS, seed=0)
    for row in pairs():
        assert executed_of(mixture, [row])[:, : len(row.prompt_ids)].all()


def test_a_prompt_schedule_follows_each_rows_prompt(tiny):
    strategies = [SkipDecode(None, None, warmup=0, prompt_min_exit=0, prompt_max_exit=5), FullDepth()]
    mixture = SkipMixture(tiny("llama"), strategies, None, MAX_NEW_TOKENS, seed=0)
    executed = executed_of(mixture, pairs(), drawn=[0, 0, 0, 1])
    assert executed[0, :5].sum(dim=1).tolist() == [1, 2, 3, 4, 5]  # a prompt of 5 tokens without padding
    assert executed[1, :2].sum(dim=1).tolist() == [2, 5]  # 2.5 rounded to even
    assert executed[2, :7].sum(dim=1).tolist() == [1, 1, 2, 3, 4, 4, 5]
    assert executed[:3].flip(-1).long().diff(dim=-1).max() <= 0  # at the top
    assert executed[0, 5:].all()
    assert executed[3].all()


def test_a_strategy_that_skips_in_the_prompt_alone_learns_from_full_depth(tiny):
    strategies = [FullDepth(), HSD(0), SkipDecode(None, None, prompt_min_exit=0, prompt_max_exit=2), HSD(1, 0, 3)]
    mixture = SkipMixture(tiny("llama"), strategies, None, MAX_NEW_TOKENS, seed=0)
    assert mixture.skips.tolist() == [False, False, True, True]


def test_draws_follow_the_weights_and_depend_on_seed_and_batch_only(tiny):
    def draws(seed):
        mixture = SkipMixture(tiny("llama"), [FullDepth(), HSD(), SkipDecode(0, 3)], [0.2, 0.8, 0.0], 6, seed)
        return [index for batch in range(500) for index in mixture.draw(batch)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    counts = Counter(draws(0))
    assert counts[0] == pytest.approx(100, abs=30)
    assert counts[2] == 0


def test_draws_for_rows_depend_on_the_process_too(tiny):
    mixture = SkipMixture(tiny("llama"), [FullDepth(), HSD(), SkipDecode(0, 3)], [1, 1, 1], MAX_NEW_TOKENS, seed=0)
    draws = [mixture.draw(5, rows=40, rank=rank) for rank in (0, 0, 1)]
    assert len(draws[0]) == 40
    assert draws[0] == draws[1] != draws[2]
    assert mixture.draw(5) * 40 != draws[0]


def test_shares_move_in_a_straight_line_to_the_final_weights(tiny):
    weights, final = [2, 2, 0], [0, 10, 10]  # shares of 0.5, 0.5, 0 and 0, 0.5, 0.5
    strategies = [FullDepth(), HSD(), SkipDecode(0, 3)]
    mixture = SkipMixture(tiny("llama"), strategies, weights, MAX_NEW_TOKENS, seed=0, final_weights=final)
    for progress, expected in [(0.0, (0.5, 0.5, 0.0)), (0.5, (0.25, 0.5, 0.25)), (1.0, (0.0, 0.5, 0.5))]:
        counts = Counter(mixture.draw(0, progress, rows=4000))
        assert [counts[i] / 4000 for i in range(3)] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("strategies", "weights", "message"),
    [
        ([CALM()], None, "CALM.* decides while it decodes; .* as those of FullDepth"),
        ([RandomPlan()], None, "decides while it decodes"),
        ([FullDepth()], [1.0, 2.0], "skip_weights has 2 numbers for 1 skip_strategies"),
        ([FullDepth(), HSD()], [1.0, -1.0], "expected finite numbers of 0 or more"),
        ([FullDepth()], [0.0], "not all 0"),
        ([HSD(1, 0, 7)], None, "max_exit=7 is beyond this model's 6 layers"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(tiny, strategies, weights, message):
    with pytest.raises(ValueError, match=message):
        SkipMixture(tiny("llama"), strategies, weights, MAX_NEW_TOKENS, seed=0)


def test_activation_checkpointing_is_refused_with_the_way_out():
    model = tiny_model(eos_token_id=1)
    module = FinetuneModule(model, tiny_tokenizer(), MAX_NEW_TOKENS, skip_strategies=[HSD(1, 0, 3)])
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="activation_checkpointing_disable"):
        module.training_logits(collate_pairs(pairs(), 0), drawn=[0])
