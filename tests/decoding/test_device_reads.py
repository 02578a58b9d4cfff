"""For which answers the host waits in a decode step, counted on a fake device (``tests/fake_device.py``)."""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hsdlab import CALM, HSD, PABEE, Compose, DeeBERT, FullDepth, SkipDecode
from hsdlab import testing as laws
from hsdlab.decoding import applied
from tests.fake_device import DEVICE, DeviceTensor, FakeDevice, on_fake_device
from tests.law_cells import CLASSIFIER, ids, in_turns
from tests.strategies_for_tests import Changing, RandomPlan

WAYS = {
    "one": (1, {}),
    "batch": (3, {}),
    "beams": (3, {"num_beams": 4}),
    "ends": (3, {"eos_token_id": laws.END_TOKENS}),
}
GATED = CALM(0.5, gate=0.5)


# ---- the fake device


def test_the_fake_device_notes_what_the_host_waits_for():
    with FakeDevice() as device:
        there = DeviceTensor(torch.tensor([3, 0, 5]))
        assert (there + there[0].item()).tolist() == [6, 3, 8]
        assert there.device == torch.arange(3, device=DEVICE).device == DEVICE
        assert bool((there > 4).any())
        assert not torch.equal(there, there + 1)
        assert there[there > 0].shape == (2,)
        assert len(there.nonzero()) == 2
        there[there > 4] = 1
        torch.tensor([1, 2], device=DEVICE)
        torch.ones(2).to(DEVICE, non_blocking=True)
    reads = ["_local_scalar_dense", "copy to the CPU", "_local_scalar_dense", "equal", "index", "nonzero", "index_put_"]
    assert [wait.what for wait in device.waits] == [*reads, "copy to the device"]


def test_the_fake_device_refuses_tensors_of_the_cpu():
    with FakeDevice(), pytest.raises(RuntimeError, match="expected all tensors on maia"):
        DeviceTensor(torch.ones(2)) + torch.ones(2)


def test_a_copy_without_a_wait_holds_nonsense_until_the_host_has_waited():
    with FakeDevice() as device:
        there = DeviceTensor(torch.tensor([True, False]))
        copied, event = there.to("cpu", non_blocking=True), torch.Event(DEVICE)
        event.record()
        assert copied.tolist() == [False, True]
        assert not device.waits
        _ = there & there, there | there
        event.synchronize()
        event.synchronize()  # known to be done
        assert copied.tolist() == [True, False]
        assert [(wait.what, wait.queued) for wait in device.waits] == [("event", 2)]


# ---- decodes on it


@dataclass
class OnDevice:
    """A decode on the fake device. The lists have an entry for each decode step but the first, which reads the clock.

    Attributes:
        tokens: The returned sequences.
        waits: The waits of the host.
        answers: The device of each answer of ``should_exit``.
    """

    tokens: torch.Tensor
    waits: list
    answers: list


class Marks(LogitsProcessor):
    """Notes how long some lists are when a step begins."""

    def __init__(self, *growing):
        self.growing, self.marks = growing, []

    def __call__(self, input_ids, scores):
        self.marks.append([len(each) for each in self.growing])
        return scores

    def steps(self):
        lengths = zip(*self.marks[1:], strict=True)
        return [[each[a:b] for a, b in pairwise(at)] for each, at in zip(self.growing, lengths, strict=True)]


class Noted:
    """A strategy that notes where its answers are."""

    def __init__(self, strategy, answers):
        self._strategy, self._answers = strategy, answers
        if hasattr(strategy, "should_exit"):
            self.should_exit = self._should_exit

    def __getattr__(self, name):
        return getattr(self._strategy, name)

    def _should_exit(self, state):
        exits = self._strategy.should_exit(state)
        self._answers.append(exits.device.type)
        return exits


def calls(way):
    rows, options = WAYS[way]
    input_ids, mask = laws.prompts(rows)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, **options}


def decoded(model, strategy, way):
    """Decode on the fake device; None stands for plain ``generate``."""
    device, answers = FakeDevice(), []
    marks = Marks(device.waits, answers)
    call = {"logits_processor": LogitsProcessorList([marks])}
    for name, value in calls(way).items():
        call[name] = DeviceTensor(value) if isinstance(value, torch.Tensor) else value
    with device, torch.no_grad(), nullcontext() if strategy is None else applied(model, Noted(strategy, answers)):
        tokens = model.generate(**call)
    return OnDevice(tokens.values, *marks.steps())


@pytest.fixture(scope="module")
def there(tiny):
    """Decode on the fake device, each strategy once in each way."""
    model, done = on_fake_device(tiny("llama")), {}

    def get(strategy, way):
        key = repr(strategy), way
        if key not in done:
            done[key] = decoded(model, strategy, way)
        return done[key]

    return get


SCHEDULED = [FullDepth(), HSD(2, 0, 4), SkipDecode(1, 4), Changing(), RandomPlan(0.5)]
CONFIDENT = [
    CALM(0.4),
    CALM(0.4, exit_rule="min"),
    CALM(0.5, measure="saturation", exit_rule="source_mean"),
    CALM(0.5, measure="classifier", classifier=CLASSIFIER),
    DeeBERT(0.7, shortlist=8, exit_rule="mean", check_vocabulary=40),
    PABEE(patience=1, exit_rule="source_min"),
    PABEE(patience=2),
    Compose(HSD(2, 0, 4), CALM(0.5)),
]


@pytest.mark.parametrize(("strategy", "way"), in_turns(product(SCHEDULED, WAYS), 3), ids=ids)
def test_a_step_whose_layers_are_known_waits_no_more_than_plain_generate(there, strategy, way):
    ours, plain = (there(each, way) for each in (strategy, None))
    assert {len(waits) for waits in plain.waits} <= {1, 2}  # transformers asks whether to go on, and about padding
    for waits, of_plain in zip(ours.waits, plain.waits, strict=False):
        assert [wait.what for wait in waits] == [wait.what for wait in of_plain]


@pytest.mark.parametrize(("strategy", "way"), in_turns(product(CONFIDENT, WAYS), 3), ids=ids)
def test_a_check_waits_once(there, strategy, way):
    ours, plain = (there(each, way) for each in (strategy, None))
    assert any("maia" in answers for answers in ours.answers)
    for waits, answers in zip(ours.waits, ours.answers, strict=True):
        assert len(waits) - len(plain.waits[0]) == answers.count("maia")


EVERY = list(product([*SCHEDULED, *CONFIDENT, GATED, CALM(0.3, late_exit=True)], WAYS))


@pytest.mark.parametrize(("strategy", "way"), in_turns(EVERY, 3), ids=ids)
def test_the_tokens_are_those_of_the_cpu(there, tiny, strategy, way):
    with torch.no_grad(), strategy.applied_to(tiny("llama")):
        expected = tiny("llama").generate(**calls(way))
    assert torch.equal(there(strategy, way).tokens, expected)


def test_a_gate_waits_once_more_where_a_sequence_passes_it(there):
    for way in ("one", "batch", "beams"):
        ours, plain = (there(each, way) for each in (GATED, None))
        for waits, answers in zip(ours.waits, ours.answers, strict=True):
            gates = [wait.what for wait in waits].count("nonzero")
            assert gates == len(answers) - 1  # there is no saturation after the first executed layer
            assert len(waits) - gates - len(plain.waits[0]) == answers.count("maia") <= gates


@pytest.mark.parametrize(
    ("strategy", "checks"),
    [
        (CALM(1.0), 0),
        (CALM(1e-9, probe_layers=2), 1),  # 1e-9 is always reached, 0 without a look
        (CALM(0.0, probe_layers=2), 0),
        (DeeBERT(0.0), 0),
        (CALM(schedule="depth", slope=0.0), 0),
        (CALM(0.999999), 5),  # of 6 layers, the last is not checked
        (CALM(0.999999, probe_layers=[2, 5]), 1),
        (CALM(0.999999, late_exit=True), 4),  # nor the last but one
        (PABEE(patience=3), 2),  # after 4 and 5 predictions
        (PABEE(patience=None), 0),
        (Compose(SkipDecode(2, 2), CALM(0.999999)), 2),  # of 3 layers
    ],
    ids=repr,
)
def test_no_wait_where_the_answer_is_known(there, strategy, checks):
    ours = there(strategy, "one")
    assert [len(waits) - 1 for waits in ours.waits] == [checks] * 4


# ---- late exit


@pytest.mark.parametrize("strategy", [CALM(0.4), CALM(0.5, exit_rule="min"), PABEE(patience=1)], ids=repr)
@pytest.mark.parametrize("way", ["one", "batch", "beams"])
def test_the_device_is_busy_while_the_host_waits_for_a_late_exit(there, strategy, way):
    late = strategy.changed(late_exit=True)
    ours, usual = (there(each, way) for each in (late, strategy))
    queued = [wait.queued for waits in ours.waits for wait in waits if wait.what == "event"]
    assert queued
    assert min(queued) > 20  # a layer's operators
    assert all(wait.queued == 0 for waits in usual.waits for wait in waits)
