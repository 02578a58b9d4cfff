"""What a decode step costs, in counts that no machine changes: numbers copied, and answers awaited from the device."""

from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessor, LogitsProcessorList

from hsdlab import HSD, FullDepth
from hsdlab import testing as laws
from tests.law_cells import by_family, ids
from tests.strategies_for_tests import RandomPlan

COPIES = ("cat", "index_select", "index", "gather", "copy_", "clone", "repeat", "_to_copy")


class Counter(TorchDispatchMode):
    """Counts, per decode step, the floating-point numbers that were copied, and the answers read from the device."""

    def __init__(self):
        super().__init__()
        self.copied, self.read = [], []

    def begin_step(self):
        self.copied.append(0)
        self.read.append(0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.copied and name in COPIES and out.is_floating_point():
            self.copied[-1] += out.numel()
        if self.read and name == "_local_scalar_dense":
            self.read[-1] += 1
        return out


class Steps(LogitsProcessor):
    def __init__(self, counter):
        self.counter = counter

    def __call__(self, input_ids, scores):
        self.counter.begin_step()
        return scores


def counted(model, strategy, mode, padding):
    """Decode three prompts of 5 tokens, with so much padding before them; None stands for plain ``generate``."""
    ids, mask = (torch.nn.functional.pad(part, (padding, 0)) for part in laws.prompts(3))
    counter = Counter()
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": 6,
        "eos_token_id": None,
        "logits_processor": LogitsProcessorList([Steps(counter)]),
        **laws.MODES[mode],
    }
    with counter:
        if strategy is None:
            model.generate(**call)
        else:
            with strategy.applied_to(model):
                model.generate(**call)
    return counter


WAYS = list(product([FullDepth(), HSD(2, 0, 4)], ["greedy", "beam"]))


@pytest.mark.parametrize(("family_model", "strategy", "mode"), by_family(WAYS), ids=ids, indirect=["family_model"])
def test_a_step_copies_nothing_of_the_prompt(family_model, strategy, mode):
    short, long = (counted(family_model, strategy, mode, padding) for padding in (0, 40))
    # the last gap ends with the decode; padding in the mask costs one conversion of it, [sources, prompt], a step
    for here, there in zip(short.copied[1:-1], long.copied[1:-1], strict=True):
        assert there - here <= 3 * 40


def test_plain_generate_copies_the_prompt_in_each_step(family_model):
    """So the test above can fail."""
    short, long = (counted(family_model, None, "greedy", padding) for padding in (0, 40))
    assert long.copied[2] - short.copied[2] >= 2 * 6 * 3 * 40 * 16


def test_a_scheduled_step_waits_for_the_device_no_more_than_plain_generate(family_model):
    plain = counted(family_model, None, "greedy", 0)
    for strategy in (FullDepth(), HSD(2, 0, 4)):
        assert counted(family_model, strategy, "greedy", 0).read[:-1] == plain.read[:-1]
    assert counted(family_model, RandomPlan(share=0.5), "greedy", 0).read[1] > plain.read[1]
