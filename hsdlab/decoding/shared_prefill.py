"""One prefill for several decodes of the same prompts: what its layers computed is taken over, not computed again.

Strategies that run all layers over the prompt start from the same keys and values. Inside :func:`shared_prefill` the
first decode of a batch records them, and later decodes of the same batch run no layer in their prefill. The embedding
before the layers, and norm and head after them, run in each decode. A strategy with a prompt schedule neither takes
over nor records: its prompt owes keys and values of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.decoding.timing import now_s


class Prefill:
    """What the layers computed over the prompts of one batch. The tensors are never written to.

    Attributes:
        keys_and_values: Those of each layer, [sources, heads, prompt, head dim] each, by the layer's index.
        output: Of the last layer, [sources, prompt, d]; None until all layers have run.
        layers_s: Seconds from the first layer's begin to the last layer's end.
    """

    def __init__(self) -> None:
        self.keys_and_values: dict[int, tuple[Tensor, Tensor]] = {}
        self.output: Tensor | None = None
        self.layers_s = 0.0
        self._began_s = 0.0

    def begin(self, device: torch.device) -> None:
        """Note that the first layer begins.

        Args:
            device: Of the model.
        """
        self._began_s = now_s(device)

    def finish(self, output: Tensor) -> None:
        """Keep the output of the last layer; from now on, other decodes can take the prefill over.

        Args:
            output: [sources, prompt, d].
        """
        self.layers_s = now_s(output.device) - self._began_s
        self.output = output


@dataclass
class _Recorded:
    """A prefill, and all that it depends on."""

    model: nn.Module
    tensors: dict[str, Tensor]
    sizes: tuple[int, int]
    prefill: Prefill = field(default_factory=Prefill)

    def has(self, tensors: Mapping[str, Tensor]) -> bool:
        """Tell whether all layers have run over these prompts."""
        return (
            self.prefill.output is not None
            and self.tensors.keys() == tensors.keys()
            and all(torch.equal(mine, tensors[name]) for name, mine in self.tensors.items())
        )


_recorded: ContextVar[list[_Recorded] | None] = ContextVar("recorded prefills", default=None)


@contextmanager
def shared_prefill() -> Iterator[None]:
    """Share prefills between the decodes inside the block.

    The block must neither change the model's weights nor switch an adapter on or off. Tokens, logits and traces are
    those of decodes outside the block. Prefills are shared between decodes of the same model with the same prompts,
    ``attention_mask``, number of beams and ``max_new_tokens``. A decode without an ``attention_mask`` shares none. The
    block holds the keys and values of all layers for the prompts that were decoded last, and frees them when other
    prompts come and on leaving.

    Yields:
        Nothing; decode inside the block.
    """
    token = _recorded.set([])
    try:
        yield
    finally:
        _recorded.reset(token)


def prefill_to_share(model: nn.Module, given: Mapping[str, Any], rows: int, max_steps: int) -> Prefill | None:
    """Find the prefill that a decode takes over or records.

    Args:
        model: The transformers model.
        given: The arguments of the decode, of which tensors count: what the model reads of the prompts.
        rows: Rows of a decode step.
        max_steps: T. Rows and T decide in which layout the weights are multiplied.

    Returns:
        With an ``output``, the decode takes it over. Without one, the decode has to record into it. None outside of
        :func:`shared_prefill`, and where transformers finds the padding by itself.
    """
    recorded = _recorded.get()
    if recorded is None or given.get("attention_mask") is None:
        return None
    tensors = {name: each for name, each in given.items() if isinstance(each, Tensor)}
    recorded[:] = [each for each in recorded if each.has(tensors)]
    for each in recorded:
        if each.model is model and each.sizes == (rows, max_steps):
            return each.prefill
    kept = {name: each.clone() for name, each in tensors.items()}  # the caller may write into its own
    recorded.append(_Recorded(model, kept, (rows, max_steps)))
    return recorded[-1].prefill
