"""Numbers that are not finite stop a training where they arise, before they reach a checkpoint or an export."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.errors import RunError
from hsdlab.stored import plain_tensors

_MOST_NAMED = 8  # examples of a batch


def check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity.

    Args:
        values: Of any shape and dtype.
        what: What the values are, as the subject of the message.

    Raises:
        RunError: A value is not finite.
    """
    if not torch.isfinite(values).all():
        raise RunError(
            f"{what} is not finite, so no file is written. Lower the learning rate (--model.learning_rate), or look "
            "for what is unusual in the data. The last checkpoint was written before this step."
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

    On a GPU this waits for the forward pass once a batch, which the masks of the loss do anyway.

    Args:
        loss: A scalar.
        what: Name of the loss and its step, for the message.
        ids: Ids of the examples in the batch.
        model: The model in which the first layer with NaN or infinity is searched.
        again: Computes the loss once more. It is called for a loss that is not finite only.
        before: Ids of the examples of the step before, if there was one.
        agree: Tells whether a condition holds in any process; by default in this one. All processes of a training have
            to stop together, since one that is left waits for the others' gradients.

    Raises:
        RunError: The loss is not finite. The message names the examples, and the first layer whose output is not
            finite.
    """
    is_bad = not torch.isfinite(loss)
    if not agree(is_bad):
        return
    if not is_bad:
        raise RunError(f"{what} is not finite in another process. The message of that process names the examples.")
    raise RunError(
        f"{what} is {loss.item()} for the examples {_named(ids)}: {_where(model, again, before)}. Lower the learning "
        "rate (--model.learning_rate), or look for what is unusual in these examples. The last checkpoint was written "
        "before this step."
    )


def _named(ids: Sequence[str]) -> str:
    return ", ".join(list(ids)[:_MOST_NAMED]) + (", …" if len(ids) > _MOST_NAMED else "")


def _where(model: nn.Module, again: Callable[[], Any], before: Sequence[str]) -> str:
    """Name the weights or the layer output that are not finite, for a message."""
    for name, weight in model.named_parameters():
        if not all(torch.isfinite(plain).all() for plain in plain_tensors(weight)):
            examples = f" (examples {_named(before)})" if before else ""
            return f"the weights {name} are not finite since the step before{examples}"
    part = first_not_finite(model, again)
    return f"the first output that is not finite is that of {part}" if part else "all layers' outputs are finite"


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Find the first part of a model, in the order of the computation, whose output has a NaN or infinity.

    Args:
        model: Its submodules are watched by forward hooks, which are removed again.
        run: Runs the model. No gradient is kept.

    Returns:
        Name of the submodule, as in `named_modules`; None if all outputs are finite.
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
    """Walk through nested values.

    Args:
        value: A tensor, or nested mappings, lists and tuples. Other values are left out.

    Yields:
        The tensors, in order.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
