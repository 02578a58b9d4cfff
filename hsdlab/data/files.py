"""Data files: which one a split is in, and what is in it as UTF-8. Messages begin with the file's name."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hsdlab.errors import UserError

COMPRESSED = ".gz"

DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""How the names of data files end; .gz may follow."""

FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or save the sheet as .csv",
    b"BZh": "compressed with bzip2: unpack it (bunzip2), or compress it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it (unxz), or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it (zstd -d), or compress it with gzip",
    b"PAR1": "Parquet: name it .parquet and read it with --data=DataFolder",
    b"ARROW1": "Arrow: save it as Parquet or JSON Lines (datasets: to_parquet, to_json)",
}
"""What the first bytes of a file that is no text stand for, and what to do."""


def split_files(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Find the files of a split in a folder.

    Args:
        folder: The folder.
        split: How the names begin.
        suffixes: How they may end, ".jsonl" for example; .gz may follow.

    Returns:
        One file, or the parts of one as the hub names them (test-00000-of-00002.parquet), in order.

    Raises:
        FileNotFoundError: The folder or the file is missing.
        UserError: `folder` is no folder, or there are several files for the split.
    """
    names = _names_in(folder, f"{split}{suffixes[0]}")
    found = [name for name in names if _without_compression(name) in {split + suffix for suffix in suffixes}]
    if len(found) > 1:
        raise UserError(f"{folder} holds several files for the {split} split, {', '.join(found)}: leave one of them")
    if not found:
        found = [name for name in names for suffix in suffixes if _is_part(_without_compression(name), split, suffix)]
        if len({Path(_without_compression(name)).suffix for name in found}) > 1:
            raise UserError(f"{folder} holds parts of the {split} split of several kinds: {', '.join(found)}")
    if not found:
        data = [name for name in names if _without_compression(name).endswith(DATA)]
        wanted = f"{folder / split}{suffixes[0]}" + (f" (or {', '.join(suffixes[1:])})" if len(suffixes) > 1 else "")
        raise FileNotFoundError(f"No file {wanted}; {_listing(folder, 'data files', data)}")
    return [folder / name for name in found]


def _names_in(folder: Path, wanted: str) -> list[str]:
    try:
        if folder.is_dir():
            return sorted(path.name for path in folder.iterdir() if path.is_file())
        if folder.exists():
            raise UserError(f"{folder} is a file: give the folder that holds {wanted}")
        siblings = [path.name for path in folder.parent.glob("[!.]*/")]
    except OSError as error:
        raise UserError(f"The folder {shown(str(folder))} cannot be read: {error.strerror}") from error
    raise FileNotFoundError(f"No folder {folder}; {_listing(folder.parent, 'folders', siblings)}")


def _without_compression(name: str) -> str:
    return name.removesuffix(COMPRESSED)


def _is_part(name: str, split: str, suffix: str) -> bool:
    """Return whether a name is `split`-00000-of-00002`suffix`."""
    number, of, total = name.removeprefix(f"{split}-").removesuffix(suffix).partition("-of-")
    return name.startswith(f"{split}-") and name.endswith(suffix) and bool(of) and (number + total).isdecimal()


def _listing(folder: Path, kind: str, names: Sequence[str]) -> str:
    return f"{kind} in {folder}: {', '.join(sorted(names)) or 'none'}"


def shown(name: str) -> str:
    """Prepare a name of the user's for a message.

    Args:
        name: Of a file, column or key.

    Returns:
        The name, printable and of at most 80 characters.
    """
    name = name if len(name) <= 80 else name[:77] + "..."
    return name if name.isprintable() else ascii(name)


def read_bytes(path: Path) -> bytes:
    """Read a text file, unpacked and without a byte order mark.

    Args:
        path: The file; gzip is recognised by its content.

    Returns:
        The bytes of the text. They are not UTF-16 or UTF-32, and not yet checked to be UTF-8.

    Raises:
        UserError: The file cannot be read or unpacked, is no text, or in UTF-16 or UTF-32.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith(b"\x1f\x8b"):  # gzip, whatever its name
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is compressed, but damaged or cut short: {error}") from error
    for begin, what in FOREIGN.items():
        if data.startswith(begin):
            raise UserError(f"{path} is not text, but {what}")
    encoding = json.detect_encoding(data[:4])
    if not encoding.startswith("utf-8"):
        name = encoding[:6].upper()
        raise UserError(f"{path} is in {name}, expected UTF-8. Convert it: iconv -f {name} -t UTF-8 {path} > new_file")
    return data.removeprefix(b"\xef\xbb\xbf")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Args:
        path: The file; gzip is recognised by its content.

    Returns:
        The text, without a byte order mark.

    Raises:
        UserError: As `read_bytes`, or a line is not UTF-8; the message names it.
    """
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = len(data[: error.start + 1].splitlines())
        raise UserError(f"{path}, line {line} is not UTF-8: {error}") from error


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a text file that are not blank.

    Args:
        path: The file; gzip is recognised by its content.

    Yields:
        The number of each line, from 1 on and with blank lines counted, and its bytes without the line break.

    Raises:
        UserError: As `read_bytes`.
    """
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        if line.strip():
            yield number, line
