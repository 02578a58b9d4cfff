"""``generate(…, compile=True)``: decode steps of fixed shape, compiled layer by layer.

``torch.compile`` compiles one function that runs one layer. Layers of one class share the compiled code, since their
weights are its inputs: it does not depend on which layers a step executes. On CUDA each executed set of layers is
captured once as a CUDA graph (:mod:`hsdlab.decoding.step_graphs`). transformers' ``generate`` drives the loop as ever;
in its decode steps the model's ``forward`` is replaced. The prefill is not compiled.

The layers have to be known before decoding, the same for all rows, and no layer may need late KV computations, whose
number of tokens differs from step to step. :func:`check_compilation` refuses everything else.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import FAMILIES, DecoderParts, decoder_config
from hsdlab.decoding.guard import unrecorded_pass
from hsdlab.decoding.static_cache import COLUMNS, LayerBlock, StaticCache, StepBuffers
from hsdlab.decoding.step_graphs import Capture, StepGraphs, Warmup
from hsdlab.errors import RunError, UserError
from hsdlab.reasons import reason

MOST_SHAPES = 1024
"""Compiled versions of a layer that torch may keep: of each dtype, number of rows and columns, kind of layer."""

_INPUTS = {
    "input_ids",
    "position_ids",
    "attention_mask",
    "past_key_values",
    "use_cache",
    "return_dict",
    "logits_to_keep",
}
_PROMPT_TOKENS = 64  # of the prompt by which a prompt schedule is noticed before there is a prompt
_ATTENTIONS = ("sdpa", "eager")
_ROTATIONS_OF_LENGTH = ("dynamic", "longrope")  # they read the largest position to choose their frequencies


@dataclass(frozen=True)
class Compilation:
    """How decode steps are compiled.

    Attributes:
        backend: Of ``torch.compile``.
        capture: What captures the decode step of each executed set of layers. None captures CUDA graphs on CUDA, and
            nothing on other devices.
    """

    backend: str | Callable[..., Any] = "inductor"
    capture: Capture | None = None


def compilation_of(compile: object) -> Compilation | None:
    """Read the option ``compile``.

    Args:
        compile: True, False, or a :class:`Compilation`.

    Returns:
        How to compile; None for not at all.

    Raises:
        UserError: It is something else.
    """
    if isinstance(compile, Compilation):
        return compile
    if not isinstance(compile, bool):
        raise UserError(f"compile is {compile!r}; expected True or False.")
    return Compilation() if compile else None


def check_compilation(parts: DecoderParts, decisions: Decisions, config: GenerationConfig | None = None) -> None:
    """Refuse what cannot be compiled.

    Args:
        parts: The model's parts.
        decisions: Those of the strategy.
        config: The options of the call; None where there is none yet.

    Raises:
        UserError: The message says what cannot be compiled, and why.
    """
    if not decisions.same_for_all_rows:
        raise UserError(
            f"compile=True: {decisions.name} chooses layers while it decodes. Only a schedule can be compiled, such as "
            "that of HSD, SkipDecode, StaticDepth or FullDepth; leave compile out."
        )
    if decisions.may_fill:
        raise UserError(
            f"compile=True: {decisions.name} runs layers that an earlier step skipped, which needs late KV "
            "computations. Only a schedule whose sets of layers shrink can be compiled; leave compile out."
        )
    if decisions.in_parts:
        raise UserError(
            f"compile=True: {decisions.name} runs attention and MLP apart. Only whole layers can be compiled; leave "
            "compile out."
        )
    last = parts.num_layers - 1
    if parts.exits is not None and parts.exits.rank is not None and not decisions.always_runs(last):
        raise UserError(
            f"compile=True: {decisions.name} exits below the last layer, and the exits of this model have adapters, "
            "which are not compiled; leave compile out."
        )
    check_prompt(decisions, torch.ones(1, _PROMPT_TOKENS, dtype=torch.bool))
    name = type(parts.model).__name__
    tested = sorted(name for name, family in FAMILIES.items() if family.compiled)
    if decoder_config(parts.model.config).model_type not in tested:
        raise UserError(
            f"compile=True: {name} is not of a family that is tested compiled ({', '.join(tested)}); leave compile out."
        )
    attention = decoder_config(parts.model.config)._attn_implementation
    if attention not in _ATTENTIONS:
        raise UserError(
            f"compile=True: {name} attends by {attention!r}, which takes no mask of fixed shape; load it with "
            f"attn_implementation={_ATTENTIONS[0]!r}."
        )
    rotation = (getattr(decoder_config(parts.model.config), "rope_parameters", None) or {}).get("rope_type")
    if rotation in _ROTATIONS_OF_LENGTH:
        raise UserError(
            f"compile=True: the rotary embeddings of {name} ({rotation}) depend on the length of the text; leave "
            "compile out."
        )
    if getattr(parts.model, "is_quantized", False):
        raise UserError(
            f"compile=True: the weights of {name} are quantised, which is not supported; leave compile out."
        )
    if any(hasattr(layer, "_hf_hook") for layer in parts.layers):
        raise UserError(f"compile=True: a device_map has placed the layers of {name}; leave compile out.")
    if any(type(module).__module__.startswith("peft.") for layer in parts.layers for module in layer.modules()):
        raise UserError("compile=True: an adapter is in the layers; merge it first (merge_and_unload).")
    if torch.is_autocast_enabled(parts.model.device.type):
        raise UserError(
            "compile=True: autocast keeps copies of the weights that a CUDA graph would outlive. Load the model in the "
            "dtype (--model.dtype=bfloat16) and decode without autocast (--trainer.precision)."
        )
    if config is not None and (config.output_hidden_states or config.output_attentions):
        raise UserError("compile=True: output_hidden_states and output_attentions cannot be had from compiled steps.")


def check_prompt(decisions: Decisions, valid: Tensor) -> None:
    """Refuse a prompt schedule, under which a decode step would need late KV computations of the prompt.

    Args:
        decisions: Those of the strategy.
        valid: BoolTensor [rows, prompt] on the CPU, false at padding.

    Raises:
        UserError: Some token of the prompt skips a layer.
    """
    if decisions.prompt_layers(valid) is not None:
        raise UserError(
            f"compile=True: {decisions.name} skips layers in the prompt, which needs late KV computations; leave "
            "compile or the prompt schedule out."
        )


def run_layer(
    forward: Callable[..., Any],
    layer: nn.Module,
    hidden: Tensor,
    keys: Tensor,
    values: Tensor,
    column: Tensor,
    cache_name: str,
    arguments: dict[str, Any],
) -> Tensor:
    """Run a layer in a decode step. This is what is compiled.

    Args:
        forward: The forward of the layer's class, which takes ``self`` first.
        layer: The layer.
        hidden: What arrives at it, [rows, 1, d].
        keys: Its block of keys, [rows, heads, columns, head dim], which is written in place.
        values: Its block of values, likewise.
        column: The column to write, LongTensor [1].
        cache_name: The parameter of ``forward`` that takes the KV cache.
        arguments: The other arguments of ``forward`` by name.

    Returns:
        The hidden state after the layer, [rows, 1, d].
    """
    output = forward(layer, hidden, **arguments, **{cache_name: LayerBlock(keys, values, column)})
    return output[0] if isinstance(output, tuple) else output


def run_module(forward: Callable[..., Any], module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run a module beside the layers, such as the final norm or the rotary embeddings. This is compiled too.

    Args:
        forward: The forward of its class, which takes ``self`` first.
        module: The module.
        args: Its other positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Its output.
    """
    return forward(module, *args, **kwargs)


@functools.cache
def _compiled(function: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


def _beside_layers(parts: DecoderParts) -> list[nn.Module]:
    """Return the modules beside the layers that launch several kernels; torch's own (an embedding) launch one."""
    others = [module for module in parts.body.children() if not isinstance(module, nn.ModuleList)]
    return [m for m in others if not type(m).__module__.startswith("torch.") and "forward" not in vars(m)]


@dataclass(frozen=True)
class _Workspace:
    """What is kept with a model for its next decode of the same shape.

    Attributes:
        made_for: What it depends on.
        buffers: The tensors that a step reads and writes.
        graphs: Runs the steps.
    """

    made_for: tuple[Any, ...]
    buffers: StepBuffers
    graphs: StepGraphs


_workspaces: WeakKeyDictionary[nn.Module, _Workspace] = WeakKeyDictionary()  # one each: it holds a KV cache


def _workspace(parts: DecoderParts, rows: int, columns: int, compilation: Compilation) -> _Workspace:
    model = parts.model
    attention = decoder_config(model.config)._attn_implementation
    # A CUDA graph reads weights by their addresses.
    weights = tuple((w.data_ptr(), w.dtype, w.shape) for w in (*model.parameters(), *model.buffers()))
    made_for = (rows, columns, compilation, attention, model.device, model.training, weights)
    if model not in _workspaces or _workspaces[model].made_for != made_for:
        _workspaces.pop(model, None)  # frees its memory before more is taken
        with torch.inference_mode(False):  # so that any later decode may write
            buffers = StepBuffers(rows, columns, model)
        _workspaces[model] = _Workspace(made_for, buffers, StepGraphs(model.device, compilation.capture))
    return _workspaces[model]


class CompiledDecode:
    """One decode with compiled steps.

    Args:
        parts: The model's parts.
        decisions: Those of the strategy.
        compilation: How to compile.
        rows: Rows of a decode step.
        prompt_length: Length of the (padded) prompt, tokens.

    Attributes:
        cache: The KV cache, for transformers' ``generate`` inside of :meth:`steps`.

    Raises:
        UserError: The text grows beyond a layer's sliding window.
    """

    def __init__(
        self, parts: DecoderParts, decisions: Decisions, compilation: Compilation, rows: int, prompt_length: int
    ) -> None:
        window = min((window for window in parts.windows if window is not None), default=None)
        if window is not None and window < prompt_length + decisions.max_steps:
            raise UserError(
                f"compile=True: a prompt of {prompt_length} tokens and max_new_tokens={decisions.max_steps} exceed the "
                f"sliding window of {window} tokens; leave compile out."
            )
        tokens = prompt_length + decisions.max_steps - 1  # the last one is never read
        columns = -(-tokens // COLUMNS) * COLUMNS
        workspace = _workspace(parts, rows, columns, compilation)
        self._parts = parts
        self._decisions = decisions
        self._buffers, self._graphs = workspace.buffers, workspace.graphs
        self._run_module = _compiled(run_module, compilation.backend)
        self.cache = StaticCache(parts, decisions, workspace.buffers, _compiled(run_layer, compilation.backend))

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Replace the model's ``forward`` in decode steps; it is the model's own again on leaving.

        Yields:
            Nothing.

        Raises:
            RunError: torch cannot compile a layer, or a forward pass comes without the cache.
            UserError: The model is given inputs that compiled steps do not take.
        """
        attributes = vars(self._parts.model)
        own = {"forward": attributes["forward"]} if "forward" in attributes else {}
        attributes["forward"] = self._forward(self._parts.model.forward)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES, accumulated_recompile_limit=MOST_SHAPES):
                yield
        except TorchDynamoException as error:
            raise RunError(
                f"compile=True: torch cannot compile a layer ({reason(error)}). Leave compile out."
            ) from error
        finally:
            del attributes["forward"]
            attributes.update(own)

    def take_warmup(self) -> Warmup:
        """Report what warming up has cost in this decode.

        Returns:
            The cost, with all graphs that are kept.
        """
        return self._graphs.take_warmup()

    @contextmanager
    def _compiled_beside_layers(self) -> Iterator[None]:
        modules = _beside_layers(self._parts)
        for module in modules:
            forward = functools.partial(self._run_module, type(module).forward, module)
            vars(module)["forward"] = lambda *args, _forward=forward, **kwargs: _forward(args, kwargs)
        try:
            yield
        finally:
            for module in modules:
                del vars(module)["forward"]

    def _check_prompt(self, inputs: dict[str, Any]) -> None:
        if self._decisions.may_skip_prompt:
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            check_prompt(self._decisions, (torch.ones_like(ids) if mask is None else mask).cpu().bool())

    def _forward(self, own_forward: Callable[..., Any]) -> Callable[..., Any]:
        cache, buffers = self.cache, self._buffers

        def step(layers: tuple[int, ...]) -> None:
            cache.layers_now = layers
            with self._compiled_beside_layers():
                logits = own_forward(
                    input_ids=buffers.token_ids,
                    attention_mask=buffers.mask,
                    position_ids=buffers.positions,
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            if buffers.logits is None:
                buffers.logits = torch.empty_like(logits)
            buffers.logits.copy_(logits)

        @functools.wraps(own_forward)
        def forward(**inputs: Any) -> Any:
            if inputs.get("past_key_values") is not cache:
                raise unrecorded_pass(self._parts, cache.passes + 1, cache.passes)
            if cache.passes == 0:
                self._check_prompt(inputs)
                return own_forward(**inputs)
            others = sorted(name for name, value in inputs.items() if name not in _INPUTS and value is not None)
            if others:
                raise UserError(f"compile=True: compiled steps do not take {', '.join(others)}; leave compile out.")
            with torch.inference_mode(False), torch.no_grad():
                layers = cache.begin_step(inputs)
                self._graphs.run(layers, functools.partial(step, layers))
                cache.end_step()
            return CausalLMOutputWithPast(logits=buffers.logits, past_key_values=cache)

        return forward
