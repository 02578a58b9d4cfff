"""The KV cache of a decode with skipped layers, and the late KV computation.

The decoding semantics (Schuster et al. 2022, CALM, arXiv 2207.07061, sections 3.2 and 3.3.1, called state propagation
there): the keys and values of a token at a layer come from the hidden state with which the token arrived at that layer,
whether or not the layer ran. Here they are computed only when a later token runs the layer, for all tokens that still
owe them in one batch (``hsdlab.decoding.late``). A strategy whose sets of layers only shrink never needs that. The
keys and values of a layer that no later step runs are freed at once.

The prefill runs once for each source: beams, or several sampled sequences, are rows only from the first decode step
on (``once``).

A layer with a sliding window holds the last tokens of each row only, and owes only those that its query can see. A
window as long as the text is full attention.

A forward pass may also carry several tokens of each row, each with its own set of executed layers: the prefill under a
prompt schedule, and every pass that ``next_pass`` announces. Rows then differ in length, and ``forget`` takes the last
tokens of a row back. ``next_draft`` announces a step in which each row is at its own t.

Longer than other files: what transformers calls on a cache, and what runs a layer, read and write the same pass.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hsdlab.decoding.arguments import RowArguments, argument, with_argument
from hsdlab.decoding.decisions import Decisions, Rows, rows_of
from hsdlab.decoding.device import sent
from hsdlab.decoding.drafts import DraftDecisions, Resumed
from hsdlab.decoding.encoder_decoder import CrossAttention
from hsdlab.decoding.families import DecoderParts, decoder_config, groups_queries
from hsdlab.decoding.history import History
from hsdlab.decoding.late import KeysAndValuesMade, LateKeyValues
from hsdlab.decoding.layer_parts import Runs, check_parts, run_parts
from hsdlab.decoding.live_rows import LiveRows
from hsdlab.decoding.prompt_rows import PromptRows
from hsdlab.decoding.recurrent import RecurrentStates
from hsdlab.decoding.shared_prefill import Prefill
from hsdlab.decoding.shared_prompt import StepRows, TwoParts, can_split, split_pays
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.storage import KeyValueStore, LayerStorage, token_numbers
from hsdlab.decoding.timing import now_s
from hsdlab.decoding.token_pass import RunningTokens, TokenPass
from hsdlab.errors import RunError, UserError
from hsdlab.exits import last_layers


class SkipCache(LayerRunner, DynamicCache):
    """Runs the layers that the decisions name, and holds the keys and values of one decode.

    Args:
        parts: The decoder layers, and their query projections.
        decisions: Say which rows run which layer.
        once: Compute the prompt once for each source, and not for each of its rows. Only for layers whose arguments
            have one entry for each row, or one for all.
        prefill: To take over, or to record; None for neither.
        live: Leaves out rows that have ended, of one row a source or of all its beams. Only for layers that are the
            same for all rows and never owe keys and values. None runs all rows.
        cross: The keys and values that the layers of an encoder-decoder model make from the encoder's output; None for
            a decoder-only model.

    Attributes:
        executed: The layers that ran in each decode step: BoolTensor [rows or 1, layers] on the CPU, in the row order
            of that step.
        prompt_executed: The layers that ran in the prefill, BoolTensor [sources, prompt, layers] on the CPU; None where
            all layers ran for all tokens.
        prompt_mask: [rows, prompt], 1 for tokens and 0 for padding, to be set before a prefill under a prompt schedule;
            None means no padding.
        late_tokens: Tokens of each layer whose keys and values were computed late, LongTensor [layers].
        late_passes: Calls of each layer that computed them, LongTensor [layers].
        prompt_tokens: Tokens of the prompts for which each layer was computed in the prefill, LongTensor [layers]; with
            padding, and with those that a row repeats to be as long as the others.
        prompt_keys: Keys that attention read in the prefill, LongTensor [layers]: those of a prompt once.
        prompt_late_tokens: The tokens of ``late_tokens`` that were computed in the prefill, LongTensor [layers].
        prompt_late_passes: The calls of ``late_passes`` in the prefill, LongTensor [layers].
        cached_numbers: Numbers that a token has in each layer, keys and values together; 0 where the layer never ran.
        cross: As given, without layers for a decoder-only model.
        passes: Forward passes so far, the prefill included.
        peak_bytes: The most bytes allocated for keys and values at the end of a forward pass.
        readings_s: Clock readings, seconds; the cache adds one when the first decode step begins.
        taken_over_s: Seconds that the layers took in the prefill that was taken over; 0 if none was.

    Raises:
        UserError: An oracle would take back what layers added to recurrent states.
    """

    def __init__(
        self,
        parts: DecoderParts,
        decisions: Decisions,
        once: bool = False,
        prefill: Prefill | None = None,
        live: LiveRows | None = None,
        cross: CrossAttention | None = None,
    ) -> None:
        super().__init__(config=decoder_config(parts.model.config))
        if decisions.in_parts:
            check_parts(parts)
        if parts.recurrent and decisions.looks_back and not decisions.keeps_full_entries:
            raise UserError(
                f"{decisions.name} chooses the exit layer after all layers have run, and {type(parts.model).__name__} "
                "has recurrent layers: what the layers above have added to their states cannot be taken back."
            )
        self._parts = parts
        self._index = {layer: i for i, layer in enumerate(parts.layers)}
        self._decisions = decisions
        self._once = once
        self._prefill = prefill
        self._live = live
        self.cross = CrossAttention(0) if cross is None else cross
        self._prompt_rows: PromptRows | None = None  # since the prefill began
        self._prompt_length = 0
        self._length = 0  # of the current pass, tokens
        self._store = KeyValueStore(parts.num_layers, decisions.max_steps - 1)
        self._states = RecurrentStates(self.layers)
        self._calls: dict[int, LayerCall] = {}  # of the layers that others read keys and values from
        self._late = LateKeyValues(parts, self._store, decisions.max_steps)
        self._starts: int | Tensor = 0  # new tokens before the current pass, LongTensor [rows] where rows differ
        self._end = 0  # columns of new tokens in the current pass
        self._windows = parts.windows  # of the layers in which a window hides some token of this decode
        self._window_masks: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by window: the mask of an announced pass, and its own
        self._row_arguments = RowArguments()
        self._split: StepRows | None = None  # where the prompt's keys and values are held apart
        self._masks_groups = can_split(parts.model) and groups_queries(parts.model)
        self._open_mask: Tensor | None = None  # of the current decode step
        self._called: Tensor | None = None  # the rows that the current layer was called with, on the device
        self._strayed: Tensor | None = None  # whether a beam has moved to another prompt, on the device
        self._choice: Decisions | DraftDecisions = decisions  # who names the rows of the current decode step
        self._draft: DraftDecisions | None = None  # announced
        self._noted_layer: int | None = None  # of which the arriving hidden states of drafts are kept
        self._noted: list[Tensor] = []
        self._resumed: Resumed | None = None
        self._announced: TokenPass | None = None
        self._tokens: TokenPass | None = None  # in a pass in which tokens differ
        self._running: RunningTokens | None = None  # those with which the current layer was called; None for all
        self._filling = False
        self._ran: list[tuple[Tensor, LayerCall, tuple, dict]] = []  # the layers of this step, for an oracle
        self.executed: list[Tensor] = []
        self.prompt_executed: Tensor | None = None
        self.prompt_mask: Tensor | None = None
        self.late_tokens, self.late_passes = self._late.tokens, self._late.passes
        self.prompt_late_tokens, self.prompt_late_passes = self.late_tokens.clone(), self.late_passes.clone()
        self.prompt_tokens, self.prompt_keys = torch.zeros_like(self.late_tokens), torch.zeros_like(self.late_tokens)
        self.cached_numbers = [0] * parts.num_layers
        self.passes = 0
        self.peak_bytes = 0
        self.readings_s: list[float] = []
        self.taken_over_s = 0.0

    # What transformers calls on a cache ----------------------------------------------------------------------

    @property
    def is_compileable(self) -> bool:
        """Nothing here is; transformers would compile on a GPU if all layers were recurrent."""
        return False

    @property
    def self_attention_cache(self) -> "SkipCache":
        """The cache itself, which T5Gemma asks for when it computes keys and values late."""
        return self

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest row so far, also where the layer has no keys and values of some of them."""
        return self._prompt_length + self._longest

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the number of keys that a layer attends to, and the first of them: of all tokens, or of its window."""
        first = self._seen_from(layer_idx)
        return self.get_seq_length() + query_length - first, first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of the tokens that run; [rows, heads, length, head dim] as in transformers."""
        self.cached_numbers[layer_idx] = token_numbers(key_states, value_states)
        if self._filling:
            raise KeysAndValuesMade(key_states, value_states)
        if self.passes == 0:
            return self._update_prompt(layer_idx, key_states, value_states)
        storage = self._store[layer_idx]
        self._reserve(layer_idx)
        if self._tokens is not None:
            return self._update_tokens(storage, self._seen_from(layer_idx), key_states, value_states)
        called = self._called
        if isinstance(self._starts, int) and called is None:
            storage.append(self._starts, key_states, value_states)
        else:
            device = key_states.device
            rows = torch.arange(len(key_states), device=device) if called is None else called
            starts = self._starts if isinstance(self._starts, int) else sent(self._starts, device)[rows, None]
            storage.write(rows, starts, key_states, value_states)
        return self._read(layer_idx)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, for the rows with which the current layer was called."""
        storage, called = self._store[index], self._called
        keys, values = storage.read(self._end, self._seen_from(index))
        if storage.prompt is not None and self._split is not None:
            prompt_keys, prompt_values = storage.prompt
            return TwoParts(prompt_keys, keys, self._split), TwoParts(prompt_values, values, self._split)
        if called is None:
            return keys, values
        return keys.index_select(0, called), values.index_select(0, called)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows to those from which beam search continues, LongTensor [rows]. Nothing is read of a device."""
        rows = torch.arange(len(beam_idx), device=beam_idx.device)
        copies = self._decisions.rows_per_source(len(beam_idx))
        if beam_idx.device.type == "cpu" and torch.equal(beam_idx, rows):
            return
        strayed = (beam_idx // copies != rows // copies).any()
        self._strayed = strayed if self._strayed is None else self._strayed | strayed
        if self._live is not None:
            beam_idx = self._live.moved(beam_idx)
        self._store.reorder(beam_idx, self._longest)
        self._states.take(beam_idx)
        self._late.reorder(beam_idx, self._longest)

    def check_beams(self) -> None:
        """Refuse a decode in which a beam moved to another prompt. Reads one value of the device.

        Raises:
            RunError: A beam did, and attended to the keys and values of the other prompt.
        """
        if self._strayed is not None and bool(self._strayed):
            raise RunError("A beam moved to the rows of another prompt; decode with transformers' own beam search.")

    # Passes over several tokens ------------------------------------------------------------------------------

    def next_draft(self, draft: DraftDecisions, noted_layer: int | None = None) -> None:
        """Announce a forward pass of one token of each row, in which each row is at its own step.

        The caller gives position ids and a mask as for :meth:`next_pass`.

        Args:
            draft: Names the layers of each row. Rows that draft no token run none, and their token is not added.
            noted_layer: The layer at which the arriving hidden states are kept for :meth:`take_noted`; None keeps none.
        """
        self._draft, self._noted_layer = draft, noted_layer

    def take_noted(self) -> Tensor:
        """Return the hidden states that arrived at the noted layer in all draft steps since the last call.

        Returns:
            [rows, draft steps, d].
        """
        noted, self._noted = torch.cat(self._noted, dim=1), []
        return noted

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, and free the others. Nothing is owed, as is the case after :meth:`forget`.

        Args:
            rows: LongTensor [n] on the CPU, ascending.
        """
        on_device = sent(rows, self._parts.model.device)
        self._store.keep(on_device)
        self.cross.keep(on_device)
        self._late.new = History(self._parts.num_layers, self._decisions.max_steps)
        if not isinstance(self._starts, int):
            self._set_lengths(self._starts[rows])

    def next_pass(self, executed: Tensor, valid: Tensor, resumed: Resumed | None = None) -> None:
        """Announce a forward pass after the prefill in which each token of each row has its own executed layers.

        The caller gives the model position ids, and a mask of four dimensions in which the columns of the new tokens
        follow those of the prompt: new token k of a row is in column k, whatever the length of the other rows.

        Args:
            executed: BoolTensor [rows or 1, tokens, layers] on the CPU; with a last dimension of 2 where attention and
                MLP run apart. An MLP that some of the tokens with attention run is computed for all of them.
            valid: BoolTensor [rows, tokens] on the CPU, true for the tokens of a row, which come before its padding.
            resumed: What an earlier pass computed of some tokens, which run no layer before it here.

        Raises:
            RuntimeError: The prompt is held once for several rows.
        """
        if self._split is not None or self.passes == 0:
            raise RuntimeError("Passes over several tokens need a row for each source, after the prefill.")
        if executed.dim() == 4:
            check_parts(self._parts)
        self._announced = TokenPass(executed, valid, self._parts.model.device)
        self._resumed = resumed

    @property
    def lengths(self) -> Tensor:
        """New tokens of each row so far, LongTensor [rows or 1] on the CPU."""
        return torch.tensor([self._starts]) if isinstance(self._starts, int) else self._starts

    def forget(self, kept: Tensor) -> None:
        """Take the last new tokens of each row back, as if they had never been.

        Args:
            kept: The new tokens of each row that stay, LongTensor [rows] on the CPU.
        """
        self._late.new.forget(kept)
        self._set_lengths(kept)

    def _set_lengths(self, lengths: Tensor) -> None:
        first = int(lengths[0])
        self._starts = first if bool((lengths == first).all()) else lengths

    @property
    def _longest(self) -> int:
        """New tokens of the longest row before the current pass."""
        return self._starts if isinstance(self._starts, int) else int(self._starts.max())

    # Sliding windows -----------------------------------------------------------------------------------------

    def _seen_from(self, index: int) -> int:
        """Return the first token of the text that a layer's window shows to some query of the current pass."""
        window = self._windows[index]
        if window is None:
            return 0
        shortest = self._starts if isinstance(self._starts, int) else int(self._starts.min())
        return max(0, self._prompt_length + shortest - window + 1)

    def _first_seen(self, index: int, first: int | Tensor) -> int | Tensor:
        """Return the first token that a query at token ``first`` sees, which may be a tensor; below 0 for all."""
        window = self._windows[index]
        return 0 if window is None else first - window + 1

    def _reserve(self, index: int) -> None:
        """Make room for the new tokens of the pass. What a rollback may need again is not dropped."""
        rolls_back = self._tokens is not None or self._choice is not self._decisions
        self._store[index].reserve(self._end, 0 if rolls_back else self._seen_from(index))

    def _with_window(self, index: int, call: LayerCall, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Restrict the mask of an announced pass, which is that of full attention, to a layer's window."""
        window, given = self._windows[index], argument(call, "attention_mask", args, kwargs)
        if window is None or given is None:
            return args, kwargs
        if window not in self._window_masks or self._window_masks[window][0] is not given:
            seen_from = self._seen_from(index)
            queries = self.lengths[:, None] + torch.arange(given.shape[2])  # (rows or 1, tokens)
            keys = torch.arange(seen_from, given.shape[3]) - self._prompt_length
            hidden = sent(keys <= queries[:, :, None] - window, given.device)[:, None]  # (rows or 1, 1, tokens, keys)
            closed = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
            self._window_masks[window] = given, given[..., seen_from:].masked_fill(hidden, closed)
        return with_argument(call, "attention_mask", self._window_masks[window][1], args, kwargs)

    # Running a layer -----------------------------------------------------------------------------------------

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer for the tokens that the decisions name; the others skip it."""
        index = self._index[call.layer]
        if index == 0:
            self._begin_pass(hidden)
        if self.passes == 0:
            hidden = self._run_prompt(index, call, hidden, args, kwargs)
        elif self._tokens is not None:
            args, kwargs = self._with_window(index, call, args, kwargs)
            hidden = self._run_tokens(index, call, hidden, args, kwargs)
        else:
            if self._choice is not self._decisions:
                args, kwargs = self._with_window(index, call, args, kwargs)
            if self._live is not None:
                hidden, args, kwargs = self._live.enter(index, hidden, args, kwargs)
            hidden = self._run_decode_step(index, call, hidden, args, kwargs)
            if self._decisions.looks_back:
                hidden = self._look_back(index, call, hidden, args, kwargs)
            if self._live is not None and index == self._parts.num_layers - 1:
                hidden = self._live.leave(hidden)
        if index == self._parts.num_layers - 1:
            self._end_pass()
        return hidden

    def _begin_pass(self, hidden: Tensor) -> None:
        rows, length = hidden.shape[:2]
        self._length = length  # the upper layers of Gemma 4 get the last token of a prompt only
        if self.passes == 0:
            self._begin_prompt(rows, length, hidden.device)
            return
        self._end = self._longest + length
        self._open_mask = None
        if self.passes == 1:
            self.readings_s.append(now_s(hidden.device))
        self._tokens, self._announced = self._announced, None
        if self._tokens is not None:
            return
        if self._draft is not None:
            self._choice, self._draft = self._draft, None
            if self._choice.in_parts:
                check_parts(self._parts)
            return
        if length != 1:
            raise UserError(
                f"A decode step came with {length} tokens; expected 1. Assisted decoding and chunked prompts "
                "cannot be combined with skipped layers."
            )
        self._decisions.begin_step(len(self.executed), rows)
        if self._decisions.in_parts:
            check_parts(self._parts)
        if self._live is not None and self._late.prompt is None:
            stay = self._live.leave_out(rows, hidden.device)
            if stay is not None:
                self._store.keep(stay)
                self._states.take(stay)
                self.cross.keep(stay)

    def _begin_prompt(self, rows: int, length: int, device: torch.device) -> None:
        copies = self._decisions.rows_per_source(rows) if self._once else 1
        self._prompt_rows = PromptRows(rows, copies, device)
        if copies > 1 and can_split(self._parts.model) and split_pays(rows // copies * length):
            self._split = StepRows(copies, length)
        whole = length + self._decisions.max_steps
        self._windows = tuple(None if window is None or window >= whole else window for window in self._windows)
        self._store.begin(rows // copies, copies, length, self._split is not None, self._windows)
        if not self._decisions.may_skip_prompt:
            return
        mask = torch.ones(rows, length) if self.prompt_mask is None else self.prompt_mask
        valid = mask[::copies].cpu().bool()  # (sources, prompt)
        executed = self._decisions.prompt_layers(valid)
        if executed is not None:
            if self._parts.shares:
                raise UserError(
                    f"{self._decisions.name} skips layers in the prompt, and {type(self._parts.model).__name__} has "
                    "layers that read another layer's keys and values; leave the prompt at full depth."
                )
            self._prefill = None  # only whole prefills are shared
            self._tokens = TokenPass(executed, valid, device)
            self.prompt_executed = executed | ~valid[:, :, None]
            self._late.prompt = History(self._parts.num_layers, length)

    def _run_prompt(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer over the prompt, for the first row of each source."""
        prompt = self._prompt_rows
        if prompt is None:
            raise RuntimeError(f"Layer {index} was called before layer 0.")
        prefill, is_last = self._prefill, index == self._parts.num_layers - 1
        if prefill is not None and prefill.output is not None:
            self.taken_over_s = prefill.layers_s
            self.prompt_tokens[index] = prefill.output.shape[:2].numel()
            self.update(*prefill.keys_and_values[index], index)
            return prompt.all(prefill.output) if is_last else hidden
        if index == 0:
            hidden = prompt.first(hidden)
            if prefill is not None:
                prefill.begin(hidden.device)
        args, kwargs = prompt.arguments(args, kwargs)
        self.prompt_tokens[index] = self._prompt_tokens(index, hidden)
        if self._tokens is None:
            hidden = call(hidden, *args, **kwargs)
        else:
            run = self._run_tokens if self._parts.mixers[index] is None else self._run_recurrent_prompt
            hidden = run(index, call, hidden, args, kwargs)
        if is_last and prefill is not None:
            prefill.finish(hidden)
        return prompt.all(hidden) if is_last else hidden

    def _prompt_tokens(self, index: int, hidden: Tensor) -> int:
        """Count the tokens for which a layer is computed in the prefill."""
        running = None if self._tokens is None else self._tokens.at(index)
        if running is None or running.everywhere:
            return hidden.shape[0] * hidden.shape[1]
        if running.nowhere:
            return 0
        return running.slots.numel() if self._parts.mixers[index] is None else hidden.shape[0] * hidden.shape[1]

    def _run_recurrent_prompt(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a recurrent layer over prompts of which some tokens skip it: all of them enter its state."""
        if self._tokens is None:
            raise RuntimeError("No pass over several tokens has begun.")
        running = self._tokens.at(index)
        if not running.nowhere:
            runs = sent(running.mask, hidden.device)[..., None]  # (rows, tokens, 1)
            return torch.where(runs, call(hidden, *args, **kwargs), hidden)
        if self._decisions.needed_after(index, -1):
            self._filling = True
            try:
                made = self._late.made(index, call, hidden, args, kwargs)
            finally:
                self._filling = False
            if made is not None:
                self._store.hold_prompt(index, *made)
        return hidden

    def _run_tokens(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer for some tokens of each row; the others owe keys and values from then on."""
        tokens = self._tokens
        if tokens is None:
            raise RuntimeError("No pass over several tokens has begun.")
        running, of_prompt = tokens.at(index), self.passes == 0
        resumed = self._resumed
        if resumed is not None and index == resumed.layer:
            hidden, resumed = resumed.put(hidden), None
            self._resumed = None
        history = self._late.prompt if of_prompt and self._late.prompt is not None else self._late.new
        starts: int | Tensor = 0 if of_prompt else self._starts
        owe = resumed is None and not running.everywhere and self._parts.owes(index)
        if owe and (not running.nowhere or self._decisions.needed_after(index, -1)):
            history.passed_by(index, call, hidden, args, kwargs, starts, running.skipped)
        output = hidden
        if not running.nowhere:
            first = self._first_seen(index, starts + running.first)
            self._compute_late(index, call, len(hidden), starts + running.after_last, running.rows, first)
            ran = self._called_for_tokens(running, call, hidden, args, kwargs, True, tokens.mlp_beside(index))
            output = running.put(output, ran)
        alone = tokens.mlp_alone(index)
        if alone is not None:
            ran = self._called_for_tokens(alone, call, hidden, args, kwargs, False, True)
            output = alone.put(output, ran)
        return output

    def _called_for_tokens(
        self,
        running: RunningTokens,
        call: LayerCall,
        hidden: Tensor,
        args: tuple,
        kwargs: dict,
        attention: Runs,
        mlp: Runs,
    ) -> Tensor:
        """Run a layer, or a part of it, for some tokens; return their hidden states after it."""
        if running.everywhere or self._tokens is None:
            return run_parts(call, hidden, args, kwargs, attention, mlp)
        arguments = self._tokens.arguments(running, call, hidden, args, kwargs)
        self._running = running
        try:
            of_rows = (None, None) if running.in_all_rows else (running.rows, running.on_device[0])
            with self.cross.of_rows(*of_rows):
                return run_parts(call, running.take(hidden), (), arguments, attention, mlp)
        finally:
            self._running = None

    def _run_decode_step(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        if index == self._noted_layer:
            self._noted.append(hidden)
        if self._choice.in_parts:
            return self._run_parts(index, call, hidden, args, kwargs)
        rows = self._choice.rows_at(index)
        self._settle(index, call, hidden, args, kwargs, rows)
        if rows is not None and len(rows) == 0:
            return hidden
        arrived, output = self._called_for(rows, call, hidden, args, kwargs)
        self._ask(index, rows, output, arrived)
        return self._put(hidden, rows, output)

    def _run_parts(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer in a step in which attention and MLP run apart: a call for each kind of rows that there is."""
        runs = self._choice.parts_at(index)  # (rows or 1, 2)
        self._settle(index, call, hidden, args, kwargs, rows_of(runs[:, 0]))
        output = hidden
        for attention, mlp in ((True, True), (True, False), (False, True)):
            rows = rows_of((runs[:, 0] == attention) & (runs[:, 1] == mlp))
            if rows is None or len(rows) > 0:
                _, ran = self._called_for(rows, call, hidden, args, kwargs, attention, mlp)
                output = self._put(output, rows, ran)
        rows = rows_of(runs.any(dim=1))
        if self._choice.asks and (rows is None or len(rows) > 0):
            every = slice(None) if rows is None else self._choice.on_device.get(rows, hidden.device)
            self._ask(index, rows, output[every], hidden[every])
        return output

    def _settle(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict, rows: Rows) -> None:
        """Before attention runs for some rows: compute what they owe, and note what the others owe from now on."""
        if not self._parts.owes(index):
            return
        lends = len(self._parts.users(index)) > 1
        if lends:
            self._calls[index] = call
        needed = lends and self._needed_after(index, len(self.executed) - 1)  # in this step, too
        if rows is not None and self._choice.may_fill:
            needed = needed or self._decisions.needed_after(index, len(self.executed))
        if rows is not None and needed:
            self._passed_by(index, call, hidden, args, kwargs, rows)
        if rows is None or len(rows) > 0:
            first = self._first_seen(index, self._starts)
            self._compute_late(index, call, len(hidden), self._starts, rows, first)

    def _called_for(
        self,
        rows: Rows,
        call: LayerCall,
        hidden: Tensor,
        args: tuple,
        kwargs: dict,
        attention: bool = True,
        mlp: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run a layer, or a part of it, for some rows; return their hidden states before and after it."""
        index = self._index[call.layer]
        attends = self._parts.attends[index] or self._parts.donors[index] is not None
        split = self._split if self._windows[index] is None and attends else None
        mask = argument(call, "attention_mask", args, kwargs) if split is not None else None
        donor = self._parts.donors[index] if attention else None
        if donor is not None:
            first = self._first_seen(donor, self._starts)
            self._compute_late(donor, self._calls[donor], len(hidden), self._starts + 1, rows, first)
        if rows is None:
            if split is not None:
                split.begin_layer(mask, mask, None)
            if donor is not None:
                kwargs = self._with_shared(donor, kwargs)
            return hidden, run_parts(call, hidden, args, self._with_mask(index, kwargs, hidden), attention, mlp)
        called = self._choice.on_device.get(rows, hidden.device)
        args, kwargs = self._row_arguments.select(called, len(hidden), args, kwargs)
        arrived = hidden.index_select(0, called)
        if split is not None:
            split.begin_layer(mask, argument(call, "attention_mask", args, kwargs), called)
        self._called = called
        try:
            with self._states.of_rows(index, called), self.cross.of_rows(rows, called):
                if donor is not None:
                    kwargs = self._with_shared(donor, kwargs)
                kwargs = self._with_mask(index, kwargs, hidden)
                return arrived, run_parts(call, arrived, args, kwargs, attention, mlp)
        finally:
            self._called = None

    def _with_shared(self, donor: int, kwargs: dict) -> dict:
        """Give a layer the keys and values of another one, as its model does in a forward pass at full depth."""
        kind = decoder_config(self._parts.model.config).layer_types[donor]
        return {**kwargs, "shared_kv_states": {kind: self._read(donor)}}

    def _needed_after(self, layer: int, step: int) -> bool:
        """Say whether some step after this one may read the keys and values, or the state, of a layer."""
        return any(self._decisions.needed_after(user, step) for user in self._parts.users(layer))

    def _with_mask(self, index: int, kwargs: dict, hidden: Tensor) -> dict:
        """Give a layer of grouped queries a mask that masks nothing, where it has none.

        Without one, transformers has torch repeat the keys for the queries of a group. In bfloat16 on a CPU, attention
        then takes several times as long.
        """
        if not self._masks_groups or self._split is not None or kwargs.get("attention_mask", hidden) is not None:
            return kwargs
        if not self._parts.attends[index]:
            return kwargs
        if self._open_mask is None:
            length = self._prompt_length + self._end
            self._open_mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=hidden.device)
        return {**kwargs, "attention_mask": self._open_mask}

    def _put(self, hidden: Tensor, rows: Rows, output: Tensor) -> Tensor:
        """Put the output of a layer in the place of the rows that it was called for."""
        if rows is None:
            return output
        return hidden.index_copy(0, self._choice.on_device.get(rows, hidden.device), output)

    def _end_pass(self) -> None:
        if self._parts.exits is not None:
            self.last_executed = self._last_executed()
        if self.passes == 0:
            self._prompt_length = self._length
            self._store.end_prompt()
            self.cross.end_prompt()
            if self._prompt_rows is not None and self._prompt_rows.copies > 1:
                self._states.take(self._prompt_rows.sources)
            self.prompt_late_tokens, self.prompt_late_passes = self.late_tokens.clone(), self.late_passes.clone()
        elif self._tokens is not None:
            self._set_lengths(self.lengths + self._tokens.valid.sum(dim=1))
        elif isinstance(self._choice, DraftDecisions):
            self._set_lengths(self.lengths + self._choice.drafting)
            self._choice, self._noted_layer = self._decisions, None
        else:
            self.executed.append(self._decisions.executed)
            self._starts = self._longest + 1
        self._tokens = None
        self._window_masks.clear()
        self._row_arguments.forget()
        if self._prompt_rows is not None:
            self._prompt_rows.forget()
        self._late.end_pass()
        self.passes += 1
        step = len(self.executed) - 1

        def needed(layer: int) -> bool:
            return self._needed_after(layer, step)

        held = self._store.free(needed) + self._states.free(needed) + self.cross.free(needed)
        self.peak_bytes = max(self.peak_bytes, held)

    def _last_executed(self) -> Tensor | None:
        """Find the last executed layer of each token of the pass."""
        if self.passes == 0:
            executed = self.prompt_executed
            if executed is not None and self._prompt_rows is not None:
                executed = executed.repeat_interleave(self._prompt_rows.copies, dim=0)
        elif self._tokens is not None:
            executed = self._tokens.executed
        else:
            executed = self._choice.executed[:, None]  # (rows or 1, 1, layers)
        if executed is None:
            return None
        return last_layers(executed if executed.dim() == 3 else executed.any(dim=-1))

    def _ask(self, index: int, rows: Rows, output: Tensor, arrived: Tensor) -> None:
        if self._choice.asks:
            self._choice.after(index, rows, output[:, -1], arrived[:, -1], self._parts)

    def _look_back(self, index: int, call: LayerCall, output: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """After the last layer, return the hidden state of each row at the exit layer that an oracle names."""
        self._ran.append((output, call, args, kwargs))
        if index < self._parts.num_layers - 1:
            return output
        ran, self._ran = self._ran, []
        outputs = torch.stack([each[0] for each in ran])  # (layers, rows, 1, d)
        exits = self._decisions.look_back(outputs[:, :, -1], self._parts)
        hidden = outputs[exits.to(output.device), torch.arange(len(exits), device=output.device)]  # (rows, 1, d)
        if not self._decisions.keeps_full_entries:
            for layer, (_, its_call, its_args, its_kwargs) in enumerate(ran[1:], start=1):
                rows = (exits >= layer).nonzero().squeeze(1)
                self._passed_by(layer, its_call, hidden, its_args, its_kwargs, rows)
        return hidden

    # Keys and values -----------------------------------------------------------------------------------------

    def _update_prompt(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        running = self._running
        if running is None:  # all tokens
            if self._prefill is not None:
                self._prefill.keys_and_values[index] = keys, values
            if self._needed_after(index, -1):
                self._store.hold_prompt(index, keys, values)
            self.prompt_keys[index] = len(keys) * keys.shape[2]
            return keys, values
        rows, slots = running.on_device
        keys, values = self._store.write_prompt(index, rows, slots, keys, values).read_prompt()
        self.prompt_keys[index] = len(rows) * keys.shape[2]
        return keys.index_select(0, rows), values.index_select(0, rows)

    def _update_tokens(
        self, storage: LayerStorage, seen_from: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        running, starts = self._running, self._starts
        if running is None and isinstance(starts, int):
            storage.append(starts, keys, values)
            return storage.read(self._end, seen_from)
        if running is None:
            rows = torch.arange(len(keys), device=keys.device)
            slots = torch.arange(keys.shape[2], device=keys.device)[None]
        else:
            rows, slots = running.on_device
        first = starts if isinstance(starts, int) else sent(starts, keys.device)[rows, None]
        storage.write(rows, first + slots, keys, values)
        keys, values = storage.read(self._end, seen_from)
        return (keys, values) if running is None else (keys.index_select(0, rows), values.index_select(0, rows))

    def _passed_by(self, index: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict, rows: Tensor) -> None:
        """Note that all rows but ``rows`` skip a layer in a decode step."""
        skipped = None
        if len(rows) > 0:
            skipped = torch.ones(len(hidden), 1, dtype=torch.bool).index_fill(0, rows, value=False)
        self._late.new.passed_by(index, call, hidden, args, kwargs, self._starts, skipped)

    def _compute_late(
        self, index: int, call: LayerCall, count: int, before: int | Tensor, rows: Rows, first: int | Tensor
    ) -> None:
        """Compute the keys and values that ``rows`` owe at a layer, of tokens from ``first`` to ``before``."""
        late, prompt = self._late, self._late.prompt
        self._filling = True
        try:
            if self.passes == 0 and prompt is not None:
                late.compute(self, index, call, prompt.take(index, count, before, rows, first), of_prompt=True)
                return
            if prompt is not None and self._prompt_rows is not None:
                copies = self._prompt_rows.copies
                sources = None if rows is None else (rows // copies).unique()
                first_of_prompt = first if self._windows[index] is None else self._prompt_length + first
                owed = prompt.take(index, count // copies, self._prompt_length, sources, first_of_prompt)
                late.compute(self, index, call, owed, of_prompt=True)
            if self._parts.attends[index]:
                self._reserve(index)
            if self._parts.mixers[index] is None:
                late.compute(self, index, call, late.new.take(index, count, before, rows, first))
                return
            while (token := late.new.next_owed(index, rows)) is not None:  # a state takes them one by one
                owed = late.new.take(index, count, token + 1, rows)
                with self._states.of_rows(index, None if owed is None else owed.rows):
                    late.compute(self, index, call, owed)
        finally:
            self._filling = False
