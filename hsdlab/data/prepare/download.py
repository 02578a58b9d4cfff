"""Fetch the official files, by address and SHA-256, or take them from a folder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch
import requests

from hsdlab.data.prepare.official import OfficialFile
from hsdlab.errors import RunError
from hsdlab.progress import Steps

CHUNK_BYTES = 1 << 16  # what a connection that breaks loses at most
TIMEOUT_S = 60
NOTED = ".sha256"
PART = ".part"


class Resuming:
    """Downloads a file over HTTP for pooch; what an earlier attempt fetched is not fetched again.

    Args:
        part: Where the bytes are kept until all are there.
    """

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Fetch `url` into `output_file`.

        Raises:
            requests.RequestException: No network, or the server refuses.
        """
        begun = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            if begun and answer.status_code == requests.codes.requested_range_not_satisfiable:
                self.part.unlink()  # it is no part of the file
                return self(url, output_file, _)
            answer.raise_for_status()
            if answer.status_code != requests.codes.partial_content:
                begun = 0
            size = int(answer.headers.get("Content-Length", 0)) + begun
            with Steps(f"Fetching {self.part.name.removesuffix(PART)}", size >> 10, "KiB") as steps:
                steps.skip(begun >> 10)
                with self.part.open("ab" if begun else "wb") as file:
                    for chunk in answer.iter_content(CHUNK_BYTES):
                        file.write(chunk)
                        steps.advance((file.tell() >> 10) - steps.done)
        got = self.part.stat().st_size
        if size and got < size:
            raise requests.ConnectionError(f"the connection ended after {got} of {size} bytes")
        self.part.replace(output_file)
        return None


def fetched(file: OfficialFile, cache: Path) -> Path:
    """Get a file from the cache, downloaded if it is not there.

    Args:
        file: Which one. Where its SHA-256 is not known, that of the first download is noted beside it, and later ones
            have to have it.
        cache: The folder; a missing one is created.

    Returns:
        The file in the cache, its SHA-256 checked.

    Raises:
        RunError: The file cannot be downloaded, or its SHA-256 is another one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path, noted = cache / file.name, cache / (file.name + NOTED)
    expected = file.sha256 or (noted.read_text(encoding="utf-8").split()[0] if noted.exists() else None)
    if path.exists() and expected is not None and sha256_of(path) == expected:
        return path
    part = cache / (file.name + PART)
    path.unlink(missing_ok=True)
    pooch.get_logger().setLevel("WARNING")  # it tells of the hash and the folder, which we do ourselves
    try:
        pooch.retrieve(file.address, known_hash=None, fname=file.name, path=cache, downloader=Resuming(part))
    except (requests.RequestException, OSError) as error:
        bytes_kept = part.stat().st_size if part.exists() else 0
        kept = f" {bytes_kept / 1e6:.1f} MB are kept, the same command resumes." if bytes_kept else ""
        raise RunError(
            f"{file.address} cannot be fetched ({_cause(error)}).{kept} Or fetch it elsewhere and give its folder with "
            "--from."
        ) from error
    if expected is None:
        noted.write_text(f"{sha256_of(path)}  {file.name}\n", encoding="utf-8")
    else:
        check(path, expected, f"It was fetched from {file.address} and is removed", remove=True)
    return path


def taken(files: Sequence[OfficialFile], folder: Path) -> dict[str, Path]:
    """Find the official files in a folder.

    Args:
        files: Those that are looked for.
        folder: The folder given with --from.

    Returns:
        Name to path, of those that the folder holds; at least one.

    Raises:
        RunError: The folder is missing, holds none of them, or the SHA-256 of one is another.
    """
    if not folder.is_dir():
        raise RunError(f"--from={folder} is no folder: expected one with {', '.join(file.name for file in files)}")
    found = {file.name: folder / file.name for file in files if (folder / file.name).is_file()}
    if not found:
        raise RunError(
            f"--from={folder} holds none of the official files {', '.join(file.name for file in files)}: put them "
            "there, or leave --from out to download them"
        )
    for file in files:
        if file.name in found and file.sha256 is not None:
            check(found[file.name], file.sha256, f"Take it from {file.address}")
    return found


def check(path: Path, expected: str, what_to_do: str, remove: bool = False) -> None:
    """Refuse a file that is not the official one.

    Args:
        path: The file.
        expected: Its SHA-256, 64 hex digits.
        what_to_do: The end of the message.
        remove: Whether to delete a file that is refused.

    Raises:
        RunError: With both hashes.
    """
    got = sha256_of(path)
    if got != expected:
        if remove:
            path.unlink()
        raise RunError(f"{path} is not the official file: its SHA-256 is {got}, expected {expected}. {what_to_do}.")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hex digits in lower case.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: Exception) -> str:
    """Return why a download failed, in one line without the address."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_S} s"
    if isinstance(error, requests.ConnectionError):
        text = str(error)
        return text if text.startswith("the connection") else "no connection"
    return " ".join(str(error).split())[:200]
