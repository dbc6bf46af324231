"""The arrows of docs/architecture.md, read from the syntax trees.

Who may import whom, where each library lives, and how large rooms and functions may be.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.paths import ROOT

SOURCE_FOLDERS = {
    "siamdetr": ROOT / "siamdetr",
    "siamdetr.export": ROOT / "export",
    "siamdetr.serve": ROOT / "serve",
    "siamdetr.cli": ROOT / "cli",
}

# Outer rooms: each may import those after it, never back.
ROOMS = ["siamdetr.cli", "siamdetr.serve", "siamdetr.export", "siamdetr"]

# Inside the core: a room may import itself and rooms of lower layers, never one beside it. So there is no circle of rooms.
CORE_LAYERS = [
    {"errors"},
    {"boxes", "files", "presets", "system"},
    {"settings"},
    {"structures"},
    {"images"},
    {"data", "models"},
    {"inference", "model_file", "proposals"},
    {"drawing", "evaluation", "pretext"},
    {"pytorch_model"},
    {"api", "labelling", "official", "reports"},
    {"training"},
    {"study"},
]

# The single exception: `siamdetr.load` opens exported files, lazily, inside a function.
LAZY_EXPORT = {"siamdetr.api"}

MOST_FILES = 22  # in a room
MOST_LINES = 80  # of a function, with its signature and docstring

LIBRARIES = {
    "gradio": "siamdetr.serve",
    "fastapi": "siamdetr.serve",
    "starlette": "siamdetr.serve",
    "uvicorn": "siamdetr.serve",
    "prometheus_client": "siamdetr.serve",
    "onnx": "siamdetr.export",
    "onnxruntime": "siamdetr.export",
    "onnxscript": "siamdetr.export",
    "onnxslim": "siamdetr.export",
    "openvino": "siamdetr.export",
    "tensorrt": "siamdetr.export",
    "tensorrt_rtx": "siamdetr.export",
    "typer": "siamdetr.cli",
    "rich": "siamdetr.cli",
    "lightning": "siamdetr.training",
    "ray": "siamdetr.system.parallel",
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in SOURCE_FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def _is_deferred(node: ast.AST) -> bool:
    """Whether what stands below is not run on import: a function, or a block for type checkers alone."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
        isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every imported module of a file, and whether the import is at the top level or in a function."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    inside = {id(node) for parent in ast.walk(tree) if _is_deferred(parent) for node in ast.walk(parent)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def room_of(module: str) -> str:
    return next(room for room in ROOMS if module == room or module.startswith(room + "."))


def core_room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(CORE_LAYERS) if core_room_of(module) in layer), None)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_arrows_point_one_way(module: str, path: Path) -> None:
    room, layer = room_of(module), layer_of(module)
    if room == "siamdetr" and module != "siamdetr":
        assert layer is not None, f"{module} is in no layer of CORE_LAYERS: give it its place"
    for imported, _ in imports(path):
        if not imported.startswith("siamdetr"):
            continue
        target = room_of(imported)
        if target == "siamdetr.export" and module in LAZY_EXPORT:
            continue
        assert ROOMS.index(target) >= ROOMS.index(room), f"{module} imports {imported}: against the arrow"
        target_layer = layer_of(imported)
        if room == target == "siamdetr" and layer is not None and target_layer is not None:
            assert target_layer < layer or core_room_of(imported) == core_room_of(module), (
                f"{module} (layer {layer}) imports {imported} (layer {target_layer})"
            )


def test_the_architecture_page_shows_these_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = page.split("never a room beside it:\n```\n")[1].split("```")[0]
    layers = [" ".join(sorted(line.split())) for line in shown.splitlines()]
    expected = [" ".join(sorted(layer)) for layer in reversed(CORE_LAYERS)]
    assert layers == expected, "docs/architecture.md: write the layers as in CORE_LAYERS, the topmost first"


def test_the_exception_of_load_is_lazy() -> None:
    for module, path in modules():
        if module in LAZY_EXPORT:
            eager = [name for name, top in imports(path) if top and name.startswith("siamdetr.export")]
            assert not eager, f"{module} imports {eager} at the top; only inside a function"


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_outside_library_lives_in_one_room(library: str) -> None:
    for module, path in modules():
        if any(name == library or name.startswith(library + ".") for name, _ in imports(path)):
            assert module.startswith(LIBRARIES[library]), (
                f"{module} imports {library}, which lives in {LIBRARIES[library]}"
            )


def test_commands_import_inside_their_functions() -> None:
    """`siamdetr --help` answers without loading torch."""
    light = ("siamdetr.cli", "siamdetr.errors", "siamdetr.settings", "siamdetr.system")
    for module, path in modules():
        if module.startswith("siamdetr.cli"):
            names = [name for name, top in imports(path) if top]
            eager = [name for name in names if name.startswith(("torch", "lightning"))]
            eager += [name for name in names if name.startswith("siamdetr") and not name.startswith(light)]
            assert not eager, f"{module} imports {eager} at the top"


def test_no_room_is_crowded() -> None:
    for folder in SOURCE_FOLDERS.values():
        for room in {path.parent for path in folder.rglob("*.py")}:
            files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= MOST_FILES, f"{room.relative_to(ROOT)} holds {len(files)} files: it is two rooms"


def test_no_function_is_long() -> None:
    for path in sorted(path for folder in (*SOURCE_FOLDERS.values(), ROOT / "tests") for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MOST_LINES, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines: split it by idea"


def test_no_pickle_and_no_unsafe_load() -> None:
    for module, path in modules():
        for name, _ in imports(path):
            assert name.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib"}, f"{module} imports {name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
                assert safe, f"{path.name}:{node.lineno}: torch.load without weights_only=True"


def test_tests_use_public_names() -> None:
    """Tests use only public names."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("siamdetr")]
        names = {alias.asname or alias.name for node in ours for alias in node.names}
        private = [f"{node.module}.{alias.name}" for node in ours for alias in node.names if alias.name.startswith("_")]
        private += [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
            if node.attr.startswith("_") and not node.attr.endswith("__")
        ]
        assert not private, f"{path.relative_to(ROOT)} uses {', '.join(private)}"
