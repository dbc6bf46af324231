"""The commands in README.md and docs/ exist, and docstrings begin with a short line.

Commands are parsed with verbs, options and values; none is run.
"""

from __future__ import annotations

import ast
import re
import shlex

import pytest
import typer
from helpers.paths import ROOT

from siamdetr.cli.__main__ import app

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
ASSIGNMENT = re.compile(r'([A-Z]+)="([^"]*)"')
SOURCES = ("siamdetr", "export", "serve", "cli", "benchmarks", "examples", "tests")
LONGEST_FIRST_LINE = 100  # characters of a docstring


def commands() -> list[tuple[str, str]]:
    """(file, command) of every code line that starts with `siamdetr`; continued lines are joined."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        named: dict[str, str] = {}  # the document's own variables, NAME="..."
        for language, block in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language not in ("", "sh"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if named_here := ASSIGNMENT.fullmatch(line):
                    named[f"${named_here[1]}"] = named_here[2]
                    continue
                words = " ".join(named.get(word, word) for word in line.split()).split()
                while words and "=" in words[0]:  # variables of the environment
                    words.pop(0)
                if words and words[0] == "siamdetr":
                    found.append((path.name, " ".join(words)))
    return found


@pytest.mark.parametrize(("file", "command"), commands())
def test_a_command_of_the_documents_parses(file: str, command: str) -> None:  # the file is in the test's name
    _, verb, *words = shlex.split(command, comments=True)
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verbs[verb].make_context(verb, [word for word in words if word != "…"])


def test_the_readme_goes_from_pretraining_to_serving() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make quickstart" in readme
    assert "make test" in readme
    verbs = [command.split()[1] for file, command in commands() if file == "README.md"]
    assert verbs == ["doctor", "train", "finetune", "val", "predict", "export", "serve"]


def test_every_link_of_a_document_leads_to_a_file() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        if path.name != "api.md":  # its links lead to pages that the site makes
            for target in LINK.findall(path.read_text(encoding="utf-8")):
                assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f": {path.name}\n" not in navigation]
    assert not missing, f"mkdocs.yml: `nav` lacks {', '.join(missing)}"


def test_docstrings_begin_with_a_short_line() -> None:
    """A first line stands alone in lists of functions, such as those of the reference."""
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                place = f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'the file itself')}"
                assert len(first) <= LONGEST_FIRST_LINE, f"{place}: a first line of {len(first)} characters: {first}"
