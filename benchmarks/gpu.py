"""All measurements that need a GPU, in at most eight minutes: JSON and a Markdown table.

On a CPU the same parts run at a tiny size.

    python benchmarks/gpu.py --output build/gpu            # part after part while time is left; --minutes 8
    python benchmarks/gpu.py --tiny --device cpu --output build/gpu   # what CI runs
    python benchmarks/gpu.py --append docs/results.md --output build/gpu   # writes the table of an earlier run there

On a machine with torch, torchvision and lightning only, and without a network:

    python benchmarks/gpu.py --carry build/wheels          # before, where there is one: 45 MB; then copy the clone
    python benchmarks/gpu.py --wheels build/wheels --output build/gpu

Each part runs in a process of its own with the time that is left, so that one that fails or hangs costs no other its
figures. Parts whose library is missing say so: exports need onnx, onnxscript, onnxslim and onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What the parts import beside torch, torchvision, lightning and what these need.
CARRIED = (
    "annotated-types", "iniconfig", "pluggy", "psutil", "pydantic", "pydantic_core", "pygments", "pytest", "pytest-timeout",
    "safetensors", "scipy", "timm", "typing-inspection",
)  # fmt: skip
PAPER = {"seconds": 0.4036, "megabytes": 7528}  # Siamese DETR, supplement, table 3: Conditional 100q, COCO, batch 4


@dataclass(frozen=True)
class Row:
    """One figure."""

    part: str
    what: str
    value: float | None
    unit: str
    note: str = ""


def kernel(options: argparse.Namespace) -> list[Row]:
    """The sampling of deformable attention: each form beside the reference, forward and backward."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from deformable_attention import make, measure

    side, rounds = (64, 2) if options.tiny else (800, 10)
    shapes = tuple((side // stride, side // stride) for stride in (8, 16, 32, 64))
    cuda = options.device == "cuda"
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        tensors = make(2, shapes, options.device, dtype)
        for form in ("reference", "kernel") if cuda else ("reference", "bags"):
            forward, backward, peak = measure(form, tensors, shapes, rounds)
            what = f"{form}, {str(dtype).removeprefix('torch.')}"
            rows.append(Row("sampling", f"{what}, forward", 1e3 * forward, "ms"))
            note = "" if peak is None else f"peak {peak / 2**20:.0f} MiB"
            rows.append(Row("sampling", f"{what}, backward", 1e3 * backward, "ms", note))
    return rows


def step(options: argparse.Namespace) -> list[Row]:
    """A pretraining step at the paper's set-up: time and peak memory, fp32 and bf16."""
    size = (
        ["--size", "64", "--backbone", "test_resnet.r160_in1k", "--batch", "2"]
        if options.tiny
        else ["--size", "800", "--batch", "4"]
    )
    rows = []
    for precision in ("fp32", "bf16"):
        command = [
            sys.executable, str(ROOT / "benchmarks" / "pretrain_step.py"), "--only", "ours", "--precision", precision,
            "--steps", "1" if options.tiny else "10", "--device", options.device, *size,
        ]  # fmt: skip
        found = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        note = "" if options.tiny else f"paper: {PAPER['seconds']} s on its GPU"
        rows.append(Row("pretraining step", f"{precision}, time", found["seconds"], "s", note))
        memory = "" if options.tiny else f"paper: {PAPER['megabytes']} MB"
        rows.append(Row("pretraining step", f"{precision}, peak memory", found["megabytes"], "MB", memory))
    return rows


def matcher(options: argparse.Namespace) -> list[Row]:
    """The matching of six layers: costs on the device, one transfer, assignment on the host."""
    import torch

    from siamdetr.models.criterion.matcher import match
    from siamdetr.settings.detector import LossSettings
    from siamdetr.structures.targets import Targets

    images, boxes, queries = (2, 5, 20) if options.tiny else (16, 20, 300)
    with torch.device(options.device):
        logits, predicted = torch.randn(6, images, queries, 91), torch.rand(6, images, queries, 4) * 0.4 + 0.2
        wanted = [torch.rand(boxes, 4) * 0.4 + 0.2 for _ in range(images)]
        targets = Targets.from_lists(wanted, [torch.zeros(boxes, dtype=torch.long) for _ in range(images)])
    seconds = _median(lambda: match(logits, predicted, targets, LossSettings(), "focal"), options, rounds=20)
    return [Row("matching", f"6 layers, {images} images of {boxes} boxes, {queries} queries", 1e3 * seconds, "ms")]


def inference(options: argparse.Namespace) -> list[Row]:
    """The detector alone, as it is and compiled."""
    import torch

    from siamdetr.models.detector import Detector
    from siamdetr.settings.detector import DetectorSettings

    tiny = {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 1} if options.tiny else {}
    side, rows = 64 if options.tiny else 800, []
    for variant in ("conditional", "deformable"):
        levels = 4 if variant == "deformable" else 1
        settings = DetectorSettings.model_validate({"variant": variant, "levels": levels, **tiny})
        detector = Detector(settings).eval().to(options.device)
        image = torch.randn(1, 3, side, side, device=options.device)
        ways: dict[str, Callable[[Any], Any]] = {"eager": detector}
        if options.device == "cuda":
            ways["compiled"] = torch.compile(detector)
            ways["compiled, CUDA graphs"] = torch.compile(detector, mode="reduce-overhead")
        for name, way in ways.items():
            with torch.inference_mode():
                seconds = _median(lambda way=way, image=image: way(image), options, rounds=10)
            rows.append(Row("inference", f"{variant}, {side} pixels, {name}", 1e3 * seconds, "ms"))
    return rows


def runtimes(options: argparse.Namespace) -> list[Row]:
    """An exported model through its gate, under ONNX Runtime on the device."""
    missing = [
        name for name in ("onnx", "onnxscript", "onnxslim", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        return [Row("export", "", None, "", f"{', '.join(missing)} not installed")]
    from siamdetr import SiamDETR
    from siamdetr.export.onnx import export_onnx
    from siamdetr.export.runtime import OnnxDetector
    from siamdetr.export.timing.backend_choice import take_turns
    from siamdetr.images.preprocessing import PreprocessingSpec

    side = 64 if options.tiny else 640
    spec = PreprocessingSpec.from_size((side, side))
    model = SiamDETR(
        "conditional", backbone="resnet18" if options.tiny else "resnet50", num_classes=3, preprocessing=spec
    )
    with tempfile.TemporaryDirectory() as folder:
        result = export_onnx(model, folder)
        assert result.gate is not None
        rows = [Row("export", "largest difference from PyTorch, fp32", result.gate.largest_error, "")]
        opened = OnnxDetector(folder, device=options.device)
        rows.append(Row("export", f"{opened.runtime}, {side} pixels", take_turns({"it": opened})["it"], "ms"))
    if importlib.util.find_spec("tensorrt") is None:
        rows.append(Row("export", "TensorRT", None, "", "not installed"))
    return rows


def tests(options: argparse.Namespace) -> list[Row]:
    """Run the tests that need a GPU; on a CPU, those of the pretended GPU."""
    chosen = ["tests/models/test_deformable_attention.py", "-k", "gpu"]
    if options.device != "cuda":
        chosen = ["tests/training/test_fake_cuda.py", "-k", "finetuning and vanilla"]
    if importlib.util.find_spec("pytest") is None:
        return [Row("tests", "GPU tests", None, "", "pytest is not installed")]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *chosen], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return [Row("tests", " ".join(chosen), float(done.returncode), "exit code", done.stdout.strip().splitlines()[-1])]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "tests": tests, "sampling": kernel, "step": step, "matching": matcher, "inference": inference, "export": runtimes,
}  # fmt: skip


def _median(way: Callable[[], object], options: argparse.Namespace, *, rounds: int) -> float:
    """Median seconds, the device waited for; the first two calls are not counted."""
    import torch

    seconds = []
    for _ in range(2 + (2 if options.tiny else rounds)):
        started = time.perf_counter()
        way()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def carry(folder: Path) -> None:
    """Fetch the wheels of `CARRIED` in the versions of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    locked = {line.partition("==")[0].lower(): line for line in lines}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    subprocess.run([*command, str(folder), *(locked[name] for name in CARRIED)], check=True)


def unpack(wheels: Path, folder: Path) -> None:
    """Unpack the wheels into a folder, and link this checkout there as a package."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    (folder / "siamdetr").mkdir()
    for source in [*(ROOT / "siamdetr").iterdir(), *(ROOT / name for name in ("export", "serve", "cli"))]:
        (folder / "siamdetr" / source.name).symlink_to(source)


@contextmanager
def carried(wheels: Path | None) -> Iterator[None]:
    """Within the context, processes that are started import the wheels and this checkout."""
    if wheels is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(wheels, Path(folder))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = folder if before is None else os.pathsep.join([folder, before])
        yield


def run_parts(options: argparse.Namespace) -> list[Row]:
    """Every part in a process of its own while time is left."""
    deadline, rows = time.monotonic() + 60 * options.minutes, []
    for name in options.parts:
        left = deadline - time.monotonic()
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            output, _ = done.communicate(timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)  # with what it has started, which would hold the pipe open
            done.communicate()
            rows.append(Row(name, "", None, "", "no time was left"))
            continue
        lines = output.splitlines()
        found = json.loads(lines[-1]) if done.returncode == 0 and lines else []
        rows += [Row(**one) for one in found] or [Row(name, "", None, "", f"failed with exit code {done.returncode}")]
        print(table(rows[-len(found) :] if found else rows[-1:]), flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| part | what | value | note |", "|---|---|---|---|"]
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.4g} {row.unit}".strip()
        lines.append(f"| {row.part} | {row.what} | {value} | {row.note} |")
    return "\n".join(lines)


def where(device: str) -> str:
    """A description of the machine."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Measure and write, or append what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument(
        "--carry", type=Path, help="fetch the wheels for a machine without a network, and measure nothing"
    )
    parser.add_argument("--wheels", type=Path, help="folder of the carried wheels; without: siamdetr is installed")
    parser.add_argument("--append", type=Path, help="append gpu.md of the folder to this document, and measure nothing")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps([asdict(row) for row in PARTS[options.only](options)]))
        return
    if options.append is not None:
        text = (options.output / "gpu.md").read_text(encoding="utf-8")
        options.append.write_text(options.append.read_text(encoding="utf-8") + "\n" + text, encoding="utf-8")
        return
    if options.carry is not None:
        carry(options.carry)
        return
    with carried(options.wheels):
        rows, machine = run_parts(options), where(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (options.output / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    heading = f"## GPU\n`python benchmarks/gpu.py` on {machine}:\n\n"
    (options.output / "gpu.md").write_text(heading + table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
