"""Strategies that the tests need: hard ones that obey the laws, and broken ones that must be caught."""

from contextlib import contextmanager
from dataclasses import replace

import torch

from hsdlab import HSD, ScheduledStrategy, SkipStrategy, SubLayers


class RandomPlan(SkipStrategy):
    """Each row runs its own random layers in each step."""

    rows_depend = "a row's layers are drawn by its place in the batch"

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def plan(self, state):
        generator = torch.Generator().manual_seed(state.step)
        plan = torch.rand(state.rows, state.num_layers, generator=generator) < self.share
        plan[:, 0] |= ~plan.any(dim=1)
        return plan

    def never_skip(self):
        return RandomPlan(share=2.0)


class RandomParts(RandomPlan):
    """Each row runs attention and MLP of random layers in each step."""

    def plan(self, state):
        generator = torch.Generator().manual_seed(state.step)
        plan = torch.rand(state.rows, state.num_layers, 2, generator=generator) < self.share
        plan[:, 0, 1] |= ~plan.flatten(1).any(dim=1)
        return plan

    def never_skip(self):
        return RandomParts(share=2.0)


class ChangingParts(ScheduledStrategy):
    """Other sub-layers in every step, and whole layers in some: every kind of entry is filled late."""

    def layers_at(self, step, num_layers, max_steps):
        layers = range(num_layers)
        if step % 4 == 3:
            return [i for i in layers if (i + step) % 2]
        return SubLayers([i for i in layers if (i + step) % 3], [i for i in layers if (i + step) % 4])


class Changing(ScheduledStrategy):
    """Other layers in every step, the first and the last among those passed by: every entry is filled late."""

    def layers_at(self, step, num_layers, max_steps):
        return [i for i in range(num_layers) if (i + step) % 3]


class ChangingPrompt(Changing):
    """Other layers for every token of the prompt too; where a prompt token skips a layer, new tokens run it."""

    def prompt_layers(self, position, prompt_length, num_layers):
        return [i for i in range(num_layers) if (i + position) % 3 != 1]


class Leaks(HSD):
    """Leaves a hook behind."""

    @contextmanager
    def applied_to(self, model, max_new_tokens=None):
        model.register_forward_hook(lambda *args: None)
        with super().applied_to(model, max_new_tokens) as run:
            yield run


class LeaksOnException(HSD):
    """Restores what it changed only if all went well."""

    @contextmanager
    def applied_to(self, model, max_new_tokens=None):
        model.config.skipping = True
        with super().applied_to(model, max_new_tokens) as run:
            yield run
        del model.config.skipping


class CountsItsSteps(ScheduledStrategy):
    """Keeps a state that soon does not change any more: a few decodes later it looks innocent."""

    def __init__(self):
        self.calls = 0

    def layers_at(self, step, num_layers, max_steps):
        self.calls += 1
        return range(max(1, num_layers - self.calls))


class KeepsState(ScheduledStrategy):
    """Skips more with every decode."""

    def __init__(self) -> None:
        self._decodes = 0

    def scheduled_layers(self, num_layers, max_steps):
        self._decodes += 1
        return super().scheduled_layers(num_layers, max_steps)

    def layers_at(self, step, num_layers, max_steps):
        return range(0, num_layers, 1 + self._decodes % 3)


class LiesInItsTrace(HSD):
    """Claims to have run half of what it ran."""

    @contextmanager
    def applied_to(self, model, max_new_tokens=None):
        with super().applied_to(model, max_new_tokens) as run:
            run.on_decode = lambda output: setattr(
                run,
                "output",
                replace(output, trace=replace(output.trace, executed=_half(output.trace.executed))),
            )
            yield run


def _half(executed):
    fewer = executed.clone()
    fewer[:, :, ::2] = False
    return fewer


class IgnoresItsKnob(ScheduledStrategy):
    """Has a parameter and does not look at it."""

    def __init__(self, keep: int = 4) -> None:
        self.keep = keep

    def layers_at(self, step, num_layers, max_steps):
        return range(num_layers)

    def never_skip(self):
        return IgnoresItsKnob(keep=1000)


class ChangesAtNeverSkip(ScheduledStrategy):
    """Its setting that never skips drops a layer."""

    def __init__(self, keep: int = 4) -> None:
        self.keep = keep

    def layers_at(self, step, num_layers, max_steps):
        return range(min(self.keep, num_layers - 1))

    def never_skip(self):
        return ChangesAtNeverSkip(keep=1000)
