"""Attention over the keys and values of a prompt, held once for all rows of a source, and over those of new tokens.

Beams, or several sampled sequences, share the prompt. A layer that attends is given :class:`TwoParts`, which stands
for all keys (or values) of all rows. torch's ``scaled_dot_product_attention`` is computed for each part, and joined
exactly by the log-sum-exp of the scores. Every other function gets ordinary tensors, in which the parts are joined: so
an attention of any kind computes the same, and this one computes it without copies.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from hsdlab.decoding.families import decoder_config

_PROPERTIES: tuple[Any, ...] = (Tensor.shape, Tensor.dtype, Tensor.device)
_METADATA = {Tensor.size, Tensor.dim, *(each.__get__ for each in _PROPERTIES)}


FEWEST_TOKENS = 512
"""With fewer tokens in all prompts of a batch, attending to a copy for each row is faster than joining two parts."""


class StepRows:
    """The rows of a decode step, and those with which the current layer was called.

    Args:
        copies: Consecutive rows that share a source.
        prompt_length: Length of the (padded) prompt, tokens.

    Attributes:
        copies: As given.
        called: The rows that run the current layer, LongTensor on the device; None for all.
    """

    def __init__(self, copies: int, prompt_length: int) -> None:
        self.copies = copies
        self.called: Tensor | None = None
        self._called_mask: Tensor | None = None
        self._prompt_length = prompt_length
        self._mask: Tensor | None = None
        self._added: Tensor | None = None
        self._plain = True

    def begin_layer(self, mask: Tensor | None, called_mask: Tensor | None, called: Tensor | None) -> None:
        """Note how a layer is called.

        Args:
            mask: BoolTensor [rows, 1, 1, length], true where a row attends; None where all attend to everything. Other
                masks are left to the model's own attention.
            called_mask: The mask of the rows called.
            called: The rows called, LongTensor on the device; None for all.
        """
        self.called, self._called_mask = called, called_mask
        if mask is not self._mask:
            self._mask = mask
            self._read(mask)

    def _read(self, mask: Tensor | None) -> None:
        self._added = None
        self._plain = mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1:3] == (1, 1))
        if mask is None or not self._plain:
            return
        self._plain = bool(mask[..., self._prompt_length :].all())
        prompt = mask[:: self.copies, :, :, : self._prompt_length]  # rows of a source have the same padding
        self._added = torch.zeros(prompt.shape, device=mask.device).masked_fill_(~prompt, -torch.inf)

    def serves(self, mask: Tensor | None) -> bool:
        """Say whether attention with this mask can be computed part by part.

        Args:
            mask: What the model passes to its attention.

        Returns:
            True for the mask with which the current layer was called, if it masks nothing but padding of the prompt.
        """
        return self._plain and mask is self._called_mask

    def added_to_prompt(self, dtype: torch.dtype) -> Tensor | None:
        """Get what is added to the scores of the prompt.

        Args:
            dtype: Of the scores.

        Returns:
            [sources, 1, 1, prompt], 0 or minus infinity; None where every token of the prompt is attended to.
        """
        if self._added is not None and self._added.dtype != dtype:
            self._added = self._added.to(dtype)
        return self._added


def can_split(model: PreTrainedModel) -> bool:
    """Say whether a model attends by torch's function, on a device where its parts can be joined, which is a CPU.

    Args:
        model: Its attention implementation and device count.

    Returns:
        True for "sdpa" on a CPU.
    """
    config = decoder_config(model.config)
    return config._attn_implementation == "sdpa" and model.device.type == "cpu"


def split_pays(prompt_tokens: int) -> bool:
    """Say whether to hold the prompts apart from the new tokens.

    Args:
        prompt_tokens: Tokens of all prompts of the batch together, each source once.

    Returns:
        False for few, which are copied for each row.
    """
    return prompt_tokens >= FEWEST_TOKENS


class TwoParts(Tensor):
    """Keys or values [rows called, heads, length, head dim] in two parts.

    Args:
        prompt: Those of the prompt, [sources, heads, prompt, head dim].
        new: Those of the new tokens of all rows, [rows, heads, new tokens, head dim].
        step: The rows of the step.
    """

    _prompt: Tensor
    _new: Tensor
    _step: StepRows

    @staticmethod
    def __new__(cls: type, prompt: Tensor, new: Tensor, step: StepRows) -> "TwoParts":
        """Make the tensor; it has no memory of its own."""
        rows, heads, new_tokens, size = new.shape
        called = rows if step.called is None else len(step.called)
        shape = (called, heads, prompt.shape[2] + new_tokens, size)
        made: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=new.dtype, device=new.device)
        made._prompt, made._new, made._step = prompt, new, step
        return made

    def joined(self) -> Tensor:
        """Join both parts of the rows called.

        Returns:
            An ordinary tensor, a copy, [rows called, heads, length, head dim].
        """
        prompt = self._prompt.repeat_interleave(self._step.copies, dim=0)
        whole = torch.cat([prompt, self._new], dim=2)  # (rows, heads, length, head dim)
        return whole if self._step.called is None else whole.index_select(0, self._step.called)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is scaled_dot_product_attention:
            output = _attention(*args, **kwargs)
            if output is not None:
                return output
        args, kwargs = tree_map(_plain, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *args: Any) -> Any:
        """Refuse what goes past Python: the tensor has no memory of its own."""
        raise RuntimeError(f"{func} cannot read keys and values that are held in two parts.")


def _plain(value: Any) -> Any:
    return value.joined() if isinstance(value, TwoParts) else value


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attend with one query token of each row, or return None where the call is of another kind.

    Args:
        query: [rows called, heads, 1, head dim]; or [rows called, key/value heads, group, head dim], the query heads of
            a group as tokens.
        key: :class:`TwoParts`, as ``value`` is.
        value: See ``key``.
        attn_mask: See :class:`StepRows`.
        dropout_p: 0.
        is_causal: False.
        scale: Of the scores.
        enable_gqa: Whether several query heads may share keys and values.

    Returns:
        Of the shape of ``query``.
    """
    if not isinstance(key, TwoParts) or not isinstance(value, TwoParts) or dropout_p or is_causal:
        return None
    if key._new.shape[3] != value._new.shape[3]:  # latent attention (DeepSeek), which the joined function does not take
        return None
    step, heads = key._step, key._new.shape[1]
    grouped = query.shape[1] == heads  # the query tokens are query heads, if there are several
    if not step.serves(attn_mask) or not (grouped or (enable_gqa and query.shape[2] == 1)):
        return None
    rows, size = key._new.shape[0], query.shape[3]
    whole = query
    if step.called is not None:  # the other rows are computed too, and dropped: no row's keys are copied
        whole = query.new_zeros(rows, *query.shape[1:]).index_copy(0, step.called, query)
    by_group = whole.reshape(rows, heads, -1, size)  # (rows, heads, group, head dim)
    by_source = by_group.unflatten(0, (-1, step.copies)).transpose(1, 2)  # (sources, heads, copies, group, head dim)
    prompt, prompt_sum = _part(by_source.flatten(2, 3), key._prompt, value._prompt, step, scale)
    new, new_sum = _part(by_group, key._new, value._new, None, scale)
    # back to (rows, heads, group, …)
    prompt = prompt.unflatten(2, (step.copies, -1)).transpose(1, 2).flatten(0, 1)
    prompt_sum = prompt_sum.unflatten(2, (step.copies, -1)).transpose(1, 2).flatten(0, 1)
    share = (prompt_sum - new_sum).sigmoid().unsqueeze(-1)  # of the prompt, exp(a) / (exp(a) + exp(b))
    output = new.lerp(prompt, share.to(new.dtype)).reshape(whole.shape)
    return output if step.called is None else output.index_select(0, step.called)


def _part(
    query: Tensor, key: Tensor, value: Tensor, step: StepRows | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attend to one part; return the output, and the log-sum-exp of the scores, which is without the last dimension."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key,
        value,
        attn_mask=None if step is None else step.added_to_prompt(query.dtype),
        scale=scale,
    )
