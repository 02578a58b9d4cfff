"""The teacher-forced score of a schedule, against a pass that hooks undo layer by layer, and the file of scores."""

import json
import math

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, SkipDecode, SubLayerStrategy
from hsdlab.decoding.forced import layer_schedule
from hsdlab.decoding.sub_layers import step_mask
from hsdlab.modules.skip_aware import SkipMixture
from hsdlab.tuning import ReplayScore, ScoreFile
from tests.reference import slow
from tests.strategies_for_tests import Changing, ChangingPrompt
from tests.tuning.conftest import MAX_STEPS

LAYERS = 6


def slow_score(model, batch, strategy):
    """The score by the slow reference: step t runs with `layers_at(t)`, the prompt with `prompt_layers`."""
    layers = step_mask(strategy.layers_at(0, LAYERS, MAX_STEPS), LAYERS).shape
    executed = slow.prompt_executed(strategy, batch["attention_mask"].bool() & ~batch["target_mask"], *layers)
    at = []
    for row, targets in enumerate(batch["target_mask"]):
        for step, place in enumerate(targets.nonzero().flatten().tolist()[:-1]):
            executed[row, place] = step_mask(strategy.layers_at(step, LAYERS, MAX_STEPS), LAYERS)
            at.append((row, place))
    log_likelihood = slow.masked_logits(model, batch["input_ids"], batch["attention_mask"], executed).log_softmax(-1)
    return -sum(float(log_likelihood[row, i, batch["input_ids"][row, i + 1]]) for row, i in at) / len(at)


STRATEGIES = [
    FullDepth(),
    HSD(1, 0, 4),
    HSD(2, 1, 3, decay="cosine"),
    SkipDecode(0, 2, warmup=2),
    Changing(),
    HSD(2, 0, 3, prompt_min_exit=0, prompt_max_exit=4),
    SkipDecode(None, None, warmup=0, prompt_min_exit=1, prompt_max_exit=2),
    ChangingPrompt(),
    SubLayerStrategy([1, 3, 4], [3]),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_score_is_that_of_the_slow_reference(family_model, batch, strategy):
    score = ReplayScore(family_model, [batch])(layer_schedule(strategy, LAYERS, MAX_STEPS))
    assert score == pytest.approx(slow_score(family_model, batch, strategy), rel=1e-9)


def test_skip_aware_training_runs_the_same_layers(tiny, batch):
    model = tiny("llama")
    mixture = SkipMixture(model, STRATEGIES, None, MAX_STEPS, seed=0)
    decode = batch["target_mask"][:, :-1] & batch["target_mask"][:, 1:]
    for index, strategy in enumerate(STRATEGIES):
        executed = mixture.executed([index], batch["target_mask"], batch["attention_mask"])
        logits = slow.masked_logits(model, batch["input_ids"], batch["attention_mask"], executed)[:, :-1][decode]
        loss = torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:][decode])
        score = ReplayScore(model, [batch])(layer_schedule(strategy, LAYERS, MAX_STEPS))
        assert score == pytest.approx(float(loss), rel=1e-9)


def test_schedules_that_differ_in_the_prompt_alone_have_scores_of_their_own(tmp_path):
    file = ScoreFile(tmp_path / "scores.jsonl")
    for top, score in ((None, 0.1), (2, 0.2), (4, 0.3)):
        strategy = HSD(1, 0, 4, prompt_min_exit=None if top is None else 0, prompt_max_exit=top)
        schedule = layer_schedule(strategy, LAYERS, MAX_STEPS)
        assert file.get(schedule) is None
        file.add(schedule, strategy.config(), score)
    assert file.get(layer_schedule(HSD(1, 0, 4), LAYERS, MAX_STEPS)) == 0.1


def test_all_decode_steps_of_all_batches_count_alike(tiny, batch):
    score, schedule = ReplayScore(tiny("llama"), [batch]), layer_schedule(HSD(1, 0, 4), LAYERS, MAX_STEPS)
    rows = [{name: values[row : row + 1] for name, values in batch.items()} for row in range(4)]
    assert ReplayScore(tiny("llama"), rows)(schedule) == pytest.approx(score(schedule), rel=1e-9)  # one has no step


def test_what_decides_while_it_decodes_has_no_schedule():
    assert layer_schedule(CALM(), LAYERS, MAX_STEPS) is None


def test_scores_are_read_back_and_what_a_kill_cut_off_is_dropped(tmp_path):
    one, two = (layer_schedule(HSD(1, 0, top), LAYERS, MAX_STEPS) for top in (2, 4))
    file = ScoreFile(tmp_path / "new" / "scores.jsonl")
    file.add(one, HSD(1, 0, 2).config(), 1 / 3)
    file.add(two, HSD(1, 0, 4).config(), math.nan)
    assert file.get(one) == 1 / 3

    with file.path.open("ab") as stream:
        stream.write(b'{"schedule": "01')
    again = ScoreFile(file.path)
    assert again.get(one) == 1 / 3
    assert math.isnan(again.get(two))
    assert again.get(layer_schedule(FullDepth(), LAYERS, MAX_STEPS)) is None
    again.add(layer_schedule(FullDepth(), LAYERS, MAX_STEPS), FullDepth().config(), 0.25)
    lines = [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()]
    assert [line["nats_per_token"] for line in lines] == [1 / 3, None, 0.25]
    assert lines[0]["strategy"]["init_args"]["max_exit"] == 2
