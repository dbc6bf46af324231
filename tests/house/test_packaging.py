"""What is on disk is what is installed."""

from __future__ import annotations

import tomllib

from helpers.paths import ROOT


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
