"""Slow oracles: no cache, no class swap, everything recomputed for each token with plain forward hooks."""

import torch

from hsdlab.decoding.families import decoder_parts, position_ids


def masked_logits(model, input_ids, attention_mask, executed):
    """Logits [rows, length, vocabulary] of a plain pass in which hooks undo each layer where it does not run."""
    return _hooked_pass(model, input_ids, attention_mask, lambda i, out, arrived: executed[:, :, i])


def greedy_by_schedule(model, input_ids, attention_mask, layers_of_step, new_tokens):
    """Greedy tokens and logits per step, where step t runs ``layers_of_step[t]``."""
    layers = decoder_parts(model).num_layers
    executed = torch.ones(*input_ids.shape, layers, dtype=torch.bool)
    all_logits = []
    for step in range(new_tokens):
        logits = masked_logits(model, input_ids, attention_mask, executed)[:, -1]
        all_logits.append(logits)
        input_ids, attention_mask = _append(input_ids, attention_mask, logits)
        if step < new_tokens - 1:
            row = torch.zeros(layers, dtype=torch.bool)
            row[list(layers_of_step[step])] = True
            executed = torch.cat([executed, row.expand(len(input_ids), 1, layers)], dim=1)
    return input_ids, all_logits


def greedy_by_softmax_response(model, input_ids, attention_mask, threshold_at, new_tokens):
    """Greedy CALM: the newest token exits after the first layer whose top-2 probability gap reaches the threshold."""
    parts = decoder_parts(model)
    executed = torch.ones(*input_ids.shape, parts.num_layers, dtype=torch.bool)
    all_logits = [masked_logits(model, input_ids, attention_mask, executed)[:, -1]]
    for step in range(new_tokens - 1):
        input_ids, attention_mask = _append(input_ids, attention_mask, all_logits[-1])
        rows = len(input_ids)
        newest = torch.zeros(rows, parts.num_layers, dtype=torch.bool)
        running = [True] * rows

        def decide(i, out, arrived, step=step, newest=newest, running=running, before=executed, rows=rows):
            newest[:, i] = torch.tensor(running)
            if i < parts.num_layers - 1:
                for row in range(rows):
                    if running[row]:
                        probabilities = sorted(parts.logits(out[row, -1]).softmax(-1).tolist())
                        running[row] = not probabilities[-1] - probabilities[-2] >= threshold_at(i, step)
            return torch.cat([before[:, :, i], newest[:, i : i + 1]], dim=1)

        all_logits.append(_hooked_pass(model, input_ids, attention_mask, decide)[:, -1])
        executed = torch.cat([executed, newest[:, None]], dim=1)
    input_ids, _ = _append(input_ids, attention_mask, all_logits[-1])
    return input_ids, all_logits, executed


def _append(input_ids, attention_mask, logits):
    token = logits.float().argmax(-1, keepdim=True)
    return torch.cat([input_ids, token], 1), torch.cat([attention_mask, torch.ones_like(token)], 1)


def _hooked_pass(model, input_ids, attention_mask, runs):
    def hook(i):
        return lambda module, args, out: torch.where(runs(i, out, args[0])[..., None], out, args[0])

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(decoder_parts(model).layers)]
    try:
        with torch.no_grad():
            return model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids(attention_mask),
                use_cache=False,
            ).logits
    finally:
        for handle in handles:
            handle.remove()
