"""What a command's `--help` prints: its own options in a page or two, the Trainer's in one line.

jsonargparse's own text explains every option over 500 lines; it is what `--help=all` prints.
"""

import re
import textwrap
from argparse import Action
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._required import iter_required_keys, restore_suppressed_required  # nothing public tells them

from hsdlab.cli.names import EVALUATE, SWITCHES, TRAIN
from hsdlab.program import EVALUATE_SCRIPT, TRAIN_SCRIPT, VALIDATE_LOSS, typed

ALL = "--help=all"
WIDTH, COLUMN = 80, 30

_OWN_MODEL = "--model.name=my_model --data.folder=my_data"
EXAMPLES = {
    "test": ["--config experiment/quickstart --skip='HSD(1, 0, 15)'", f"{_OWN_MODEL} --skip=HSD"],
    "validate": ["--config experiment/quickstart --skip='HSD(1, 0, 15)'", f"{_OWN_MODEL} --skip=HSD"],
    "predict": [f"{_OWN_MODEL} --data.predict_split=train"],
    "compare": ["--config experiment/quickstart_compare", f"{_OWN_MODEL} --strategies='[FullDepth, HSD]'"],
    "bench": ["--config experiment/quickstart_compare", f"{_OWN_MODEL} --strategies='[HSD(2, 0, 8)]'"],
    "inspect": ["--config experiment/quickstart", _OWN_MODEL],
    "count_tokens": ["--config experiment/quickstart", f"{_OWN_MODEL} --size=8000"],
    "calibrate": ["--config experiment/calibrate_calm"],
    "tune": [
        "--config experiment/tune_docstrings",
        f"{_OWN_MODEL} --max_loss=0.05",
        "--config experiment/quickstart --lossless --model.num_beams=1",
    ],
    "fit": ["--config experiment/finetune_docstrings", f"{_OWN_MODEL} --config training/lora"],
    "fit_exit_classifier": ["--config experiment/exit_classifier", _OWN_MODEL],
    "fit_exit_router": ["--config experiment/exit_router", _OWN_MODEL],
    VALIDATE_LOSS: [_OWN_MODEL],
}
"""Command -> what may follow it."""

_RUN = ("config", "output", "overwrite", "checkpoint_every", "ckpt_path", "seed_everything", "print_config")
_COMMON = ("data", *_RUN)
_SWITCHES = ("overwrite", "print_config", *SWITCHES)
_OF_TRAINING = ("data.group_by_length", "data.targets")
_OF_ONE_COMMAND = {"predict": ("data.predict_split",), "count_tokens": ("data.targets",)}
"""Options of the data that these commands read, and others do not; those of training apart."""
_SAID_BETTER = {
    "config": "A YAML file, or a config of hsdlab's by its name, such as model/gpt2. Repeat it to combine several; the "
    "last one wins.",
    "seed_everything": "Seed of all random numbers, or false for none.",
    "print_config": "Print the configuration that would run, and end.",
    "ckpt_path": "The checkpoint to resume from; last for the newest in the output folder.",
    "data": "The class of the data.",
    "model.name": 'A folder, a .gguf file, a LoRA adapter\'s folder, "embedded:smollm2-135m", or an id on the hub.',
    "model.distillation": "Share of the loss against full depth's logits.",
    "model.skip_strategies": "Schedules to train with, one drawn per batch.",
    "model.lora": "Train LoRA's matrices only; peft's options.",
    "model.initial_adapter": "An adapter to train further, in place of lora.",
    "model.teacher": 'Full depth as it is in the step ("itself"), or as it was at the "start".',
    "model.learning_rate_schedule": "After warm-up.",
    "model.skip_draws": 'One draw per "batch" or per "example".',
    "model.deep_supervision": "Train exits below the last layer, too.",
    "model.warmup": "Share of the steps in which it rises from 0.",
    "data.reference_columns": "Columns of what people wrote for it.",
    "data.id_column": "Column that tells examples apart.",
    "data.group_column": "Column that is equal in all rows of an example.",
    "data.prefix": "Text before each source of an encoder-decoder.",
    "data.delimiter": "Separates the cells of .csv and .tsv files.",
    "model.generate_every": "Decode in every so many validations, for ROUGE.",
    "model.generate_batches": "Batches to decode then, per process.",
    "data.targets": "Files of `predict`, whose texts to train on in place of the references.",
}
"""Options of which the first sentence is long, or in the terms of a library."""


def short_help(
    parser: ArgumentParser, command: str, trains: bool, strategies: Sequence[str], data: Mapping[str, type]
) -> str:
    """Compose the help of a command.

    Args:
        parser: Of the command.
        command: Its name in its script, such as "fit_exit_classifier".
        trains: Whether it is one of train.py.
        strategies: Names of the strategies that there are.
        data: Data sets by their names.

    Returns:
        Examples and the command's own options, in lines of at most 80 characters.
    """
    summary = (TRAIN if trains else EVALUATE)[command]
    program = typed(command, TRAIN_SCRIPT if trains else EVALUATE_SCRIPT)
    data_set = parser.get_defaults()["data"].class_path.rpartition(".")[2]
    of_data = ArgumentParser(add_help=False)
    of_data.add_class_arguments(data[data_set], "data")
    options = {each.dest: each for each in (*parser._actions, *of_data._actions) if _is_option(each)}
    with restore_suppressed_required():
        required = {*iter_required_keys(parser), *iter_required_keys(of_data)}
    read = _OF_TRAINING if trains else _OF_ONE_COMMAND.get(command, ())
    useless = {*_OF_TRAINING, *chain(*_OF_ONE_COMMAND.values())} - set(read)
    groups = _with_options_of_their_own(parser)
    sections = {
        f"Options of `{program.split()[-1]}`": [name for name in options if "." not in name and name not in _COMMON],
        f"Model{groups}": [name for name in options if name.startswith("model.")],
        f"Data (of {data_set}; --data.help=NAME for {', '.join(name for name in data if name != data_set)})": [
            *("data", *(name for name in options if name.startswith("data.") and name not in useless))
        ],
        "Run": [name for name in _RUN if name in options],
    }
    lines = [f"usage: {program} [options]", "", f"{summary[0].upper()}{summary[1:]}.", "", "Examples:"]
    examples = EXAMPLES[VALIDATE_LOSS if trains and command == "validate" else command]
    lines += [_on_two_lines(f"  {program} {example}") for example in examples]
    lines += ["", *_wrapped("A value after = is the default; a word in CAPITALS stands for what you give.")]
    for heading, names in sections.items():
        rows = [_row(options[name], name in required and options[name].default is None, strategies) for name in names]
        lines += ["", *_wrapped(f"{heading}:"), *chain.from_iterable(rows)] if rows else []
    return "\n".join([*lines, "", *_wrapped(_of_the_trainer(options, program, trains)), ""])


def _with_options_of_their_own(parser: ArgumentParser) -> str:
    """Return what to add to the heading of the model: the options that take objects, and how to see theirs."""
    found = [each.dest.removesuffix(".help") for each in parser._actions if each.dest.endswith(".help")]
    names = [name for name in found if name.startswith("model.") and name != "model.skip_strategies"]
    return f" (--NAME.help lists the options of {', '.join(names)})" if names else ""


def _of_the_trainer(options: Mapping[str, Action], program: str, trains: bool) -> str:
    """Return the sentences that stand for the Trainer's options."""
    shown = ["accelerator", "devices", "precision", *(("max_epochs", "max_steps") if trains else ())]
    rest = sum(name.startswith("trainer.") for name in options) - len(shown)
    return (
        f"Lightning's Trainer: {', '.join(f'--trainer.{name}' for name in shown)} and {rest} more. "
        f"`{program} {ALL}` explains every option in full."
    )


def own_options_first(parser: ArgumentParser, command: str, trains: bool) -> None:
    """Arrange the full help of a command: the Trainer's options last, and no usage that lists them all.

    Args:
        parser: Of the command; changed in place.
        command: Its name in its script.
        trains: Whether it is one of train.py.
    """
    parser.usage = f"{typed(command, TRAIN_SCRIPT if trains else EVALUATE_SCRIPT)} [options]"
    of_trainer = [group for group in parser._action_groups if any(map(_is_of_trainer, group._group_actions))]
    for group in of_trainer:
        parser._action_groups.remove(group)
        parser._action_groups.append(group)
        group.title = "Lightning's Trainer"


def _is_of_trainer(action: Action) -> bool:
    return action.dest == "trainer"


def _is_option(action: Action) -> bool:
    """Tell whether an action is an option that takes a value or is a switch: no help, no group, none that is linked."""
    return (
        any(word.startswith("--") for word in action.option_strings)
        and not action.dest.endswith("help")
        and type(action).__name__ not in ("_ActionConfigLoad", "ActionLink")
    )


def _row(action: Action, required: bool, strategies: Sequence[str]) -> list[str]:
    """Return the lines of an option: what is typed, and the first sentence of its meaning.

    Args:
        action: The option.
        required: Whether it has to be given.
        strategies: Names of the strategies that there are.
    """
    name, hint = action.dest, getattr(action, "_typehint", None)
    said = [_SAID_BETTER.get(name) or _first_sentence(action.help or "")]
    if get_origin(hint) is Literal:
        rest = [str(each) for each in get_args(hint) if each != action.default and str(each) not in said[0]]
        said += [f"Or {', '.join(rest)}."] if rest else []
    if "SkipStrategy" in str(hint) and "." not in name:
        said += [f"There are {', '.join(strategies)}, and your own. --{name}.help=HSD explains one."]
    text = textwrap.wrap(" ".join((["Required."] if required else []) + said), WIDTH - COLUMN)
    option = f"  {_with_default(action)}"
    first = [option.ljust(COLUMN) + text.pop(0)] if len(option) < COLUMN else [option]
    return [*first, *(" " * COLUMN + line for line in text)]


def _with_default(action: Action) -> str:
    """Return an option as it is typed, with its default; in its place a word in capitals where there is none."""
    option = next(word for word in action.option_strings if word.startswith("--") and not word.endswith("+"))
    default: Any = action.default
    if action.dest in _SWITCHES:
        return option
    if default is None:
        return f"{option}={re.split('[._]', action.dest)[-1].upper()}"
    if isinstance(default, list | tuple):
        return f"{option}=[{','.join(map(_short, default))}]"
    if isinstance(default, bool):
        return f"{option}={str(default).lower()}"
    return f"{option}={default!r}" if "\n" in str(default) else f"{option}={_short(default)}"


def _short(value: Any) -> str:
    """Return a value as it is typed: a class by its name."""
    path = value.get("class_path", "") if isinstance(value, dict | Namespace) else ""
    return path.rpartition(".")[2] or str(value)


def _first_sentence(text: str) -> str:
    """Return the first sentence, up to a full stop, semicolon or colon outside of code, without parentheses."""
    line = re.sub(r"(`[^`]*`)|\s\([^()]*\)", r"\1", " ".join(text.split()))
    found = re.match(r"(?:`[^`]*`|[^`])*?(?=[.;:](?:\s|$))", line)
    return f"{found[0] if found else line}."


def _on_two_lines(command: str) -> str:
    """Break a command that is too long before its last option."""
    if len(command) <= WIDTH:
        return command
    start, _, last = command.rpartition(" --")
    return f"{start} \\\n    --{last}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
