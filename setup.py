"""What pyproject.toml cannot say: the folder configs/ is installed as data inside the package, `hsdlab/configs`."""

from pathlib import Path

from setuptools import find_packages, setup

folders = sorted(path.name for path in (Path(__file__).parent / "configs").iterdir() if path.is_dir())
configs = ["hsdlab.configs", *(f"hsdlab.configs.{folder}" for folder in folders)]

setup(
    packages=[*find_packages(include=["hsdlab*"]), *configs],
    package_dir={"hsdlab.configs": "configs"},
    package_data={"hsdlab": ["py.typed"], "hsdlab.configs": ["README.md"], "hsdlab.data": ["*.jsonl"], "": ["*.yaml"]},
)
