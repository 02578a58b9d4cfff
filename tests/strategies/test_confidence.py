"""Measures, thresholds, exit rules and cheap probes on hand-computed values, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch

from hsdlab import CALM, HSD, PABEE, Compose, DeeBERT, FullDepth, OracleExit, SkipDecode, generate
from hsdlab.decoding import LayerState
from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.states import Probe, StepMemory
from hsdlab.strategies.confidence import certainty, depth_threshold, saturation, softmax_response, time_threshold
from hsdlab.strategies.probing import pooled
from hsdlab.testing import decode, prompts, tiny_model


def state(logits, output=None, previous=None, *, layer=3, step=2, rows=None, ended=None, memory=None, per_source=1):
    """After a layer of a model of eight layers whose head gives ``logits`` [rows, vocabulary]."""
    logits = torch.tensor(logits)
    output = torch.ones(len(logits), 4) if output is None else torch.tensor(output)
    parts = SimpleNamespace(
        head_output=lambda hidden, layer: logits if len(hidden) == len(logits) else logits[: len(hidden)],
        scaled=lambda logits: logits,
        token_logits=lambda hidden, tokens, layer: logits.gather(1, tokens),
        exits=None,
        vocabulary_size=logits.shape[1],
        head_weights=(5, 4),
    )
    return LayerState(
        layer=layer,
        layers_run=layer + 1,
        step=step,
        num_layers=8,
        max_steps=10,
        rows=torch.arange(len(logits)) if rows is None else torch.tensor(rows),
        rows_per_source=per_source,
        ended=None if ended is None else torch.tensor(ended),
        output=output,
        previous_output=None if previous is None else torch.tensor(previous),
        probe=Probe(parts, output),
        memory=StepMemory(len(logits)) if memory is None else memory,
    )


# ---- measures and thresholds


def test_softmax_response_by_hand():
    logits = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)], [0.0, 0.0, -50.0]])
    torch.testing.assert_close(softmax_response(logits), torch.tensor([0.5, 0.0]))
    assert softmax_response(logits.bfloat16()).dtype == torch.float32


def test_saturation_by_hand():
    output = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    previous = torch.tensor([[3.0, 0.0], [-2.0, 0.0], [5.0, 5.0]])
    torch.testing.assert_close(saturation(output, previous), torch.tensor([0.6, -1.0, 1.0]))
    assert saturation(output, None).tolist() == [-1.0] * 3
    assert saturation(output.bfloat16(), previous.bfloat16()).dtype == torch.float32


def test_certainty_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    entropy_bits = 0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3  # 1.75 of 2
    torch.testing.assert_close(certainty(logits), torch.tensor([1 - entropy_bits / 2]))
    masked = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    torch.testing.assert_close(certainty(masked), torch.tensor([1.0, 0.0]))


def test_time_threshold_by_hand():
    assert time_threshold(0.3, 0, 10, form="paper") == pytest.approx(0.37)
    assert time_threshold(0.3, 0, 10, form="t5x") == pytest.approx(0.30)
    assert time_threshold(0.5, 5, 10, temperature=4) == pytest.approx(0.45 + 0.1 * math.exp(-2))
    assert time_threshold(2.0, 0, 10) == 1.0


def test_depth_threshold_by_hand():
    assert [depth_threshold(0.02, i) for i in (0, 1, 30)] == pytest.approx([1.0, 0.98, 0.4])
    assert depth_threshold(0.5, 9) == 0.0
    assert CALM(schedule="depth", slope=0.02).threshold_at(layer=0, step=0, max_steps=10) == 1.0


@pytest.mark.parametrize("measure", ["softmax", "saturation"])
def test_a_threshold_of_one_is_the_full_model_before_any_decay_and_at_full_confidence(measure):
    sure = state([[1e4, 0.0], [0.0, 1e4]], [[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2)  # both confidences are 1
    assert CALM(1.0, schedule="time").threshold_at(layer=0, step=9, max_steps=10) == 1.0
    assert CALM(1.0, measure).should_exit(sure).tolist() == [False, False]
    assert CALM(1.0, measure, schedule="time").should_exit(sure).tolist() == [False, False]
    assert CALM(measure=measure, schedule="depth", slope=0.0).should_exit(sure).tolist() == [False, False]
    assert CALM(0.99, measure).should_exit(sure).tolist() == [True, True]
    assert DeeBERT(1.0).should_exit(sure).tolist() == [False, False]
    assert DeeBERT(0.99).should_exit(sure).tolist() == [True, True]


def test_saturation_never_exits_after_the_first_executed_layer():
    assert CALM(0.0, "saturation").should_exit(state([[0.0, 0.0]])).tolist() == [False]
    assert CALM(0.0, "saturation").should_exit(state([[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]])).tolist() == [True]


# ---- which layers are probed, and with how much of the head


@pytest.mark.parametrize(("probe_layers", "probed"), [(1, range(8)), (3, [2, 5]), (8, [7]), ([0, 4], [0, 4])], ids=str)
def test_probe_layers(probe_layers, probed):
    for layer in range(8):
        here = state([[1.0, 0.0]], layer=layer)
        exits = CALM(1e-6, probe_layers=probe_layers).should_exit(here)
        assert exits.tolist() == [layer in probed]
        assert here.probe.cost.rows == (layer in probed)


def test_a_shortlist_takes_the_likeliest_tokens_of_the_first_probe():
    memory = StepMemory(2)
    first = state([[4.0, 3.0, 0.0, 1.0], [0.0, 1.0, 9.0, 8.5]], layer=0, memory=memory)
    strategy = CALM(0.9, shortlist=2)
    assert strategy.should_exit(first).tolist() == [False, False]
    assert (first.probe.cost.rows, first.probe.cost.weights) == (2, 2 * (5 + 4 * 4))
    later = state([[8.0, 0.0, 9.0, 9.0], [9.0, 9.0, 1.0, 0.0]], layer=1, memory=memory)
    # among tokens 0 and 1, and among 2 and 3: gaps (e^8 - 1) / (e^8 + 1) and (e - 1) / (e + 1)
    assert strategy.should_exit(later).tolist() == [True, False]
    assert (later.probe.cost.rows, later.probe.cost.weights) == (2, 2 * (5 + 2 * 4))
    rest = state([[9.0, 9.0, 8.0, 0.0]], layer=2, memory=memory, rows=[1])  # row 0 has left
    assert strategy.should_exit(rest).tolist() == [True]


def test_the_gate_lets_through_what_is_nearly_saturated():
    near, far = [1.0, 0.1], [1.0, 3.0]
    some = state([[9.0, 0.0], [9.0, 0.0]], [near, far], [[1.0, 0.0]] * 2)
    strategy = CALM(0.5, gate=0.9)
    assert strategy.should_exit(some).tolist() == [True, False]
    assert some.probe.cost.rows == 1
    none = state([[9.0, 0.0]], [far], [[1.0, 0.0]])
    assert strategy.should_exit(none).tolist() == [False]
    assert strategy.should_exit(state([[9.0, 0.0]])).tolist() == [False]  # the first executed layer
    assert none.probe.cost.rows == 0
    assert CALM(0.5, gate=0.0).should_exit(state([[9.0, 0.0]], [far], [[1.0, 0.0]])).tolist() == [True]


def test_a_module_of_the_strategys_own_is_counted():
    here = state([[0.0, 0.0]] * 3)
    assert here.probe.apply(ExitClassifier(4)).tolist() == [0.0] * 3
    assert (here.probe.cost.rows, here.probe.cost.weights) == (0, 3 * 4)


def test_patience_counts_equal_predictions_in_a_row():
    a, b = [1.0, 0.0], [0.0, 1.0]
    memory = StepMemory(2)
    strategy = PABEE(patience=2)
    seen = [[a, a], [a, b], [b, b], [b, b], [b, a]]  # of rows 0 and 1; row 1 has b three times
    answers = [strategy.should_exit(state(rows, layer=i, memory=memory)).tolist() for i, rows in enumerate(seen)]
    assert answers == [[False, False], [False, False], [False, False], [False, True], [True, False]]
    assert PABEE(patience=None).should_exit(state([a], memory=memory)).tolist() == [False]


def test_what_is_kept_for_some_rows_leaves_the_others():
    memory = StepMemory(3)
    assert memory.recall("x", torch.arange(3)) is None
    first = torch.tensor([1.0, 2.0, 3.0])
    memory.keep("x", torch.arange(3), first)
    memory.keep("x", torch.tensor([0, 2]), torch.tensor([7.0, 8.0]))
    assert memory.recall("x", torch.arange(3)).tolist() == [7.0, 2.0, 8.0]
    assert memory.recall("x", torch.tensor([1, 2])).tolist() == [2.0, 8.0]
    assert first.tolist() == [1.0, 2.0, 3.0]
    memory.keep("y", torch.tensor([1]), torch.tensor([5.0]))
    assert memory.recall("y", torch.arange(3)).tolist() == [0.0, 5.0, 0.0]


# ---- exit rules


def test_pooled_by_hand():
    confidence = torch.tensor([0.25, 0.75, 1.0, 0.5])
    assert pooled(confidence, "min", 4, None).tolist() == [0.25] * 4
    assert pooled(confidence, "mean", 4, None).tolist() == [0.625] * 4
    assert pooled(confidence, "min", 2, None).tolist() == [0.25, 0.25, 0.5, 0.5]
    assert pooled(confidence, "mean", 2, None).tolist() == [0.5, 0.5, 0.75, 0.75]
    ended = torch.tensor([True, False, True, True])
    assert pooled(confidence, "min", 4, ended).tolist() == [0.75] * 4
    assert pooled(confidence, "min", 2, ended).tolist() == [0.75, 0.75, math.inf, math.inf]
    assert pooled(confidence, "mean", 2, ended).tolist() == [0.75, 0.75, math.inf, math.inf]


def test_rules_pool_over_the_batch_or_the_rows_of_a_source():
    gaps = [[2.0, 0.0], [0.2, 0.0], [3.0, 0.0], [1.0, 0.0]]  # softmax responses .76 .10 .91 .46

    def answer(rule, **more):
        return CALM(0.45, exit_rule=rule).should_exit(state(gaps, per_source=2, **more)).tolist()

    assert answer("per_row") == [True, False, True, True]
    assert answer("min") == [False] * 4
    assert answer("mean") == [True] * 4
    assert answer("source_min") == [False, False, True, True]
    assert CALM(0.4, exit_rule="source_mean").should_exit(state(gaps, per_source=2)).tolist() == [True] * 4
    assert answer("min", ended=[False, True, False, False]) == [True] * 4


@pytest.mark.parametrize("rule", ["min", "mean"])
def test_rows_that_have_ended_have_no_say(tiny, rule):
    seen = []

    class Spy(CALM):
        def should_exit(self, state):
            exits = super().should_exit(state)
            seen.append((state.step, softmax_response(state.logits()), exits, state.ended))
            return exits

    live = decode(tiny(), Spy(0.4, exit_rule=rule)).output.trace.live
    assert not live.all()
    for step, gaps, exits, ended in seen:
        assert ended.tolist() == (~live[step]).tolist()
        speaking = gaps[live[step]]
        decides = speaking.min() if rule == "min" else speaking.mean()
        assert exits.tolist() == [bool(decides >= 0.4)] * 3


def test_the_beams_of_a_source_exit_together(tiny):
    input_ids, mask = prompts(3)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}
    seen = []

    class Spy(CALM):
        def should_exit(self, state):
            exits = super().should_exit(state)
            gaps = softmax_response(state.logits())
            seen.append((state.rows_per_source, gaps.view(-1, 4).amin(1), exits.view(-1, 4)))
            return exits

    output = generate(tiny(), strategy=Spy(0.3, exit_rule="source_min"), num_beams=4, **call)
    for per_source, smallest, exits in seen:
        assert per_source == 4
        assert torch.equal(exits, (smallest >= 0.3)[:, None].expand_as(exits))
    assert 1 < output.trace.average_layers < 6
    depths = {len(rows) for _, _, rows in seen}
    assert depths >= {1, 2, 3}  # some sources left before others


def test_only_rules_over_the_batch_make_rows_depend():
    assert CALM().rows_depend is None
    assert CALM(exit_rule="source_mean").rows_depend is None
    assert "exit_rule='min'" in CALM(exit_rule="min").rows_depend
    assert "exit_rule='mean'" in Compose(HSD(), DeeBERT(exit_rule="mean")).rows_depend


# ---- composition and oracles


def test_compose_exits_within_the_schedule(tiny):
    schedule = HSD(num_skipped=2, min_exit=0, max_exit=2)
    strategy = Compose(schedule, CALM(0.5))
    trace = decode(tiny(), strategy, eos_token_id=None).output.trace
    allowed = schedule.scheduled_layers(6, 8)
    for step, row in torch.cartesian_prod(torch.arange(7), torch.arange(3)).tolist():
        ran = trace.executed[step, row].nonzero().squeeze(1).tolist()
        assert ran == list(allowed[step])[: len(ran)]
    assert trace.average_layers < sum(map(len, allowed)) / 7
    every_second = decode(tiny(), Compose(schedule, CALM(0.0, probe_layers=2)), eos_token_id=None).output.trace
    assert (every_second.depths == 2).all()  # of the layers that run, not of the model's
    assert repr(strategy) == (
        "Compose(schedule=HSD(num_skipped=2, min_exit=0, max_exit=2), confidence=CALM(threshold=0.5))"
    )


def test_the_last_scheduled_layer_is_not_probed(tiny):
    class Low(SkipDecode):
        def layers_at(self, step, num_layers, max_steps):
            return (0, 1)

    trace = decode(tiny(), Compose(Low(1, 1), CALM(0.999)), eos_token_id=None).output.trace
    assert trace.probes.rows == 7 * 3


def test_no_check_after_the_last_layer_of_a_plan(tiny):
    class Planned(CALM):
        def plan(self, state):
            return (torch.arange(state.num_layers) < 3).expand(state.rows, -1)

    assert decode(tiny(), Planned(0.999), eos_token_id=None).output.trace.probes.rows == 2 * 7 * 3
    late = decode(tiny(), Planned(0.999, late_exit=True), eos_token_id=None).output.trace
    assert late.probes.rows == 1 * 7 * 3


@pytest.mark.parametrize("strategy", [CALM(0.4), PABEE(patience=1), DeeBERT(0.6, gate=0.2)], ids=repr)
def test_a_late_exit_comes_one_executed_layer_later(tiny, strategy):
    """In the first step of a decode, before the texts differ."""
    late = strategy.changed(late_exit=True)
    usual, later = (decode(tiny(), each, eos_token_id=None).output.trace.depths[0] for each in (strategy, late))
    assert (usual < 5).any()
    assert torch.equal(later, (usual + 1).clamp(max=6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Compose(HSD(), SkipDecode()), "confidence is SkipDecode.*ConfidenceStrategy"),
        (lambda: Compose(CALM(), CALM()), "schedule is CALM.*ScheduledStrategy"),
        (lambda: Compose(Compose(HSD(), CALM()), CALM()), "schedule is Compose"),
        (lambda: Compose(FullDepth(), OracleExit()), "confidence is OracleExit"),
        (lambda: CALM(threshold=-0.1), "threshold=-0.1"),
        (lambda: CALM(threshold=math.nan), "threshold=nan"),
        (lambda: CALM(measure="entropy"), "measure='entropy'; expected one of softmax, saturation, classifier"),
        (lambda: CALM(schedule="never"), "schedule='never'"),
        (lambda: CALM(form="jax"), "form='jax'"),
        (lambda: CALM(measure="classifier"), "classifier=None; expected a classifier's file"),
        (lambda: CALM(classifier="x"), "measure='softmax' and classifier='x'"),
        (lambda: CALM(measure="saturation", gate=0.5), "'saturation' does not use the head"),
        (
            lambda: CALM(measure="classifier", classifier="x", check_vocabulary=8),
            "check_vocabulary only with 'softmax'",
        ),
        (
            lambda: DeeBERT(check_vocabulary=1),
            "DeeBERT: check_vocabulary=1; expected a whole number, 2 or more, or a file",
        ),
        (lambda: CALM(gate=0.5, shortlist=8), "gate=0.5 and shortlist=8; expected one of the two"),
        (lambda: CALM(shortlist=1), "shortlist=1; expected 2"),
        (lambda: CALM(probe_layers=0), "probe_layers=0"),
        (lambda: DeeBERT(probe_layers=[]), r"DeeBERT: probe_layers=\[\]"),
        (lambda: DeeBERT(exit_rule="max"), "exit_rule='max'; expected one of per_row, min"),
        (lambda: DeeBERT(threshold=-1), "threshold=-1"),
        (lambda: PABEE(patience=0), "patience=0"),
        (lambda: PABEE(late_exit=2), "PABEE: late_exit=2; expected True or False"),
        (lambda: PABEE(patience="never"), "patience='never'; expected 1 or more, 'auto', or None"),
        (lambda: CALM(threshold=float("nan")), "threshold=nan; expected a finite number, 0 or more"),
        (lambda: CALM(threshold=float("inf")), "threshold=inf; expected a finite number, 0 or more"),
        (lambda: CALM(temperature=float("inf")), "temperature=inf"),
        (lambda: CALM(slope=float("nan")), "slope=nan"),
        (lambda: CALM(gate=float("inf")), "gate=inf"),
        (lambda: DeeBERT(threshold=float("nan")), "DeeBERT: threshold=nan"),
        (lambda: OracleExit("none"), "keys_and_values='none'"),
    ],
)
def test_bad_parameters_are_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (CALM(probe_layers=[2, 6]), r"probe_layers=\[2, 6\]; this model has layers 0 to 5"),
        (PABEE(shortlist=65), "shortlist=65 is beyond this model's vocabulary of 64"),
        (DeeBERT(check_vocabulary=65), "DeeBERT: check_vocabulary=65; this model has 64 tokens"),
        (CALM(shortlist=9, check_vocabulary=8), "shortlist=9 is beyond the checks' vocabulary of 8"),
        (Compose(HSD(), DeeBERT(probe_layers=[9])), "DeeBERT: probe_layers"),
        (PABEE(patience=5), "patience=5 never ends on this model: of its 6 layers it probes after 5, .* expected 4 at"),
        (PABEE(patience=2, probe_layers=2), "of its 6 layers it probes after 2, .* expected 1 at most"),
        (CALM(probe_layers=6), "probe_layers=6 probes after no layer of this model's 6"),
        (CALM(probe_layers=[5]), r"probe_layers=\[5\] probes after no layer"),
        (Compose(HSD(max_exit=9), CALM()), "max_exit=9 is beyond"),
    ],
    ids=repr,
)
def test_what_does_not_fit_the_model_is_refused_before_decoding(tiny, strategy, message):
    with pytest.raises(ValueError, match=message), strategy.applied_to(tiny()):
        pass


def test_candidate_tokens_need_a_plain_head(tiny):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"head of LlamaForCausalLM is a Linear.*merge adapters"):
        generate(model, strategy=CALM(shortlist=8), input_ids=prompts(1)[0], max_new_tokens=3)
    with pytest.raises(ValueError, match="leave shortlist, check_vocabulary and draft_vocabulary out"):
        generate(model, strategy=CALM(check_vocabulary=8), input_ids=prompts(1)[0], max_new_tokens=3)
    generate(model, strategy=CALM(0.5), input_ids=prompts(1)[0], max_new_tokens=3)
