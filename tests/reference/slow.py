"""Slow oracles: no cache, no class swap, everything recomputed for each token with plain forward hooks."""

import math

import torch
from safetensors.torch import load_file

from hsdlab import CALM, PABEE, DeeBERT, FullDepth, LearnedExit
from hsdlab.decoding.families import decoder_parts, position_ids
from hsdlab.decoding.sub_layers import alike, step_mask


def masked_logits(model, input_ids, attention_mask, executed, **others):
    """Logits [rows, length, vocabulary] of a plain pass in which hooks undo each layer where it does not run.

    ``others`` are further arguments of the model: what a decoder beside an encoder reads.
    """
    if executed.dim() == 4:
        return _pass_in_parts(model, input_ids, attention_mask, executed)
    return _hooked_pass(model, input_ids, attention_mask, lambda i, out, arrived: executed[:, :, i], **others)


def prompt_executed(strategy, prompts, *layers):
    """What runs for each token of the prompts, [rows, length], all for the others: [rows, length, layers(, 2)]."""
    executed = torch.ones(*prompts.shape, *layers, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        places = prompt.nonzero().flatten().tolist()
        for position, place in enumerate(places):
            executed[row, place] = False
            executed[row, place, list(strategy.prompt_layers(position, len(places), layers[0]))] = True
    return executed


def greedy_by_schedule(model, input_ids, attention_mask, strategy, new_tokens):
    """Greedy tokens and logits per step, where step t runs ``layers_at(t)`` and the prompt ``prompt_layers``."""
    layers = decoder_parts(model).num_layers
    steps = [step_mask(strategy.layers_at(step, layers, new_tokens), layers) for step in range(new_tokens - 1)]
    steps = alike(steps, dims=1)
    executed = prompt_executed(strategy, attention_mask, *steps[0].shape)
    all_logits = []
    for step in range(new_tokens):
        logits = masked_logits(model, input_ids, attention_mask, executed)[:, -1]
        all_logits.append(logits)
        input_ids, attention_mask = _append(input_ids, attention_mask, logits)
        if step < new_tokens - 1:
            executed = torch.cat([executed, steps[step].expand(len(input_ids), 1, *steps[step].shape)], dim=1)
    return input_ids, all_logits


def greedy_by_confidence(model, input_ids, attention_mask, new_tokens, leaves, schedule=None, late=False):
    """Greedy decoding with exits: after each executed layer, ``leaves`` says which of the running rows exit.

    Args:
        leaves: Called with the layer, the step and, for each running row, the outputs [d] of the layers that ran for it
            in this step, oldest first; returns one answer a running row. Not asked after the last layer that may run.
        schedule: The strategy whose layers may run in each step, and run for the prompt; all if not given.
        late: Whether a row exits after the executed layer that follows the one of the answer.
    """
    parts = decoder_parts(model)
    schedule = FullDepth() if schedule is None else schedule
    executed = prompt_executed(schedule, attention_mask, parts.num_layers)
    all_logits = [masked_logits(model, input_ids, attention_mask, executed)[:, -1]]
    for step in range(new_tokens - 1):
        input_ids, attention_mask = _append(input_ids, attention_mask, all_logits[-1])
        rows = len(input_ids)
        allowed = set(schedule.layers_at(step, parts.num_layers, new_tokens))
        newest = torch.zeros(rows, parts.num_layers, dtype=torch.bool)
        outputs = {row: [] for row in range(rows)}  # of the rows still running
        exits = []  # rows that leaves has named, and that are still running

        def decide(i, out, arrived, step=step, newest=newest, running=(outputs, exits), before=executed, may=allowed):
            outputs, exits = running
            if i in may:
                for row in outputs:
                    newest[row, i] = True
                    outputs[row].append(out[row, -1])
                _exit(outputs, exits)
                if outputs and i != max(may):
                    ran = [layer for layer in sorted(may) if layer <= i]
                    answers = leaves(i, step, list(outputs.values()), ran)
                    exits += [row for row, left in zip(outputs, answers, strict=True) if left]
                    if not late:
                        _exit(outputs, exits)
            return torch.cat([before[:, :, i], newest[:, i : i + 1]], dim=1)

        all_logits.append(_hooked_pass(model, input_ids, attention_mask, decide)[:, -1])
        executed = torch.cat([executed, newest[:, None]], dim=1)
    input_ids, _ = _append(input_ids, attention_mask, all_logits[-1])
    return input_ids, all_logits, executed


def _exit(outputs, exits):
    while exits:
        del outputs[exits.pop()]


def softmax_response(logits):
    """Top-1 minus top-2 probability of one row's logits."""
    probabilities = sorted(logits.softmax(-1).tolist())
    return probabilities[-1] - probabilities[-2]


def certainty(logits):
    """One minus the entropy over its maximum."""
    probabilities = logits.softmax(-1).tolist()
    return 1 + sum(p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))


def cosine(outputs):
    """Of the two newest of a row's outputs; -1 if there is one only."""
    if len(outputs) < 2:
        return -1.0
    a, b = outputs[-1].tolist(), outputs[-2].tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def unchanged(predictions):
    """How many of the newest predictions equal the one before them."""
    count = 0
    while count + 1 < len(predictions) and predictions[-1 - count] == predictions[-2 - count]:
        count += 1
    return count


def together(confidences, rule):
    """The confidence that decides for each row: all rows are from different prompts."""
    if rule == "min":
        return [min(confidences)] * len(confidences)
    if rule == "mean":
        return [sum(confidences) / len(confidences)] * len(confidences)
    return confidences


def routed(tensors, checked, position):
    """LearnedExit's router of two layers with biases for layers 0, 1 …, from its file; the last confidence."""
    biases = tensors["layer_biases"].double().view(-1, len(tensors["read.weight"]))
    last = 0.0
    for output, layer in checked:
        state = output.double() / (output.double().pow(2).mean() + torch.finfo(torch.float32).eps).sqrt()
        inputs = torch.cat([state, torch.tensor([position, last], dtype=torch.float64)])
        units = (tensors["read.weight"].double() @ inputs + biases[layer]).relu()
        odds = tensors["decide.weight"][0].double() @ units + tensors["decide.bias"][0]
        last = float(1 / (1 + math.exp(-odds)))
    return last


def leaves_of(strategy, parts, new_tokens):
    """Confidence strategies row by row, for ``greedy_by_confidence``; a shortlist only where all layers may run."""
    every = strategy.probe_layers if isinstance(strategy.probe_layers, int) else 1
    chosen = every if strategy.probe_layers is None else strategy.probe_layers
    if isinstance(strategy, LearnedExit) and strategy.probe_layers is None:
        chosen = [0, 1, 2, 3, 4]

    def confidence(outputs, layers, step):
        if isinstance(strategy, LearnedExit):
            checked = [(o, layer) for o, layer in zip(outputs, layers, strict=True) if layer in chosen]
            return routed(load_file(strategy.router), checked, step / new_tokens)
        if getattr(strategy, "measure", "") == "saturation":
            return cosine(outputs)
        if getattr(strategy, "measure", "") == "classifier":
            tensors = load_file(strategy.classifier)
            odds = (tensors["weight"][0].double() * outputs[-1]).sum() + tensors["bias"][0]
            return 1 / (1 + math.exp(-odds))
        if getattr(strategy, "gate", None) is not None and cosine(outputs) < strategy.gate:
            return 0.0
        probed = [parts.logits(output) for output in outputs[every - 1 :: every]]
        if strategy.check_vocabulary is not None:
            probed = [
                each.index_fill(0, torch.arange(strategy.check_vocabulary, len(each)), -math.inf) for each in probed
            ]
        if strategy.shortlist is not None:
            kept = probed[0].topk(strategy.shortlist).indices
            probed[1:] = [torch.full_like(each, -math.inf).index_copy(0, kept, each[kept]) for each in probed[1:]]
        if isinstance(strategy, PABEE):
            return unchanged([int(each.argmax()) for each in probed])
        newest = probed[-1][probed[-1] > -math.inf]
        return certainty(newest) if isinstance(strategy, DeeBERT) else softmax_response(newest)

    def leaves(layer, step, outputs, ran):
        if not (layer in chosen if isinstance(chosen, list) else len(outputs[0]) % chosen == 0):
            return [False] * len(outputs)
        if isinstance(strategy, CALM):
            threshold = strategy.threshold_at(layer, step, new_tokens)
        else:
            threshold = strategy.patience if isinstance(strategy, PABEE) else strategy.threshold
        if threshold >= 1 and not isinstance(strategy, PABEE):
            return [False] * len(outputs)
        return [c >= threshold for c in together([confidence(each, ran, step) for each in outputs], strategy.exit_rule)]

    return leaves


def _append(input_ids, attention_mask, logits):
    token = logits.float().argmax(-1, keepdim=True)
    return torch.cat([input_ids, token], 1), torch.cat([attention_mask, torch.ones_like(token)], 1)


def _hooked_pass(model, input_ids, attention_mask, runs, **others):
    def hook(i):
        def undo(module, args, out):
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = torch.where(runs(i, hidden, args[0])[..., None], hidden, args[0])
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return undo

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(decoder_parts(model).layers)]
    return _pass_with(handles, model, input_ids, attention_mask, **others)


def _pass_in_parts(model, input_ids, attention_mask, executed):
    """A plain pass in which hooks make the output of attention and of the MLP zero where they do not run."""

    def hook(i, part):
        def zero(module, args, out):
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = hidden * executed[:, :, i, part].reshape(*hidden.shape[:-1], 1)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return zero

    handles = []
    for i, layer in enumerate(decoder_parts(model).layers):
        children = dict(layer.named_children())
        for part, names in enumerate([("attn", "attention", "self_attn"), ("mlp", "fc2")]):
            (module,) = [children[name] for name in names if name in children]
            handles.append(module.register_forward_hook(hook(i, part)))
    return _pass_with(handles, model, input_ids, attention_mask)


def _pass_with(handles, model, input_ids, attention_mask, **others):
    if not others:
        others = {"position_ids": position_ids(attention_mask)}
    try:
        with torch.no_grad():
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **others).logits
    finally:
        for handle in handles:
            handle.remove()
