"""Bad inputs of the commands: what is given, the exit code, what the sentence says. `test_bad_inputs.py` runs them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USAGE, RUN = 2, 1
"""Exit codes: an option or a config is refused; files, data, models or the run are not as they have to be."""


@dataclass(frozen=True)
class BadInput:
    """A command line, and what it is answered.

    Attributes:
        command: "test", or "train.py fit".
        words: Options; {tmp}, {model}, {data} stand for folders. What comes later wins over the common options.
        code: The exit code.
        says: Regular expressions, each of which the sentence holds.
        files: Written into {tmp} before, which is the working folder and on Python's path.
        model: Changes a copy of the tiny model, which is then {model}.
        common: Whether the common options (model, data, output, …) go before.
    """

    command: str
    words: tuple[str, ...]
    code: int
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    model: Callable[[Path], object] | None = None
    common: bool = True


def usage(command: str, words: str, *says: str, **more: Any) -> BadInput:
    """An option that is refused: exit code 2. Words are parted at two spaces."""
    return BadInput(command, tuple(words.split("  ")) if words else (), USAGE, says, **more)


def fault(command: str, words: str, *says: str, **more: Any) -> BadInput:
    """Files, data, a model or a run that is not as it has to be: exit code 1."""
    return BadInput(command, tuple(words.split("  ")) if words else (), RUN, says, **more)


def config(text: str | bytes, *says: str, command: str = "test", **more: Any) -> BadInput:
    """A config that is refused."""
    return usage(command, "--config=bad.yaml", *says, files={"bad.yaml": text, **more})


def data(content: str | bytes, *says: str, file: str = "test.jsonl", words: str = "") -> BadInput:
    """A data file that is refused."""
    return fault("test", f"--data.folder=bad{words}", *says, files={f"bad/{file}": content})


def model(change: Callable[[Path], object], *says: str, words: str = "", command: str = "test") -> BadInput:
    """A model folder that is refused."""
    return fault(command, f"--model.name={{model}}{words}", *says, model=change)


def own(body: str, *says: str, base: str = "ScheduledStrategy", code: int = USAGE, command: str = "test") -> BadInput:
    """A strategy of the user's own; `body` is what stands in its class. @ stands for the module's name."""
    source = f"import torch\nfrom hsdlab import {base}\n\nclass Mine({base}):\n    {body}\n"
    return module(source, *says, code=code, command=command)


def module(source: str, *says: str, code: int = USAGE, command: str = "test", what: str = "skip") -> BadInput:
    """A module of the user's own with a class Mine."""
    words = "--strategies=[own_module.Mine]" if command in ("compare", "bench") else f"--{what}=own_module.Mine"
    return BadInput(command, (words,), code, says, files={"own_module.py": source})


def lines(*records: object) -> str:
    """JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def changed(file: str, **values: Any) -> Callable[[Path], object]:
    """Change entries of a JSON file of a model; ... removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return change


def written(file: str, content: str | bytes) -> Callable[[Path], object]:
    """Write a file of a model."""
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def without(*files: str) -> Callable[[Path], object]:
    """Remove files of a model."""
    return lambda folder: [(folder / file).unlink() for file in files]


def bomb(levels: int = 9) -> str:
    """Nine lists of nine aliases: a billion values, in 500 bytes."""
    rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    rows += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows) + "\n"


LAYERS = "def layers_at(self, step, num_layers, max_steps): return "
PLAN = "def plan(self, state): return "
EXIT = "def should_exit(self, state): return "
CHAT = "  --data.chat=true"
TEMPLATE = "chat_template.jinja"
STRATEGIES = "expected one of CALM, .*or the dotted path of your own"
OF_PYTHON = "part of Python itself"
AGAIN = "Copy, download or export the model again"

OPTIONS = {
    "misspelt group": usage("test", "--modl.name=x", "no option --modl.name; did you mean --model.name"),
    "misspelt of the Trainer": usage("test", "--trainer.devicess=1", "`test` has no.*did you mean --trainer.devices"),
    "misspelt of a data set": usage("test", "--data.bach_size=2", "did you mean --data.batch_size"),
    "misspelt of a strategy": usage("test", "--skip=HSD  --skip.num_skiped=3", "did you mean --skip.num_skipped"),
    "of another strategy": usage("test", "--skip.num_skipped=3", "the class that --skip names takes no such argument"),
    "no option": usage("test", "--foo=1", "`test` has no option --foo"),
    "no option's word": usage("test", "foo", "'foo'.*belongs to no option"),
    "no such help": usage("test", "--help=trainer", "--help=trainer: give --help for .* or --help=all for every"),
    "no value": usage("test", "--output", "--output stands without a value"),
    "misspelt command": usage("tset", "", "no command 'tset'; did you mean 'test'", common=False),
    "command of train.py": usage("fit", "", "'fit' is a command of train.py", common=False),
    "command of evaluate.py": usage("train.py test", "", "'test' is a command of evaluate.py", common=False),
    "command is missing": usage("--model.name=x", "", "no command: expected one of validate, test", common=False),
    "nothing for train": usage("train.py fit", "", "no data: give a folder", "--data.folder", common=False),
    "nothing for test": usage("test", "", "no data: give a folder", "DataFolder, Docstrings", common=False),
    "no model": usage("test", "--data=Docstrings", "no model: give one with --model.name", common=False),
    "no parameter in a list": usage(
        "compare",
        "--strategies=[HSD, HSD(4, decai=1)]",
        "--strategies: HSD has no parameter decai",
        "Did you mean decay",
    ),
    "no parameter": usage("test", "--skip=HSD(bogus=1)", "--skip: HSD has no parameter bogus; it takes num_skipped, "),
    "no parameter in a config": usage(
        "compare",
        "--config=list.yaml",
        "list.yaml: strategies: CALM has no parameter treshold; .* Did you mean threshold",
        files={"list.yaml": "strategies: [HSD, {class_path: CALM, init_args: {treshold: 1}}]"},
    ),
    "no parameter in a call in a config": usage(
        "compare",
        "--config=list.yaml",
        "list.yaml: strategies: CALM has no parameter treshold; .* Did you mean threshold",
        files={"list.yaml": "strategies: [HSD, Verified(CALM(treshold=1))]"},
    ),
    "no parameter of a draft": usage(
        "compare", "--strategies=[Verified(HSD(decai=1))]", "--strategies: HSD has no parameter decai", "mean decay"
    ),
    "no strategies": usage("calibrate", "", "no strategies: give `calibrate` a list"),
    "value in a call": usage(
        "compare", "--strategies=[HSD(9, 9, 9, 9)]", r"--strategies: decay of HSD\(num_skipped, .*\): got '9'; expected"
    ),
    "beams 0": usage("test", "--model.num_beams=0", "--model.num_beams: got '0'; expected a whole number from 1 on"),
    "beams beyond": usage("test", "--model.num_beams=100000", "num_beams=100000: expected at most 261"),
    "tokens 0": usage("test", "--model.max_new_tokens=0", "max_new_tokens: got '0'; expected a whole number from 1"),
    "tokens -1": usage("test", "--model.max_new_tokens=-1", "max_new_tokens: got '-1'"),
    "tokens 1e9": usage("test", "--model.max_new_tokens=1e9", "max_new_tokens: got '1e9'; expected a whole number"),
    "tokens nan": usage("test", "--model.max_new_tokens=nan", "max_new_tokens: got 'nan'; expected a whole number"),
    "tokens beyond": usage("test", "--model.max_new_tokens=100000000", "no room for a prompt.*context of 2048 tokens"),
    "tokens beyond in training": usage("train.py fit", "--model.max_new_tokens=9999", "no room for a prompt"),
    "a prompt with a colon": usage(
        "test", "--data.prompt=Q: {source}", "expected a text", "write the text into a config"
    ),
    "validations beyond an epoch": fault(
        "train.py fit", "--trainer.val_check_interval=100  --trainer.max_steps=2", "an epoch has fewer batches"
    ),
    "seed -1": usage("test", "--seed_everything=-1", "--seed_everything=-1: expected a whole number from 0"),
    "seed 2**70": usage("train.py fit", f"--seed_everything={2**70}", "expected a whole number from 0 to 4294967295"),
    "seed abc": usage("test", "--seed_everything=abc", "--seed_everything: got 'abc'; expected .*a whole number"),
    "dtype": usage("test", "--model.dtype=float8", "got 'float8'; expected one of float32.*did you mean float32"),
    "metric": usage("test", "--model.metrics=[rogue]", "got 'rogue'; expected one of rouge.*did you mean rouge"),
    "metric is no list": usage("test", "--model.metrics=rogue", "expected a list"),
    "metric twice": usage("test", "--model.metrics=[rouge,rouge]", "lists 'rouge' twice"),
    "a switch": usage("test", "--data.chat=maybe", "--data.chat: got 'maybe'; expected true or false"),
    "output is empty": usage("test", "--output=", "expected the path of a folder"),
    "output is a file": fault("test", "--output={model}/config.json", "is a file; expected a folder"),
    "output below a file": fault(
        "test", "--output={model}/config.json/x", "a part of its path is no folder", "Give another"
    ),
    "output is the whole disk": fault("test", "--output=/", "folder / is not empty, and no run of hsdlab wrote"),
    "output in another code": usage("test", "--output=runs/\udce4", "--output='runs/.udce4': expected the path of"),
    "predictions": usage("test", "--model.predictions=x", "--model.predictions: leave it out; --output says"),
    "root": usage("test", "--trainer.default_root_dir=x", "--trainer.default_root_dir: leave it out; --output says"),
    "report without a run": usage("report", "", "required: RUN", common=False),
    "report misspelt": usage("report", "x  --outptu=y", "no option --outptu=y", common=False),
    "report nowhere": fault("report", "nowhere", "nowhere holds no finished run", "expected one of", common=False),
    "report names twice": usage("report", "a=x  a=y", "a name twice", common=False),
    "report several": usage("report", "x  y", "give the folder for it with --output", common=False),
    "validate of train.py writes nothing": usage("train.py validate", "--output=x", "it writes no folder"),
    "lora of a class": usage("train.py fit", "--model.lora=x", "expected its options one by one, such as --model.lora"),
    "misspelt of lora": usage("train.py fit", "--model.lora.foo=3", "`fit` has no option --model.lora.foo"),
    "strategy for fit_exit_classifier": usage(
        "train.py fit_exit_classifier", "--skip=HSD", "decodes under no strategy"
    ),
}

GENERATE = {
    name: usage("test", f"--model.generate_kwargs={given}", *says)
    for name, (given, *says) in {
        "no such": ("{foo: 1}", "'foo', which is no option of transformers' generate"),
        "misspelt": ("{temprature: 1}", "did you mean 'temperature'"),
        "a list": ("[1]", "expected a mapping such as"),
        "a key twice": ("{top_k: 1, top_k: 5}", "--model.generate_kwargs: the key 'top_k' is there twice; keep one"),
        "a nested key twice": ("{a: [{b: 1, b: 1}]}", "the key 'b' is there twice"),
        "a text for a number": ("{temperature: abc}", "temperature is 'abc'; expected a number"),
        "nan": ("{do_sample: true, temperature: .nan}", "temperature is nan; expected a finite number"),
        "no switch": ("{do_sample: maybe}", "do_sample is 'maybe'; expected true or false"),
        "no token": ("{eos_token_id: abc}", "eos_token_id is 'abc'; expected the number of a token, from 0 to 260"),
        "negative token": ("{pad_token_id: -5}", "pad_token_id is -5; expected the number of a token"),
        "token beyond": (
            "{forced_eos_token_id: 99999}",
            "forced_eos_token_id is 99999; expected the number of a token",
        ),
        "tokens beyond": ("{suppress_tokens: [99999]}", "suppress_tokens is .*expected the number of a token"),
        "bad words": ("{bad_words_ids: 3}", "cannot be decoded with these options", "leave them out"),
        "bias": ("{sequence_bias: 1}", "cannot be decoded with these options"),
        "decay": ("{exponential_decay_length_penalty: 7}", "cannot be decoded with these options"),
        "stop strings": ("{stop_strings: [3]}", "stop_strings is .*expected a string or a list of strings"),
        "an object": ("{logits_processor: 3}", "logits_processor is 3; it can be given in Python only"),
        "another tokenizer": ("{tokenizer: x}", "tokenizer is 'x'; it can be given in Python only"),
        "early stopping": ("{early_stopping: perhaps}", "transformers refuses it"),
        "watermark": ("{watermarking_config: 3}", "transformers refuses it"),
        "time": ("{max_time: -1}", "max_time is -1; expected a number"),
        "several": ("{num_return_sequences: 2}", "an example has one prediction"),
        "the cache": ("{use_cache: false}", "skipped layers are decoded on a key/value cache"),
    }.items()
}

TRAINER = {
    "strategy": usage("test", "--trainer.strategy=foo", "--trainer.strategy=foo", "expected one of auto, ddp"),
    "strategy of fit": usage(
        "train.py fit", "--trainer.strategy=foo", "--trainer.strategy=foo", "expected one of auto, ddp"
    ),
    "accelerator": usage("test", "--trainer.accelerator=foo", "the Trainer refuses.*invalid accelerator name"),
    "accelerator that is missing": usage("test", "--trainer.accelerator=tpu", "the Trainer refuses", "torch_xla"),
    "devices": usage("test", "--trainer.devices=foo", "the Trainer refuses", "should be an int > 0"),
    "no devices": usage("test", "--trainer.devices=0", "expected 1 or more"),
    "minus one device": usage("test", "--trainer.devices=-1", "the Trainer refuses"),
    "nodes": usage("test", "--trainer.num_nodes=0", "expected 1 or more"),
    "precision": usage("test", "--trainer.precision=foo", "--trainer.precision: got 'foo'; expected .*bf16-mixed"),
    "precision of a GPU": usage("test", "--trainer.precision=16", "not available on the CPU: give bf16-mixed"),
    "profiler": usage("test", "--trainer.profiler=foo", "the Trainer refuses", "'simple', 'advanced'"),
    "a limit": usage("test", "--trainer.limit_test_batches=1.5", "limit_test_batches", "expected a number of batches"),
    "no number": usage("test", "--trainer.limit_test_batches=abc", "limit_test_batches: got 'abc'; expected .*number"),
    "logger": usage("test", "--trainer.logger=foo", "--trainer.logger: unknown class 'foo'", "dotted path of a class"),
    "epochs": usage("train.py fit", "--trainer.max_epochs=x", "--trainer.max_epochs: got 'x'; expected a whole number"),
}

CLASSES = {
    "misspelt strategy": usage("test", "--skip=HDS", "--skip: unknown class 'HDS'; did you mean HSD"),
    "lower case": usage("test", "--skip=hsd", "did you mean HSD"),
    "unknown": usage("test", "--skip=Unheard", "unknown class 'Unheard'", STRATEGIES),
    "no name": usage("test", "--skip=", "no class", STRATEGIES),
    "null": usage("test", "--skip=null", "got null; expected a class: its name"),
    "a list": usage("test", "--skip=[HSD]", "expected a class: its name"),
    "os.system": usage("test", "--skip=os.system", OF_PYTHON, STRATEGIES),
    "antigravity": usage("test", "--skip=antigravity.fly", OF_PYTHON),
    "data os.system": usage("test", "--data=os.system", OF_PYTHON, "expected one of DataFolder"),
    "callback os.system": usage("test", "--trainer.callbacks=os.system", OF_PYTHON),
    "list os.system": usage("compare", "--strategies=[os.system]", OF_PYTHON),
    "tune this": usage("tune", "--max_loss=0.1  --classes=[this.x]", OF_PYTHON),
    "training os.system": usage("train.py fit", "--model.skip_strategies=[os.system]", OF_PYTHON),
    "a module": usage("test", "--skip=os", "unknown class 'os'"),
    "dots": usage("test", "--skip=a..b", "is no class path"),
    "tune dots": usage("tune", "--max_loss=0.1  --classes=[..]", "'..' is no name of a class"),
    "not there": usage("test", "--skip=hsdlab.nothing", "hsdlab.nothing cannot be taken", "has no attribute"),
    "no module": usage("test", "--skip=my_package.Missing", "No module named 'my_package'", "PYTHONPATH"),
    "a base": usage("test", "--skip=SkipStrategy", "is a base to derive classes from", STRATEGIES),
    "data base": usage("test", "--data=GenerationDataModule", "is a base to derive classes from"),
    "a callback": usage("test", "--skip=lightning.pytorch.callbacks.EarlyStopping", "is no SkipStrategy"),
    "a strategy as data": usage("test", "--data=HSD", "unfit class 'HSD'; expected one of DataFolder"),
    "two strategies": usage("test", "--skip=HSD  --trainer.callbacks=CALM", "one skip strategy in a run", "compare"),
    "parts are missing": usage("test", "--skip=Compose", "missing: --skip.schedule, --skip.confidence"),
    "beyond the model": usage("test", "--skip=HSD  --skip.max_exit=99", "max_exit=99 is beyond this model's 3 layers"),
    "no number": usage("test", "--skip=HSD  --skip.num_skipped=x", "--skip.num_skipped: got 'x'; expected a whole"),
    "no decay": usage("test", "--skip=HSD  --skip.decay=foo", "decay='foo'; expected one of linear"),
    "no measure": usage(
        "test", "--skip=CALM  --skip.measure=foo", "--skip.measure: got 'foo'; expected one of softmax"
    ),
    "nan": usage("test", "--skip=CALM  --skip.threshold=nan", "--skip.threshold: got 'nan'"),
    "no token counts": fault(
        "test",
        "--model.num_beams=1  --skip=Verified  --skip.draft=FullDepth  --skip.draft_vocabulary=nowhere",
        "there is no such file",
    ),
    "no classifier": fault(
        "test", "--skip=CALM  --skip.measure=classifier  --skip.classifier=nowhere", "there is no such file"
    ),
    "listed twice": usage("compare", "--strategies=[HSD,HSD]", "is listed 2 times"),
    "no list": usage("compare", "--strategies={a: HSD}", "--strategies: got .*; expected a list"),
    "listed unknown": usage("compare", "--strategies=[Unheard]", "unknown class 'Unheard'", STRATEGIES),
    "skip for compare": usage("compare", "--skip=HSD  --strategies=[HSD]", "`compare` has no option --skip", "`test`"),
    "an oracle's time": usage("bench", "--strategies=[OracleExit]", "is an oracle", "compare"),
    "more prompts than examples": usage("bench", "--strategies=[HSD]  --prompts=99", "holds only 5 examples"),
    "too few tokens": usage("bench", "--strategies=[HSD]  --new_tokens=1", "expected at least 2"),
    "batch 0": usage("bench", "--strategies=[HSD]  --batch_sizes=[0]", "--batch_sizes"),
    "more batches than examples": usage(
        "bench", "--strategies=[HSD]  --batch_sizes=[1,8]", "holds only 5 examples, not"
    ),
    "a cell twice": usage("bench", "--strategies=[HSD]  --beams=[2,2]", "holds a value twice"),
    "a cell beyond the context": usage(
        "bench", "--strategies=[HSD]  --prompt_tokens=[9,2048]", "prompt_tokens=2048 with new_tokens=50 does not fit"
    ),
    "early exit beyond": usage("bench", "--strategies=[HSD]  --assistant_early_exit=99", "expected at most 2"),
    "too many tokens": usage("bench", "--strategies=[HSD]  --new_tokens=9999", "does not fit the model's context"),
    "inspect what": usage("inspect", "--text=foo", "--text: got 'foo'; expected one of references, generated"),
    "no tokens": usage("count_tokens", "--size=0", "--size: got '0'; expected a whole number from 1 on"),
    "tune by nothing": usage("tune", "", "--max-loss", "--speedup"),
    "tune by both": usage("tune", "--max_loss=0.1  --speedup=2", "expected one of --max-loss"),
    "tune by drafts and loss": usage("tune", "--lossless  --max_loss=0.1", "Got --lossless and --max-loss=0.1"),
    "tune drafts with beams": usage("tune", "--lossless  --model.num_beams=2", "--lossless needs --model.num_beams=1"),
    "tune what": usage("tune", "--max_loss=0.1  --classes=[CALM]", "is no ScheduledStrategy"),
    "calibrate nothing": usage("calibrate", "--strategies=[]", "names no setting besides full depth"),
    "tolerance": usage("calibrate", "--strategies=[HSD]  --tolerance=2", "tolerance=2.0: expected a number between"),
}

OWN = {
    "syntax": module("class Mine(:\n", "own_module cannot be imported: SyntaxError", r"own_module\.py, line 1"),
    "raises on import": module(
        "1 / 0\n", "own_module cannot be imported: ZeroDivisionError", r"own_module\.py, line 1"
    ),
    "exits on import": module("raise SystemExit(3)\n", "own_module cannot be imported: it ends the program"),
    "imports what is missing": module("import nowhere_at_all\n", "No module named 'nowhere_at_all'"),
    "has no such class": module("x = 1\n", "has no attribute 'Mine'"),
    "is no strategy": module("class Mine: ...\n", "own_module.Mine is no SkipStrategy", STRATEGIES),
    "is a function": module("def Mine(): ...\n", "own_module.Mine is no SkipStrategy"),
    "writes nothing": own("pass", "is a base to derive classes from"),
    "None": own(LAYERS + "None", "Mine gave a NoneType as the layers of step 0; expected their indices"),
    "None for compare": own(LAYERS + "None", "Mine gave a NoneType as the layers of step 0", command="compare"),
    "a number": own(LAYERS + "3", "gave a int as the layers of step 0"),
    "a text": own(LAYERS + "'012'", "gave a str as the layers of step 0"),
    "none": own(LAYERS + "[]", "runs no layer in step 0"),
    "fractions": own(LAYERS + "[0.0, 1.0]", r"runs layers \[0.0, 1.0\] in step 0; this model has layers 0 to 2"),
    "beyond": own(LAYERS + "[99]", r"runs layers \[99\] in step 0; this model has layers 0 to 2"),
    "negative": own(LAYERS + "[-1]", r"runs layers \[-1\]"),
    "switches": own(LAYERS + "[True]", "runs layers .*True"),
    "raises": own(LAYERS + "1 / 0", r"Mine fails: ZeroDivisionError.*own_module\.py, line 5", code=RUN),
    "schedule": own(
        "layers_at = None\n    def scheduled_layers(self, num_layers, max_steps): return 3", "scheduled_layers returned"
    ),
    "plan None": own(PLAN + "None", "plan returned a NoneType", "BoolTensor", base="SkipStrategy"),
    "plan of floats": own(PLAN + "torch.ones(state.rows, state.num_layers)", "float32 tensor", base="SkipStrategy"),
    "plan of another shape": own(PLAN + "torch.ones(2, 2, dtype=torch.bool)", r"shape \(2, 2\)", base="SkipStrategy"),
    "plan of nothing": own(
        PLAN + "torch.zeros(state.rows, state.num_layers, dtype=torch.bool)", "runs no layer", base="SkipStrategy"
    ),
    "plan raises": own(PLAN + "1 / 0", r"fails: ZeroDivisionError.*line 5", base="SkipStrategy", code=RUN),
    "plan raises in bench": own(PLAN + "1 / 0", "ZeroDivisionError", base="SkipStrategy", code=RUN, command="bench"),
    "exit None": own(EXIT + "None", "should_exit returned a NoneType", "BoolTensor", base="ConfidenceStrategy"),
    "exit of another shape": own(
        EXIT + "torch.ones(7, dtype=torch.bool)", r"shape \(7,\)", base="ConfidenceStrategy", command="compare"
    ),
    "exit raises": own(EXIT + "state.nothing", "fails: AttributeError", base="ConfidenceStrategy", code=RUN),
    "constructor raises": own(
        f"def __init__(self): raise ValueError('mine')\n    {LAYERS}[0]", "cannot be made: ValueError: mine", "line 5"
    ),
    "loses an argument": own(f"def __init__(self, x: int = 1): pass\n    {LAYERS}[0]", "no attribute of that name"),
    "data that raises": module(
        "from hsdlab.data import GenerationDataModule\nclass Mine(GenerationDataModule):\n"
        "    def load_examples(self, split): return 1 / 0\n",
        "Mine fails: ZeroDivisionError",
        code=RUN,
        what="data",
    ),
    "data of texts": module(
        "from hsdlab.data import GenerationDataModule\nclass Mine(GenerationDataModule):\n"
        "    def load_examples(self, split): return ['x']\n",
        "expected an Example, got str",
        code=RUN,
        what="data",
    ),
}

CONFIGS = {
    "binary": config(bytes(range(256)), "bad.yaml: the config is no text in UTF-8"),
    "UTF-16": config("model: {num_beams: 2}".encode("utf-16"), "the config is no text in UTF-8"),
    "empty": config("", "the config is empty; expected options"),
    "a list": config("- a\n- b\n", "the config holds a list; expected options"),
    "a word": config("hello\n", "the config holds a value"),
    "a key twice": config("output: a\nmodel:\n  name: x\noutput: b\n", "line 4: 'output' stands in line 1 already"),
    "a nested key twice": config("model:\n  num_beams: 1\n  num_beams: 2\n", "line 3: 'num_beams' stands in line 2"),
    "tabs": config("model:\n\tnum_beams: 2\n", "line 2: this is no YAML", "indent with spaces"),
    "not closed": config("model: {num_beams: 2\n", "line 2: this is no YAML"),
    "two documents": config("output: a\n---\noutput: b\n", "this is no YAML"),
    "an unknown alias": config("model: *x\n", "undefined alias"),
    "an alias bomb": config(bomb(), "its aliases .* stand for more than"),
    "an alias of itself": config("model: &a {generate_kwargs: *a}\n", "stands inside of what it refers to"),
    "a bomb in an option": usage(
        "test", f"--model.generate_kwargs={{{', '.join(bomb().split(chr(10))[:-1])}}}", "stand"
    ),
    "too deep": config(f"output: {'[' * 3000}{']' * 3000}\n", "nested too deep"),
    "too deep by indenting": config("".join(" " * i + f"a{i}:\n" for i in range(2000)), "nested too deep"),
    "an object of Python": config("output: !!python/object/apply:os.system [echo]\n", "line 1: .* is no plain value"),
    "a list as a key": config("? [a, b]\n: 3\n", "a key is a list or mapping"),
    "a number as a key": config("1: 2\n", "has the key 1, which is no name|`test` has no option"),
    "an unknown key": config("modle:\n  num_beams: 2\n", "bad.yaml, line 2: .*did you mean model.num_beams"),
    "an unknown key of a class": config(
        "data:\n  class_path: JSONLines\n  init_args:\n    foldr: x\n", "bad.yaml, line 4: .*did you mean data.folder"
    ),
    "a wrong type": config("seed_everything: many\n", "got 'many'; expected .*a whole number"),
    "no group": config("trainer: [1]\n", "line 1: trainer is no mapping"),
    "no switch": config("overwrite: maybe\n", "overwrite: got 'maybe'; expected true or false"),
    "a class that is a number": config("data:\n  class_path: 3\n", "data"),
    "no text": config("output: null\n", "--output: expected a text"),
    "the command's name": config("test:\n  model:\n    num_beams: 2\n", "settings stand without the command's name"),
    "what is missing": config("include: [nowhere.yaml]\n", "bad.yaml includes nowhere.yaml: there is no file"),
    "itself": config("include: [bad.yaml]\n", "include each other in a circle"),
    "a circle": config("include: [b.yaml]\n", "in a circle", **{"b.yaml": "include: [bad.yaml]\n"}),
    "no list of paths": config("include: x.yaml\n", "`include` is no list of paths"),
    "strategies for test": config("strategies: [HSD]\n", "line 1: `test` has no option strategies", "with --skip"),
    "a strategy for inspect": config("skip: {class_path: HSD}\n", "decodes under no strategy", command="inspect"),
    "os.system": config("data: os.system\n", OF_PYTHON),
    "no file": usage("test", "--config=nowhere.yaml", "--config: there is no file .*nowhere.yaml"),
    "a folder": usage("test", "--config={data}", "--config: .* is a folder"),
    "no YAML": usage("test", "--config={", "neither a file nor YAML"),
}

ONE = {"id": "a", "source": "hello", "references": ["x"]}
DATA = {
    "empty": data("", "test.jsonl holds no row"),
    "blank": data("\n\n", "test.jsonl holds no row"),
    "garbage": data(b"\x80\x81" * 9, "test.jsonl, line 1 is not JSON in UTF-8|UTF-8"),
    "no JSON": data("hello\n", "line 1 is not JSON"),
    "cut off": data(lines(ONE)[:-9], "line 1 is not JSON"),
    "a list": data("[1]\n", "line 1: expected a JSON object, got list"),
    "a key twice": data('{"id": "a", "id": "b", "source": "s", "references": ["x"]}\n', 'the key "id" is there twice'),
    "an id twice": data(lines(ONE, ONE), 'line 2: id "a" is also that of line 1'),
    "a lone surrogate": data(lines(ONE | {"source": "\ud800"}), "line 1: .source. cannot be encoded in UTF-8"),
    "UTF-16": data(lines(ONE).encode("utf-16"), "is in UTF-16, expected UTF-8", "iconv"),
    "no reference": data(lines(ONE | {"references": []}), "expected at least one"),
    "a number": data(lines(ONE | {"source": 3}), '"source" has to be a string, got int'),
    "no source": data(lines({"id": "a", "references": ["x"]}), 'no key "source"'),
    "NaN": data('{"id": NaN, "source": "a", "references": ["x"]}\n', "NaN is not JSON"),
    "deep": data("[" * 100_000 + "\n", "line 1 is not JSON"),
    "CSV of other cells": data("source,references\nhello\n", "row 1 .line 2.: 1 cells", file="test.csv"),
    "Parquet that is none": data(b"PAR1xxx", "cannot be read as Parquet", file="test.parquet"),
    "gzip that is none": data(b"xx", "test.jsonl.gz", file="test.jsonl.gz"),
    "JSON that is none": data("{", "test.json, line 1 is not JSON", file="test.json"),
    "another format": data(b"PK", "No file .*test.jsonl .or .ndjson, .json, .csv", file="test.xlsx"),
    "no folder": fault("test", "--data.folder=/nowhere_at_all", "No folder /nowhere_at_all"),
    "a file": fault("test", "--data.folder={model}/config.json", "is a file: give the folder"),
    "no prompt": usage("test", "--data.prompt=x", "holds {source} 0 times: expected once"),
    "batches of none": usage("test", "--data.batch_size=0", "batch_size=0: expected a whole number, 1 or more"),
    "a prompt beyond": usage("test", "--data.max_prompt_tokens=99999999", "do not fit the model's context"),
    "no such set": usage("test", "--data=HubDataset  --data.name=foo", "name='foo': expected one of cnn_dailymail"),
    "a set without a name": usage("test", "--data=HubDataset", "missing: --data.name"),
    "a split": usage("predict", "--data.predict_split=foo", "--data.predict_split: got 'foo'; expected one of train"),
    "targets": fault("train.py fit", "--data.targets=[nowhere]", "data.targets: no file nowhere"),
}

MODELS = {
    "nowhere": fault("test", "--model.name=/nowhere_at_all", "no model folder or .gguf file at /nowhere_at_all"),
    "empty name": fault("test", "--model.name=", "the model's name is empty"),
    "not of the hub": fault("test", "--model.name=org/nowhere", "is not a local folder", "Give a local folder"),
    "not embedded": fault(
        "test", "--model.name=embedded:foo", "no embedded model or installed adapter is called", "there are"
    ),
    "a file": fault("test", "--model.name={model}/config.json", "is a file; expected a model folder"),
    "no config": model(without("config.json"), "it has no config.json"),
    "no weights": model(without("model.safetensors"), "has no weights: expected"),
    "no tokenizer": model(without("tokenizer.json", "tokenizer_config.json"), "tokenizer", "Expected|expected"),
    "cut off": model(written("model.safetensors", b"x" * 99), "its weights cannot be read", AGAIN),
    "of train.py": model(written("model.safetensors", b""), "weights cannot be read", AGAIN, command="train.py fit"),
    "of bench": model(written("model.safetensors", b""), AGAIN, words="  --strategies=[HSD]", command="bench"),
    "config is no JSON": model(written("config.json", "{"), "config.json", AGAIN),
    "a pickle": model(
        lambda folder: (without("model.safetensors")(folder), written("pytorch_model.bin", b"\x80\x04x")(folder)),
        "weights",
        AGAIN,
    ),
    "remote code": model(
        changed("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
        "needs custom code",
        "take a model whose architecture is part of transformers",
    ),
    "other sizes": model(changed("config.json", hidden_size=64), "the sizes of its weights"),
    "no layers": model(changed("config.json", num_hidden_layers=0), "num_hidden_layers=0; expected 1 or more"),
    "fewer than no layers": model(changed("config.json", num_hidden_layers=-1), "num_hidden_layers=-1"),
    "odd heads": model(changed("config.json", num_attention_heads=5), "its config.json does not describe a model"),
    "no activation": model(changed("config.json", hidden_act="foo"), "foo", AGAIN),
    "an encoder": model(changed("config.json", model_type="bert", architectures=["BertModel"]), "decoder-only"),
    "a quantised one": model(
        changed("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "a Python package that the model needs is missing",
        "Install it",
    ),
    "a short context": usage(
        "test", "--model.name={model}", "context of 3 tokens", model=changed("config.json", max_position_embeddings=3)
    ),
    "no ends": model(changed("tokenizer_config.json", eos_token=...), "padding nor an end-of-sequence token"),
    "an odd end": model(changed("generation_config.json", eos_token_id="abc"), "generation_config.json says", "Mend"),
    "odd stop strings": model(changed("generation_config.json", stop_strings=[3]), "generation_config.json", "Mend"),
    "generation config": model(written("generation_config.json", "[1]"), "generation_config.json cannot be read"),
    "no chat template": fault("test", "--data.chat=true", "the tokenizer has no chat template: set chat=False"),
    "no chat template to train": fault("train.py fit", "--data.chat=true", "the tokenizer has no chat template"),
    "a template that raises": model(
        written(TEMPLATE, "{{ raise_exception('no') }}"), "chat template fails on user messages.*no", words=CHAT
    ),
    "a template with an error": model(written(TEMPLATE, "{% if %}"), "TemplateSyntaxError", words=CHAT),
    "a template that knows nothing": model(written(TEMPLATE, "{{ foo.bar.baz }}"), "UndefinedError", words=CHAT),
    "a template that attacks": model(written(TEMPLATE, "{{ ''.__class__.__mro__ }}"), "SecurityError", words=CHAT),
    "a template of nothing": model(written(TEMPLATE, ""), "has no token|does not write the user's", words=CHAT),
    "a template without the message": model(
        written(TEMPLATE, "{% for m in messages %}x{% endfor %}"), "does not write the user's message", words=CHAT
    ),
    "no adapter": fault("test", "--model.adapter=nowhere", "no adapter at", "adapter_config.json"),
    "an adapter's lost base": fault(
        "test",
        "--model.name=adapter",
        "the adapter adapter names '../base' as its base model; there is no model folder at",
        "--model.adapter",
        files={"adapter/adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "../base"})},
    ),
    "no encoder": fault("test", "--model.bertscore_encoder=nowhere  --model.metrics=[bertscore]", "encoder folder"),
    "no embedded encoder": usage(
        "test", "--model.bertscore_encoder=embedded:foo  --model.metrics=[bertscore]", "no embedded model"
    ),
    "no encoder's model": fault(
        "test",
        "--model.bertscore_encoder={model}  --model.metrics=[bertscore]",
        "cannot be used as BERTScore's encoder",
        "leave bertscore out",
    ),
}


def run_record(**values: Any) -> Callable[[Path], object]:
    """Change entries of run.json."""
    return changed("run.json", **values)


def copied(change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    """Copy a finished run to {tmp}/run and change it."""

    def make(finished: Path, tmp: Path) -> None:
        shutil.copytree(finished, tmp / "run")
        change(tmp / "run")

    return make


TO_REPORT = {
    "result empty": (written("result.json", ""), "result.json: expected a strategy result as a JSON object"),
    "result binary": (written("result.json", bytes(range(256))), "got bytes that are no text"),
    "result a list": (written("result.json", "[]"), "expected a strategy result"),
    "result deep": (written("result.json", "[" * 100_000), "expected a strategy result"),
    "result of nothing": (written("result.json", "{}"), "schema version 1"),
    "result of another kind": (
        changed("result.json", kind="comparison"),
        "expected a strategy result, got a comparison",
    ),
    "result of a later version": (changed("result.json", schema_version=99), "schema version 99", "Create it again"),
    "scores of text": (changed("result.json", scores={"rouge1": "x"}), "expected a whole strategy result"),
    "odd numbers": (changed("result.json", num_layers=-1), "cannot be drawn", "Run the command that wrote them again"),
    "odd not_finite": (changed("result.json", not_finite=[1]), "expected a whole strategy result"),
    "no predictions": (without("predictions.jsonl"), "predictions.jsonl is missing"),
    "predictions binary": (written("predictions.jsonl", bytes(range(256)) + b"\n"), "line 1: expected a prediction"),
    "predictions of text": (
        written("predictions.jsonl", "hello\n"),
        "predictions.jsonl, line 1: expected a prediction",
    ),
    "predictions of nothing": (written("predictions.jsonl", "{}\n"), "line 1: expected a prediction"),
    "no result": (without("result.json"), "holds no finished run"),
}
TO_RESUME = {
    "run empty": (written("run.json", ""), "run.json: expected a run as a JSON object"),
    "run binary": (written("run.json", bytes(range(256))), "got bytes that are no text"),
    "run a list": (written("run.json", "[1]"), "expected a run as a JSON object"),
    "run of another kind": (run_record(kind="x"), "expected a run, got a x"),
    "run of a later version": (run_record(schema_version=99), "schema version 99"),
    "run without settings": (run_record(config=3), "expected a whole run"),
    "predictions of text": (written("predictions.jsonl", "hello\n"), "line 1: expected a prediction", "--overwrite"),
    "predictions binary": (written("predictions.jsonl", bytes(range(256)) + b"\n"), "line 1: expected a prediction"),
}

TABLE: dict[str, BadInput] = {
    f"{kind}: {name}": case
    for kind, cases in {
        "option": OPTIONS,
        "generate": GENERATE,
        "trainer": TRAINER,
        "class": CLASSES,
        "own": OWN,
        "config": CONFIGS,
        "data": DATA,
        "model": MODELS,
    }.items()
    for name, case in cases.items()
}
