"""What pyproject.toml cannot say: the folder configs/ is installed as data inside the package, `hsdlab/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hsdlab*"]), "hsdlab.configs"],
    package_dir={"hsdlab.configs": "configs"},
    package_data={"hsdlab": ["py.typed"], "hsdlab.configs": ["*/*.yaml", "README.md"]},
)
