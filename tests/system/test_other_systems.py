"""The core without what Windows lacks, and without the packages of the extras."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.tiny_models import tiny_model
from helpers.training_data import write_data

from siamdetr.errors import MissingPackageError
from siamdetr.system.extras import missing_package
from siamdetr.system.processes import lives, memory_mib, peak_mib

# POSIX's modules and functions are gone; a signal of number 0 would end a process on Windows, and folders cannot be opened.
HIDDEN = """
import os, signal, sys
import filelock, psutil  # they have parts of their own for each system
for name in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[name] = None
for place, name in ((os, "statvfs"), (os, "sched_getaffinity"), (os, "getuid"), (signal, "pthread_sigmask")):
    if hasattr(place, name):
        delattr(place, name)
opened = os.open
def open_file(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)
os.open = open_file
kill = os.kill
def no_signal(process, number):
    assert sys._getframe(1).f_globals["__name__"].startswith("psutil"), "os.kill"
    kill(process, number)
os.kill = no_signal
"""
EXTRAS = ("av", "cv2", "fastapi", "gradio", "onnx", "onnxruntime", "onnxscript", "openvino", "ray")
WITHOUT_EXTRAS = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
"""
TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, "TESTS")
from helpers.training_data import finetune_settings
from siamdetr.training.finetune import finetune
settings = finetune_settings(Path("data"), Path("run"), steps=4, checkpoint_every=2)
assert finetune(settings).steps == 4
Path("run/.last.ckpt.99999999.tmp").write_text("left by a process that is gone")
assert finetune(settings, resume="auto").steps == 4
import siamdetr
from siamdetr.system.file_lock import only_writer
from siamdetr.system.atomic_file import sweep_temporaries
model = siamdetr.load("run")
assert model.predict("data/val/1.png", threshold=0.0) is not None
with only_writer(Path("made/file")):
    Path("made/.file.99999999.tmp").write_text("")
    assert sweep_temporaries(Path("made")) == 1
print("done")
"""
COMMAND = "import sys\nfrom siamdetr.cli.__main__ import main\nmain()"


def run(program: str, *arguments: object, place: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", program.replace("TESTS", str(ROOT / "tests")), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "500"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=place, env=environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("hidden", [HIDDEN, WITHOUT_EXTRAS], ids=["of another system", "without extras"])
def test_the_core_trains_resumes_and_predicts(hidden: str, tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    code, text = run(hidden + TRAIN, place=tmp_path)
    assert code == 0, text[-3000:]
    assert "done" in text


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (("train", "--data", "data", "-o", "pre", "--preset", "tiny"), "cv2", "proposals"),
        (("proposals", "data", "-o", "p.arrow"), "cv2", "proposals"),
        (("export", "model.safetensors", "-o", "out"), "onnx", "export"),
        (("predict", "model.onnx", "data/val/1.png"), "onnxruntime", "export"),
        (("predict", "model.safetensors", "film.mp4"), "av", "video"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    arguments: tuple[str, ...], module: str, extra: str, tmp_path: Path
) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    tiny_model().save(tmp_path / "model.safetensors")
    (tmp_path / "model.onnx").write_bytes(b"")
    code, text = run(WITHOUT_EXTRAS + COMMAND, *arguments, place=tmp_path)
    assert code == 1, text
    assert module in text
    assert f"pip install 'siamdetr[{extra}]'" in text
    assert "Traceback" not in text
    assert not (tmp_path / "pre").exists()


def test_load_names_the_extra_and_other_imports_fail_as_they_are() -> None:
    error = missing_package(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    assert isinstance(error, MissingPackageError)
    assert str(error).startswith(
        "onnxruntime is not installed; running exported files needs it: pip install 'siamdetr[export]'"
    )
    assert missing_package(ModuleNotFoundError("No module named 'siamdetr.x'", name="siamdetr.x")) is None
    assert missing_package(ModuleNotFoundError("?")) is None


def test_processes_live_or_not_and_hold_memory() -> None:
    assert lives(os.getpid())
    assert not lives(99_999_999)
    assert 0 < memory_mib() <= peak_mib() * 1.01


def test_every_extra_named_in_the_sources_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name
        for folder in ("siamdetr", "export", "serve", "cli", "docs", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md") or path.name == "Dockerfile"
        for found in re.findall(r"(?:siamdetr|\.whl\)|'\.)\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))
        for name in found.split(",")
    }
    assert named >= {"export", "serve"}
    assert named <= set(extras)
