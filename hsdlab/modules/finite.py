"""Numbers that are not finite stop a training where they arise, before they reach a checkpoint or an export."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.errors import RunError

_MOST_NAMED = 8  # examples of a batch


def check_finite(values: Tensor, what: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        RunError: With what they are.
    """
    if not torch.isfinite(values).all():
        raise RunError(
            f"{what} is not finite: nothing of it is written. Lower the learning rate (--model.learning_rate), or look "
            "for what is unusual in the data. The last checkpoint is from before."
        )


def check_loss(
    loss: Tensor,
    what: str,
    ids: Sequence[str],
    model: nn.Module,
    again: Callable[[], Any],
    before: Sequence[str] = (),
    agree: Callable[[bool], bool] = bool,
) -> None:
    """Refuse the loss of a batch that is not finite.

    On a GPU this waits for the forward pass, once a batch. The masks of the loss already do.

    Args:
        loss: A scalar.
        what: Which loss, of which step.
        ids: Of the examples in the batch.
        model: Whose layers are looked at.
        again: Computes the loss once more: only then, to find the first layer.
        before: The examples of the step before, if there was one.
        agree: Tells whether it holds in any process; by default in this one. All of a training have to stop together:
            one that is left alone waits for the others' gradients.

    Raises:
        RunError: With the examples, and with the first layer whose output is not finite.
    """
    is_bad = not torch.isfinite(loss)
    if not agree(is_bad):
        return
    if not is_bad:
        raise RunError(f"{what} is not finite in another process: its message says of which examples.")
    raise RunError(
        f"{what} is {loss.item()}, of the examples {_named(ids)}: {_where(model, again, before)}. Lower the learning "
        "rate (--model.learning_rate), or look for what is unusual in these examples. The last checkpoint is from "
        "before."
    )


def _named(ids: Sequence[str]) -> str:
    return ", ".join(list(ids)[:_MOST_NAMED]) + (", …" if len(ids) > _MOST_NAMED else "")


def _where(model: nn.Module, again: Callable[[], Any], before: Sequence[str]) -> str:
    """Say where the first numbers arise that are not finite."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            examples = f", of the examples {_named(before)}" if before else ""
            return f"the weights {name} are not finite since the step before{examples}"
    part = first_not_finite(model, again)
    return f"the first output that is not finite is that of {part}" if part else "all layers' outputs are finite"


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Run a model and return the name of its first part, in the order of the computation, with a NaN or infinity.

    Args:
        model: Its parts are watched.
        run: Has it compute something; no gradient is kept.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def after(part: nn.Module, arguments: Any, output: Any) -> None:
            floats = (tensor for tensor in tensors_in(output) if tensor.is_floating_point())
            if not found and not all(torch.isfinite(tensor).all() for tensor in floats):
                found.append(name or type(part).__name__)

        return after

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
