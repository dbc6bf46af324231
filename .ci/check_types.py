"""Run mypy over the whole package, whose four source folders install under one name.

`export/`, `serve/` and `cli/` are `siamdetr.export`, `siamdetr.serve` and `siamdetr.cli` (`package-dir` in
pyproject.toml). mypy derives a module's name from its path and has no option for such a layout, so every file is handed
over with its name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from mypy import build, main
from mypy.fscache import FileSystemCache
from mypy.util import hard_exit

ROOT = Path(__file__).parents[1]


def named_sources() -> list[build.BuildSource]:
    """Every module of the package with the name it is imported by, and the examples."""
    moved = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    sources = [build.BuildSource(str(path), path.stem) for path in sorted(Path("examples").glob("*.py"))]
    for package, folder in {"siamdetr": "siamdetr", **moved}.items():
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            sources.append(build.BuildSource(str(path), name))
    return sources


def check() -> int:
    """Print what mypy finds; returns the exit status."""
    cache = FileSystemCache()
    _, options = main.process_options(["--fast-module-lookup", "--module", "siamdetr"], fscache=cache)
    sources, messages = named_sources(), []
    try:
        build.build(sources, options, fscache=cache, flush_errors=lambda _, new, __: messages.extend(new))
    except build.CompileError as error:
        messages.extend(error.messages)
    print("\n".join(messages) or f"Success: no issues found in {len(sources)} source files")
    return bool(messages)


if __name__ == "__main__":
    hard_exit(check())  # as mypy itself: to free all types one by one takes minutes
