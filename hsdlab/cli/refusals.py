"""What the parser refuses, in one sentence: which option, what was got, what is expected, what is near.

jsonargparse tells it over many lines, in the names of Python's types. Each of its messages that a command line or a
config can bring about has a row in `_RULES`; what has none is shown as it is, on one line.

Longer than other files: a third of it is that table.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from hsdlab.cli.class_arguments import GivenClass
from hsdlab.reasons import without_advice

_LONGEST = 1000
_OF_PYTHON = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping such as '{name: value}'",
    "list": "a list such as '[a, b]'",
    "Sequence": "a list such as '[a, b]'",
    "tuple": "a list such as '[a, b]'",
    "NoneType": "null",
}
_BOUNDED = {
    "PositiveInt": "a whole number from 1 on",
    "NonNegativeInt": "a whole number from 0 on",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number from 0 on",
    "ClosedUnitInterval": "a number from 0 to 1",
    "OpenUnitInterval": "a number between 0 and 1",
}
_ELSEWHERE = {
    "skip": "it decodes under no strategy that is given; `test` takes one, `compare`, `bench` and `calibrate` a list",
    "strategies": "it takes one strategy, with --skip; `compare` takes a list",
    "first": "settings to try first are for `tune`",
    "output": "it writes no folder",
}
"""What to say of an option that other commands have."""
_OTHER_PROGRAM = {
    **dict.fromkeys(("fit", "fit_exit_classifier", "fit_exit_router"), "train.py"),
    **dict.fromkeys(("test", "predict", "compare", "calibrate", "tune", "bench", "inspect"), "evaluate.py"),
    **dict.fromkeys(("count_tokens", "report"), "evaluate.py"),
}


class Refusal:
    """Turns the parser's message into a sentence.

    Args:
        words: The command line.
        command: The subcommand that it names, or "".
        options: All options that the subcommand has, without hyphens: "model.num_beams".
        classes: Gives the names of the classes that an option takes, by the option's last name.
        place: Says in which config a key stands, such as "mine.yaml, line 3", or "" where it stands in none.
        given: The strategies that are given with arguments.
    """

    def __init__(
        self,
        words: Sequence[str],
        command: str,
        options: Iterable[str],
        classes: Callable[[str], Sequence[str]],
        place: Callable[[str], str],
        given: Sequence[GivenClass] = (),
    ) -> None:
        self.words = words
        self.command = command
        self.options = sorted(set(options))
        self.classes = classes
        self.place = place
        self.given = given

    def sentence(self, message: str) -> str:
        """Turn a message of jsonargparse or argparse into a sentence.

        Args:
            message: As the parser words it, on one line or many.

        Returns:
            The sentence of the first rule that fits; without one the message itself, shortened.
        """
        for pattern, method in _RULES:
            found = re.search(pattern, message, re.DOTALL)
            if found:
                return without_advice(method(self, *found.groups()), _LONGEST)
        return without_advice(message, _LONGEST)

    # ---- options that there are not

    def unrecognized(self, words: str) -> str:
        """Name the first word that is no option, and one that is near.

        Args:
            words: Those that the parser did not take, separated by spaces.

        Returns:
            The sentence.
        """
        word = words.split()[0]
        if not word.startswith("-"):
            return f"got {word!r}, which belongs to no option: give options as --name=value"
        return self._no_option(word.partition("=")[0].lstrip("-"), dashes="--")

    def not_accepted(self, key: str) -> str:
        """Name a key of a config, or an option of a class, that is not known.

        Args:
            key: Dotted; may hold ``init_args``.

        Returns:
            The sentence.
        """
        key = key.replace("init_args.", "")
        if self._on_line(key):
            return self._no_option(self._option(key), dashes="--")
        without = next((each for each in self.given if key in each.given and key not in each.takes), None)
        if without is not None:
            near = difflib.get_close_matches(key, without.takes, n=1, cutoff=0.5)
            return (
                f"{without.where}: {without.name} has no parameter {key}; it takes "
                f"{', '.join(without.takes) or 'none'}{f'. Did you mean {near[0]}?' if near else ''}"
            )
        if "." not in key:  # an argument of a class
            key = next((whole for group in _GROUPS if self.place(whole := f"{group}.{key}")), key)
        nested = f"{self.command}."
        if key.startswith(nested) and self.place(key):
            return f"{self.place(key)}: settings stand without the command's name: {key.removeprefix(nested)}"
        return self._no_option(key.removeprefix(nested), dashes="")

    def _no_option(self, name: str, dashes: str) -> str:
        if not self.command:
            return self.no_command()
        where = "" if dashes else self.place(name)
        text = f"{where}{': ' if where else ''}`{self.command}` has no option {dashes}{name}"
        group = name.split(".")[0]
        if name in self.options:  # of another class than the one that is named
            return (
                f"{dashes}{name}: the class that --{group} names takes no such argument; name its class with --{group}"
            )
        hint = None if group in self.options else _ELSEWHERE.get(group)
        near = self._near(name)
        if near and not hint:
            return f"{text}; did you mean {dashes}{near[0]}?"
        return f"{text}: {hint}" if hint else text

    def _near(self, name: str) -> list[str]:
        if "." not in name:  # an option of a class, of which the config names the last part only
            ends = {option.rpartition(".")[2] for option in self.options if option.startswith(_GROUPS)} - {name}
            return difflib.get_close_matches(name, [*self.options, *ends], n=1, cutoff=0.7)
        options = [option for option in self.options if not name.startswith(f"{option}.")]
        return difflib.get_close_matches(name, options, n=1, cutoff=0.7)

    # ---- values

    def value(self, key: str, rest: str) -> str:
        """Say what an option expects, and what it got.

        Args:
            key: The option.
            rest: The message after the option; it holds what is expected and what was got.

        Returns:
            The sentence.
        """
        option = self._argument(key)
        got = re.search(r"(?:Given value|Got value): (.*?)(?:\n|$)", rest)
        value = got[1].strip() if got else ""
        bounded = re.search(r"Not of type (\w+): (?:invalid literal .*?: '(.*?)'|(\S+) does not conform)", rest)
        if bounded:
            expected_number = _BOUNDED.get(bounded[1], "another number")
            return f"{option}: got {_quoted(bounded[2] or bounded[3])}; expected {expected_number}"
        expected = list(dict.fromkeys(_expected(rest)))
        if not expected:
            return f"{option}: {rest.strip()}"
        near = [each for each in _choices(rest) if difflib.SequenceMatcher(None, each, value).ratio() > _ALIKE]
        hint = f"; did you mean {near[0]}?" if near else ""
        if "a text" in expected and value.startswith("{"):
            hint = ". YAML takes a colon and a space for a key: write the text into a config, where quotes enclose it"
        return f"{option}: got {_quoted(value)}; expected {' or '.join(expected)}{hint}"

    def required(self, names: str) -> str:
        """Name the options that are missing.

        Args:
            names: Separated by commas.

        Returns:
            The sentence, which says how to give data, a model or strategies where one of these is all that is missing.
        """
        found = [name.strip().removeprefix(f"{self.command}.") for name in names.split(",")]
        if found == ["folder"]:
            return (
                "no data: give a folder of your own with --data.folder=path/to/folder, or a data set with --data=, one "
                f"of {', '.join(self.classes('data'))}"
            )
        if found == ["model.name"]:
            return (
                'no model: give one with --model.name=, a model folder, a .gguf file, "embedded:smollm2-135m" or the '
                "id of a model on the hub"
            )
        if found == ["strategies"]:
            return (
                f"no strategies: give `{self.command}` a list with --strategies='[HSD, SkipDecode]', or a config under "
                "configs/strategy with --config"
            )
        of_class = {name: f"{group}.{name}" for group in _GROUPS for name in found if f"{group}.{name}" in self.options}
        named = [of_class.get(name, name) for name in found]
        return f"missing: {', '.join(f'--{name}' for name in named)}; give each a value"

    # ---- classes

    def unknown_class(self, key: str, name: str) -> str:
        """Say which classes there are.

        Args:
            key: The option that takes a class.
            name: What was given; may be empty.

        Returns:
            The sentence.
        """
        last = key.rpartition(".")[2]
        known = self.classes(last)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
            each for each in known if each.lower() == name.lower()
        ]
        hint = f"; did you mean {near[0]}?" if near else ""
        word = "unfit" if name in self.classes("") else "unknown"
        got = f"{word} class {name!r}" if name else "no class"
        return f"{self._argument(key)}: {got}{hint or '; ' + self._classes(key)}"

    def no_subclass(self, key: str, name: str, base: str) -> str:
        """Say that a class is of another kind.

        Args:
            key: The option.
            name: The class path that was given.
            base: Name of the class that it has to derive from.

        Returns:
            The sentence.
        """
        return f"{self._named(key)}: {name} is no {base}; {self._classes(key)}"

    def no_import(self, key: str, name: str, why: str) -> str:
        """Say why a class cannot be imported.

        Args:
            key: The option.
            name: The class path that was given.
            why: The parser's reason.

        Returns:
            The sentence.
        """
        option = self._named(key)
        if "not allowed, denied by" in why:  # its class may be Python's where its module is the user's
            return (
                f"{option}: {name} is part of Python itself, and hsdlab imports nothing of that by a class path; "
                f"{self._classes(key)}"
            )
        why = " ".join(why.split()).rstrip(". ")
        return (
            f"{option}: {name} cannot be taken: {why}; {self._classes(key)}. Your own module has to be importable: "
            "beside where you start the command, or on PYTHONPATH"
        )

    def no_class(self, key: str, value: str) -> str:
        """Say how a class is given.

        Args:
            key: The option.
            value: What was given in its place.

        Returns:
            The sentence.
        """
        return (
            f"{self._named(key)}: got {_quoted(value)}; expected a class: its name, such as "
            f"{(self.classes(key.rpartition('.')[2]) or ['HSD'])[0]}, or {{class_path: NAME, init_args: {{…}}}}"
        )

    def abstract(self, key: str, name: str) -> str:
        """Say that a base class cannot be taken.

        Args:
            key: The option.
            name: The base class.

        Returns:
            The sentence.
        """
        return f"{self._named(key)}: {name} is a base to derive classes from; {self._classes(key)}"

    def command_(self, name: str) -> str:
        """Say which commands there are.

        Args:
            name: What was given.

        Returns:
            The sentence, with the program that has the command, or else the nearest command.
        """
        commands = self.classes("subcommand")
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
        if name in _OTHER_PROGRAM and name not in commands:
            return f"{name!r} is a command of {_OTHER_PROGRAM[name]}; here there are {', '.join(commands)}"
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"there is no command {name!r}{hint} The commands are {', '.join(commands)}"

    def no_command(self) -> str:
        """Say that the command is missing.

        Returns:
            The sentence, with the commands.
        """
        return f"no command: expected one of {', '.join(self.classes('subcommand'))}, before all options"

    def _classes(self, key: str) -> str:
        """Say what an option expects that takes a class."""
        known = self.classes(key.rpartition(".")[2])
        if known:
            return f"expected one of {', '.join(known)}, or the dotted path of your own, such as my_package.MyClass"
        if key.startswith("model."):  # of no class that could be chosen
            return f"expected its options one by one, such as --{key}.NAME=VALUE"
        return "expected the dotted path of a class, such as my_package.MyClass"

    # ---- names

    def no_help(self, what: str) -> str:
        """Say which helps there are.

        Args:
            what: The word after --help=.

        Returns:
            The sentence.
        """
        return f"--help={what}: give --help for the command's own options, or --help=all for every option"

    def no_value(self, option: str) -> str:
        """Say that an option stands alone.

        Args:
            option: As it was given, or all its forms separated by slashes.

        Returns:
            The sentence.
        """
        option = option.split("/")[-1]
        return f"{option} stands without a value: give {option}=VALUE"

    def no_yaml(self, key: str) -> str:
        """Say that a value is no YAML.

        Args:
            key: The option.

        Returns:
            The sentence.
        """
        example = "{model: {num_beams: 1}}"
        return f"--{key}: this is neither a file nor YAML; expected a path, or settings such as '{example}'"

    def no_name(self, key: str) -> str:
        """Say that a key is no name.

        Args:
            key: As it stands in the config.

        Returns:
            The sentence.
        """
        key = key.rstrip(".")
        return f"a config has the key {key}, which is no name; expected the names of options"

    def no_config(self, why: str) -> str:
        """Say that a config is no YAML that can be read.

        Args:
            why: The reason of the YAML parser.

        Returns:
            The sentence.
        """
        return f"a config cannot be read: {why}"

    def unfit(self, option: str) -> str:
        """Say that an option has a value that nothing can be made of.

        Args:
            option: The option.

        Returns:
            The sentence.
        """
        return f"{self._named(option)}: expected a text, such as a path; leave it out for the default"

    def linked(self, option: str, follows: str) -> str:
        """Say that an option follows another one.

        Args:
            option: The one to give.
            follows: The one that gets its value.

        Returns:
            The sentence.
        """
        return f"--{follows}: leave it out; --{option} says where all is written"

    def no_path(self, key: str, name: str) -> str:
        """Say that a class path is none.

        Args:
            key: The option.
            name: What was given.

        Returns:
            The sentence.
        """
        return f"{self._named(key)}: {name} is no class path; {self._classes(key)}"

    def no_file(self, path: str) -> str:
        """Say that a config is missing.

        Args:
            path: As it was given.

        Returns:
            The sentence.
        """
        return f"--config: there is no file {path}; give the path of a YAML file"

    def no_config_file(self, path: str) -> str:
        """Say that a config is a folder.

        Args:
            path: As it was given.

        Returns:
            The sentence.
        """
        return f"--config: {path} is a folder; give the path of a YAML file"

    def _option(self, key: str) -> str:
        """Return the whole name of an option of which the last part is known."""
        if key in self.options:
            return key
        for word in self.words:
            name = word.partition("=")[0].lstrip("-")
            if word.startswith("--") and (name == key or name.endswith(f".{key}")):
                return name
        whole = [option for option in self.options if option.endswith(f".{key}")]
        return whole[0] if len(whole) == 1 else key

    def _on_line(self, key: str) -> bool:
        """Tell whether an option stands on the command line itself."""
        return any(word.partition("=")[0] == f"--{self._option(key)}" for word in self.words)

    def _named(self, key: str) -> str:
        """Return an option with what tells the user where it stands: hyphens, or the config's place."""
        key = key.removeprefix(f"{self.command}.")
        option = self._option(key)
        if self._on_line(key):
            return f"--{option}"
        where = self.place(option)
        return f"{where}: {option}" if where else f"--{option}"

    def _argument(self, key: str) -> str:
        """Return an option as `_named` does; an argument of a class in a list with the class."""
        having = next((each for each in self.given if key in each.given and key in each.takes), None)
        if having is None or self._on_line(key):
            return self._named(key)
        return f"{having.where}: {key} of {having.name}({', '.join(having.takes)})"


_ALIKE = 0.6
_GROUPS = ("data", "skip")  # the options that name one class
_KEY = r'^(?:Parser key|argument) "?([\w.]+)"?:\s*'
_RULES: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"^unrecognized arguments: (.*)", Refusal.unrecognized),
    (r"^argument subcommand: invalid choice: '(.*?)'", Refusal.command_),
    (r'^expected "subcommand" to be one of', Refusal.no_command),
    (r"^(?:Subcommand|Group) '[^']*' does not accept option '([^']*)'", Refusal.not_accepted),
    (r"^Option '([^']*)' is not accepted", Refusal.not_accepted),
    (r"^the following arguments are required: (.*)", Refusal.required),
    (r"^argument -h/--help: ignored explicit argument '(.*)'", Refusal.no_help),
    (r"^argument (\S+): expected (?:one|at least one) argument", Refusal.no_value),
    (r'^Parser key "config": File does not exist: \'(.*?)\'', Refusal.no_file),
    (r'^Parser key "config": Path is not a file: \'(.*?)\'', Refusal.no_config_file),
    (_KEY + r".*Unexpected import path format: (\S+)", Refusal.no_path),
    (_KEY + r".*Problem with given class_path '([^']*)':\s*(.*)", Refusal.no_import),
    (_KEY + r".*Import path (\S+) does not correspond to a subclass of (\w+)", Refusal.no_subclass),
    (_KEY + r".*Expected a dot import path string: (\S*)", Refusal.unknown_class),
    (_KEY + r".*Expected an instantiatable class, but (\S+) is (?:abstract|a protocol)", Refusal.abstract),
    (_KEY + r".*Not a valid subclass of \w+\. Got value: (.*?)(?:\n|$)", Refusal.no_class),
    (_KEY + r"while (?:parsing|scanning) .*", Refusal.no_yaml),
    (_KEY + r"(.*)", Refusal.value),
    (r"^Key must be a string, got: (.*)", Refusal.no_name),
    (r"^Problems parsing config: (.*)", Refusal.no_config),
    (r"^Call to compute_fn of link '\w+\((\w+)\)", Refusal.unfit),
    (r"^argument (?:\w+\()?(\w+)\)? --> ([\w.]+): ", Refusal.linked),
)


def _expected(text: str) -> list[str]:
    """Return what the parts of a message say that is expected, in the user's words."""
    found = []
    for what in re.findall(r"Expected a (.*?)(?:\. Got value|\n|$)", text):
        literal = re.search(r"Literal\[(.*)\]", what)
        of_class = re.search(r"<class '([\w.]+)'>", what)
        if literal:
            found.append(f"one of {literal[1].replace(chr(39), '')}")
        elif of_class:
            name = of_class[1].rpartition(".")[2]
            found.append(_OF_PYTHON.get(name, f"a {name}"))
        else:
            found.append(what)
    return [each for each in found if each != "null"] or found


def _choices(text: str) -> list[str]:
    return [each for names in re.findall(r"Literal\[(.*?)\]", text) for each in re.findall(r"'(.*?)'", names)]


def _quoted(value: str) -> str:
    if value == "None":
        return "null"
    return value if value[:1] in "'\"[{" and value else f"'{value}'"
