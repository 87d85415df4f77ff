"""The frozen configs lie in `configs/`, beside the package, and are installed inside it; all else is in pyproject."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["clipreel", "clipreel.*"]), "clipreel.configs"],
    package_dir={"clipreel.configs": "configs"},
)
