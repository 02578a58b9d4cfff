"""What a draft is predicted to give: against loops over positions, and against verified decoding itself."""

import json
import random

import pytest
import torch

from hsdlab import HSD, FullDepth, SkipDecode, StaticDepth, SubLayerStrategy, UserError, Verified, generate
from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.decoding.draft_length import VERIFIED_TOKEN
from hsdlab.decoding.forced import layer_schedule
from hsdlab.decoding.sub_layers import step_mask
from hsdlab.errors import RunError
from hsdlab.records.draft_tuning import DraftPrediction
from hsdlab.testing import prompts
from hsdlab.tuning import AgreementFile, Draft, ReplayAgreement, drafts_to_measure, predict, search_drafts
from hsdlab.tuning.drafts import verifications
from tests.reference import slow
from tests.tuning.conftest import MAX_STEPS

LAYERS, NEW = 6, 12
DRAFTS = [HSD(2, 0, 4), SkipDecode(1, 3), StaticDepth(3), StaticDepth(4, keep="bottom"), SubLayerStrategy([1, 3], [4])]


def schedule(draft, max_steps=MAX_STEPS):
    return layer_schedule(draft, LAYERS, max_steps)


def slow_agreement(model, batch, draft, size):
    """Position by position: would the draft, with its layers in all steps, write the text's next token?"""
    layers = step_mask(draft.layers_at(0, LAYERS, MAX_STEPS), LAYERS).shape
    executed = torch.ones(*batch["input_ids"].shape, *layers, dtype=torch.bool)
    for row, targets in enumerate(batch["target_mask"]):
        for step, place in enumerate(targets.nonzero().flatten().tolist()[:-1]):
            executed[row, place] = step_mask(draft.layers_at(step, LAYERS, MAX_STEPS), LAYERS)
    logits = slow.masked_logits(model, batch["input_ids"], batch["attention_mask"], executed)
    in_prompts = batch["input_ids"][batch["attention_mask"].bool() & ~batch["target_mask"]].tolist()
    found = []
    for row, targets in enumerate(batch["target_mask"]):
        text = ""
        for place in targets.nonzero().flatten().tolist()[:-1]:
            allowed = range(logits.shape[-1]) if size is None else sorted({*range(size), *in_prompts})
            best = max(allowed, key=logits[row, place].tolist().__getitem__)
            text += "1" if best == int(batch["input_ids"][row, place + 1]) else "0"
        found.append(text)
    return tuple(found)


@pytest.fixture(scope="module")
def own(tiny):
    """Prompts with the texts of full depth after them, in one batch; some texts end early."""
    model, (ids, mask) = tiny("llama"), prompts(4)
    texts = generate(
        model,
        input_ids=ids,
        attention_mask=mask,
        strategy=FullDepth(),
        max_new_tokens=MAX_STEPS,
        eos_token_id=[3, 4, 5],
    )
    pairs = [
        Pair(prompt[keep.bool()].tolist(), text[: int(live.sum()) + 1].tolist())
        for prompt, keep, text, live in zip(
            ids, mask, texts.sequences[:, ids.shape[1] :], texts.trace.live.T, strict=True
        )
    ]
    return collate_pairs(pairs, 0)


@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("draft", DRAFTS, ids=repr)
def test_the_agreement_is_that_of_a_loop_over_positions(tiny, own, draft, size):
    found = ReplayAgreement(tiny("llama"), [own])(draft, schedule(draft), [None, size])
    assert found[size] == slow_agreement(tiny("llama"), own, draft, size)
    assert "1" in "".join(found[None])
    assert "0" in "".join(found[None])


def test_a_draft_that_never_skips_agrees_everywhere(tiny, own):
    draft = SkipDecode(None, None)
    agreements = ReplayAgreement(tiny("llama"), [own])(draft, schedule(draft), [None])[None]
    assert set("".join(agreements)) == {"1"}
    prediction = predict(agreements, 4, MAX_STEPS, 1.0, None)
    assert prediction.speed_up < 1  # it saves nothing, and verifies besides


def slow_verifications(agreement, most, max_steps):
    """Token by token, as verified decoding writes a text of len(agreement) + 1 tokens."""
    written, found = 1, []
    while written < len(agreement) + 1:
        drafted = accepted = 0
        agreed = True
        while drafted < most and written + drafted + 1 < max_steps:
            place = written - 1 + drafted
            agreed = agreed and place < len(agreement) and agreement[place] == "1"
            drafted += 1
            accepted += agreed
        found.append((drafted, accepted))
        written += accepted + 1
    return found


@pytest.mark.parametrize("most", [1, 2, 5, 30])
def test_verified_decoding_is_played_through_token_by_token(most):
    numbers = random.Random(most)
    for _ in range(200):
        share, length = numbers.random(), numbers.randint(1, 12)
        agreement = "".join("1" if numbers.random() < share else "0" for _ in range(length))
        max_steps = length + 1 + numbers.randint(0, 3)
        assert verifications(agreement, most, max_steps) == slow_verifications(agreement, most, max_steps)


@pytest.mark.parametrize(("number", "most", "size"), [(2, 3, None), (4, 1, None), (4, 3, 20), (4, 20, None)])
def test_drafts_of_the_lowest_layers_are_accepted_exactly_as_predicted(tiny, number, most, size):
    """Their keys and values in full depth's texts are those of full depth."""
    model, draft = tiny("llama"), StaticDepth(number, keep="bottom")
    for row in range(2):
        ids, mask = (each[row : row + 1] for each in prompts(2))
        ids = ids[:, mask[0].bool()]
        call = {"input_ids": ids, "max_new_tokens": NEW, "eos_token_id": [3, 4, 5]}
        text = generate(model, strategy=FullDepth(), **call).sequences[0, ids.shape[1] :].tolist()
        batch = collate_pairs([Pair(ids[0].tolist(), text)], 0)
        (agreement,) = ReplayAgreement(model, [batch])(draft, schedule(draft, NEW), [size])[size]
        decoded = generate(model, strategy=Verified(draft, most, draft_vocabulary=size), **call)
        assert verifications(agreement, most, NEW) == decoded.trace.drafts.rounds[0]


def test_the_speed_up_counts_draft_steps_and_verifications():
    found = predict(["1101", "0"], 2, 9, 0.25, 8000)  # drafted 2, accepted 2; 2, 1; 2, 0
    assert verifications("1101", 2, 9) == [(2, 2), (2, 1)]
    assert verifications("0", 2, 9) == [(2, 0)]
    assert (found.num_draft_tokens, found.draft_vocabulary, found.draft_cost) == (2, 8000, 0.25)
    assert found.acceptance_rate == pytest.approx(3 / 6)
    assert found.tokens_per_verification == pytest.approx(5 / 3)
    assert found.speed_up == pytest.approx(5 / (3 * 1 + 6 * (0.25 + VERIFIED_TOKEN)))


def prediction(speed_up, length=1):
    return DraftPrediction(length, None, 0.5, 0.5, 1.5, speed_up)


def test_the_best_predictions_are_measured_at_most_two_of_a_draft():
    drafts = [
        Draft(StaticDepth(2), 2.0, True, (prediction(1.5), prediction(1.9), prediction(1.8))),
        Draft(StaticDepth(3), 3.0, True, (prediction(1.6), prediction(0.5), prediction(1.7))),
        Draft(FullDepth(), 6.0, False, (prediction(3.0),)),  # skips nothing
    ]
    assert drafts_to_measure(drafts, 8) == [(0, 1), (0, 2), (1, 2), (1, 0)]
    assert drafts_to_measure(drafts, 2) == [(0, 1), (0, 2)]
    assert drafts_to_measure(drafts[2:], 8) == []


def test_the_search_learns_which_drafts_are_fast():
    def predictions(draft, schedule):
        return [prediction(2 - abs(draft.number - 3) / 10), prediction(0.5)]

    found = search_drafts([StaticDepth], num_layers=30, max_steps=9, predictions=predictions, trials=range(40), seed=0)
    first, last = ([each.strategy.number for each in part] for part in (found[:10], found[-10:]))
    assert max(found, key=lambda each: each.predictions[0].speed_up).strategy.number == 3
    assert sum(abs(each - 3) for each in last) < sum(abs(each - 3) for each in first)
    assert all(each.average_layers == each.strategy.number for each in found)


def test_agreements_are_read_back_by_schedule_and_vocabulary(tmp_path):
    file, one, two = AgreementFile(tmp_path / "new" / "scores.jsonl"), *map(schedule, DRAFTS[:2])
    file.add(one, None, DRAFTS[0].config(), ("101", ""))
    file.add(one, 8, DRAFTS[0].config(), ("001", ""))
    again = AgreementFile(file.path)
    assert (again.get(one, None), again.get(one, 8)) == (("101", ""), ("001", ""))
    assert (again.get(two, None), again.get(one, 9)) == (None, None)
    lines = [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()]
    assert [line["draft_vocabulary"] for line in lines] == [None, 8]
    file.path.write_text(json.dumps({"schedule": "a", "draft_vocabulary": None, "agreements": ["2"]}) + "\n")
    with pytest.raises(RunError, match="line 1: expected the agreement of a draft as the run wrote it"):
        AgreementFile(file.path)


def test_a_vocabulary_below_one_is_refused(tiny, own):
    with pytest.raises(UserError, match="draft_vocabulary=0"):
        ReplayAgreement(tiny("llama"), [own])(DRAFTS[0], schedule(DRAFTS[0]), [0])


def test_a_file_of_tokens_agrees_as_the_same_tokens_do(tiny, own, tmp_path):
    path = tmp_path / "token_counts.jsonl"
    lines = [json.dumps({"id": each, "token": str(each), "count": 1}) for each in range(8)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = ReplayAgreement(tiny("llama"), [own])(DRAFTS[0], schedule(DRAFTS[0]), [None, 8, str(path)])
    assert found[str(path)] == found[8]
    assert found[8] != found[None]
