"""Which packages are installed, whether or not they can be imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def installed(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are installed, by their names on PyPI."""
    return [name for name in packages if _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
