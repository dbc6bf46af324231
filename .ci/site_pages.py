"""Generated pages of the documentation site: files of the root, and a reference page per room."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\[([^]]*)\]\(([^)#][^)]*)\)")


def rooms() -> dict[str, str]:
    """Each room by the name it is imported under, with the name that its folder has for mkdocstrings.

    A room's page shows its subpackages too.
    """
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = sorted(package for package in setuptools["packages"] if package.count(".") == 1)
    return {package: setuptools["package-dir"].get(package, package) for package in packages}


def page_name(package: str) -> str:
    """`siamdetr.models` → `reference/models.md`."""
    return f"reference/{package.removeprefix('siamdetr.')}.md"


def _fit_link(link: re.Match[str]) -> str:
    """A link of a root file as the site has it, or its text alone if it leads to no page of the site."""
    text, target = link[1], link[2]
    if "://" in target:
        return link[0]
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return f"[{text}]({FROM_ROOT[target]})" if target in FROM_ROOT else text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the reference to the navigation."""
    pages = [{package.removeprefix("siamdetr."): page_name(package)} for package in rooms()]
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"].extend(pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(_fit_link, text)))
    for package, folder in rooms().items():
        files.append(File.generated(config, page_name(package), content=f"# `{package}`\n\n::: {folder}\n"))
    return files
