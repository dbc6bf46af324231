"""What is on disk is what is installed."""

from __future__ import annotations

import re
import tomllib

import yaml
from helpers.paths import ROOT

import siamdetr


def test_every_package_on_disk_is_listed() -> None:
    """A subpackage missing from `packages` works when editable and vanishes from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {ROOT / "siamdetr": "siamdetr"}
    folders |= {ROOT / folder: package for package, folder in setuptools["package-dir"].items()}
    on_disk = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for folder, package in folders.items()
        for init in folder.rglob("__init__.py")
    }
    assert on_disk == set(setuptools["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    for folder in ("siamdetr", "export", "serve", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), (
                f"{path.relative_to(ROOT)} is in a folder without __init__.py"
            )


def test_the_lock_holds_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert all("==" in line for line in lock.splitlines() if line and not line.startswith("#"))


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "siamdetr.__version__"}
    released = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == siamdetr.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == siamdetr.__version__


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
