"""Examples from JSON Lines files."""

import json
from pathlib import Path
from typing import Any

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.errors import UserError


class JSONLines(GenerationDataModule):
    """A folder with train.jsonl, validation.jsonl and test.jsonl: one example a line, UTF-8.

    A line is `{"id": "a-1", "source": "name[...], ...", "references": ["...", "..."]}`; other keys are
    ignored. Only the files of the splits in use have to be there. Every line is checked before the first is
    used.

    Args:
        folder: The folder that holds the files.
        **kwargs: See `GenerationDataModule`.
    """

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of `folder`/`split`.jsonl.

        Raises:
            FileNotFoundError: The folder or the file is missing.
            UserError: A line is not an example; the message names the file and the line.
        """
        folder = Path(self.folder)
        if not folder.is_dir():
            siblings = [path.name for path in folder.parent.glob("*/")]
            raise FileNotFoundError(f"No folder {folder}; {_listing(folder.parent, 'folders', siblings)}")
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            files = [path.name for path in folder.glob("*.jsonl")]
            raise FileNotFoundError(f"No file {path}; {_listing(folder, '.jsonl files', files)}")
        return read_examples(path)


def read_examples(path: Path) -> list[Example]:
    """Return the examples of one file, all of its lines checked.

    Raises:
        UserError: The file is empty or a line is not an example; the message names the file and the line.
    """
    examples: list[Example] = []
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        example = _parse(line, where)
        if example.id in line_of_id:
            raise UserError(f'{where}: id "{example.id}" is also that of line {line_of_id[example.id]}')
        line_of_id[example.id] = number
        examples.append(example)
    if not examples:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return examples


def _parse(line: bytes, where: str) -> Example:
    """Return the example on one line; `where` opens the message of every error."""
    try:
        fields = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise UserError(f"{where} is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    for key in ("id", "source", "references"):
        if key not in fields:
            raise UserError(f'{where}: no key "{key}"; got {", ".join(fields) or "an empty object"}')
    for key in ("id", "source"):
        _check_text(fields[key], f'"{key}"', where)
    references = fields["references"]
    if not isinstance(references, list):
        raise UserError(f'{where}: "references" has to be a list of strings, got {type(references).__name__}')
    if not references:
        raise UserError(f'{where}: "references" is empty: expected at least one')
    for reference in references:
        _check_text(reference, 'each of "references"', where)
    return Example(fields["id"], fields["source"], tuple(references))


def _check_text(value: object, name: str, where: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} has to be a string, got {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {name} has to hold text, got {value!r}")


def _listing(folder: Path, kind: str, names: list[str]) -> str:
    return f"{kind} in {folder}: {', '.join(sorted(names)) or 'none'}"
