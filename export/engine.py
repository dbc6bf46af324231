"""Run the TensorRT engine of a bundle.

Memory and stream are PyTorch's; only pixels and boxes are copied. Threads take turns: an execution context holds the
addresses of one batch, and must not be used by two threads at a time.

An engine is executable code: before it is opened, its digest must match the manifest. It fits one version of TensorRT
and one kind of GPU. This file has not run on a GPU yet: docs/export.md says what has been tried.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siamdetr.errors import ExportError
from siamdetr.export.bundle import ModelCard, digest_file, read_card
from siamdetr.export.runtime import feed_of
from siamdetr.export.sessions import Array
from siamdetr.export.tensorrt import Profile
from siamdetr.files import ENGINE_FILE, MANIFEST_FILE
from siamdetr.images.preprocessing import Prepared
from siamdetr.inference.opened_model import OpenedModel
from siamdetr.inference.predictor import ScoredBoxes

_REBUILD = "rebuild it here with `siamdetr export BUNDLE --trt -o BUNDLE`"


@dataclass(frozen=True)
class EngineFacts:
    """The facts of an engine in the manifest."""

    sha256: str
    module: str
    version: str
    compute_capability: str | None  # "9.0"; None: of no GPU in particular (TensorRT-RTX without a GPU)
    portable: bool  # hardware-compatible: also runs on other GPUs from Ampere on
    version_compatible: bool
    profiles: tuple[Profile, ...]


class EngineDetector(OpenedModel):
    """A detector in a TensorRT engine.

    Args:
        path: a bundle folder, or the model.engine in it; its manifest.json must lie beside it.
        device: "cuda", "cuda:N" or "auto".
    Raises:
        ExportError: no engine or manifest, an engine that is not the manifest's, of another GPU or TensorRT version, no
            TensorRT, no GPU, or an engine that TensorRT refuses.
    """

    def __init__(self, path: str | Path, *, device: str = "cuda") -> None:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        self.path = folder / ENGINE_FILE
        self._facts: ModelCard
        self._facts, self.engine_facts = read_engine_facts(folder)
        check_module(self.engine_facts)
        self._device = choose_gpu(device, self.engine_facts)
        trt: Any = importlib.import_module(self.engine_facts.module)
        self._trt = trt
        self._turn = threading.Lock()
        logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(logger)
        if self.engine_facts.version_compatible:
            self._runtime.engine_host_code_allowed = True  # its digest is the manifest's
        with torch.cuda.device(self._device):
            self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
            if self._engine is None:
                raise ExportError(f"{self.path}: TensorRT {trt.__version__} refuses the engine; {_REBUILD}")
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._contexts = [self._context(index) for index in range(self._engine.num_optimization_profiles)]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self._outputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)

    @property
    def runtime(self) -> str:
        """Name and version of the runtime, and the GPU."""
        return f"{self.engine_facts.module} {self.engine_facts.version}, {torch.cuda.get_device_name(self._device)}"

    @property
    def info(self) -> dict[str, Any]:
        """The facts of the model, in plain values."""
        return {"kind": "TensorRT engine", "file": str(self.path), "runtime": self.runtime, **self._facts.to_json()}

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of images of one size.

        Batches that are too large for the engine are computed in parts.

        Raises:
            ExportError: the engine was built for other sizes.
            ValueError: the batch is padded, and the engine has no input for that.
        """
        feed = feed_of(batch, self._inputs)
        index = choose_profile(self.engine_facts.profiles, *batch.images.shape[2:])
        with self._turn:
            parts = [
                self._run(index, {name: values[start:stop] for name, values in feed.items()}, stop - start)
                for start, stop in spans(len(batch), self.engine_facts.profiles[index].batch)
            ]
        joined = {name: np.concatenate([part[name] for part in parts])[: len(batch)] for name in parts[0]}
        return ScoredBoxes(scores=joined["scores"], labels=joined["labels"], boxes=joined["boxes"])

    def _context(self, index: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise ExportError(
                f"{self.path}: no memory on the GPU for the engine's context; free some, or build for smaller batches"
            )
        context.set_optimization_profile_async(index, self._stream.cuda_stream)
        self._stream.synchronize()
        return context

    def _run(self, index: int, feed: dict[str, Array], number: int) -> dict[str, Array]:
        """Call the engine once; rows that the profile needs beyond `number` repeat the last one."""
        context, least = self._contexts[index], self.engine_facts.profiles[index].batch[0]
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            inputs = {name: self._upload(values, least) for name, values in feed.items()}
            for name, tensor in inputs.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise ExportError(f"{self.path}: the engine takes no {name} of {list(tensor.shape)}; {_REBUILD}")
                context.set_tensor_address(name, tensor.data_ptr())
            missing = context.infer_shapes()
            if missing:
                raise ExportError(f"{self.path}: the engine wants more inputs: {', '.join(missing)}; {_REBUILD}")
            outputs = {name: self._empty(context, name) for name in self._outputs}
            for name, tensor in outputs.items():
                context.set_tensor_address(name, tensor.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise ExportError(f"{self.path}: TensorRT failed on a batch of {number}; is the GPU's memory full?")
            found = {name: tensor.to("cpu", non_blocking=True) for name, tensor in outputs.items()}
        self._stream.synchronize()  # inputs and outputs live until here
        return {name: tensor[:number].numpy() for name, tensor in found.items()}

    def _upload(self, values: Array, least: int) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(self._device, non_blocking=True)
        short = least - len(tensor)
        return tensor if short <= 0 else torch.cat([tensor, tensor[-1:].expand(short, *tensor.shape[1:])])

    def _empty(self, context: Any, name: str) -> torch.Tensor:
        types = {self._trt.float32: torch.float32, self._trt.int64: torch.int64, self._trt.int32: torch.int32}
        shape = tuple(context.get_tensor_shape(name))
        return torch.empty(shape, dtype=types[self._engine.get_tensor_dtype(name)], device=self._device)


def read_engine_facts(folder: Path) -> tuple[ModelCard, EngineFacts]:
    """Read the facts of a bundle's engine, after checking its digest.

    Raises:
        ExportError: engine or manifest is missing, the manifest is damaged, or the engine has another digest.
    """
    manifest, engine = folder / MANIFEST_FILE, folder / ENGINE_FILE
    for file in (engine, manifest):
        if not file.is_file():
            raise ExportError(f"{file}: no such file; build an engine with `siamdetr export MODEL --trt -o {folder}`")
    text = manifest.read_text(encoding="utf-8")
    card = read_card(text, manifest)
    entry = json.loads(text).get("engine")
    try:
        profiles = tuple(Profile(**{side: tuple(row[side]) for side in row}) for row in entry["profiles"])
        facts = EngineFacts(
            sha256=entry["sha256"],
            module=entry["module"],
            version=entry["version"],
            compute_capability=entry["compute_capability"],
            portable=entry["hardware_compatible"],
            version_compatible=entry["version_compatible"],
            profiles=profiles,
        )
    except (KeyError, TypeError) as error:
        raise ExportError(f"{manifest}: says nothing of an engine, or is damaged ({error}); {_REBUILD}") from error
    if digest_file(engine) != facts.sha256:
        raise ExportError(
            f"{engine}: not the engine that manifest.json vouches for (its SHA-256 differs). An engine is a program, so it is not "
            f"opened; {_REBUILD}"
        )
    return card, facts


def check_module(facts: EngineFacts) -> None:
    """Check that the TensorRT which built an engine is installed.

    Raises:
        ExportError: it is missing, or another version.
    """
    if facts.module not in ("tensorrt", "tensorrt_rtx"):
        raise ExportError(
            f"engine: built by an unknown module '{facts.module}', expected tensorrt or tensorrt_rtx; {_REBUILD}"
        )
    if importlib.util.find_spec(facts.module) is None:
        package = facts.module.replace("_", "-")
        raise ExportError(
            f"engine: built with {package} {facts.version}, which is not installed: pip install {package}=={facts.version}"
        )
    installed = importlib.import_module(facts.module).__version__
    if installed != facts.version and not facts.version_compatible:
        raise ExportError(
            f"engine: built with {facts.module} {facts.version}, but {installed} is installed, and engines do not outlive a version; {_REBUILD}"
        )


def choose_profile(profiles: Sequence[Profile], height: int, width: int) -> int:
    """The first profile that accepts images of a size.

    Raises:
        ExportError: none does; the text lists them.
    """
    for index, profile in enumerate(profiles):
        if profile.takes(height, width):
            return index
    known = "; ".join(f"{p.height[0]}..{p.height[2]} × {p.width[0]}..{p.width[2]}" for p in profiles)
    raise ExportError(
        f"engine: got images of {height}×{width} pixels, built for (height × width) {known}; build with --heights and --widths that take them"
    )


def spans(number: int, batch: tuple[int, int, int]) -> list[tuple[int, int]]:
    """The row ranges in which a batch is computed, none larger than the engine accepts."""
    return [(start, min(start + batch[2], number)) for start in range(0, number, batch[2])]


def choose_gpu(device: str, facts: EngineFacts) -> torch.device:
    """The GPU that an engine runs on.

    Raises:
        ExportError: no GPU, a device that is none, or a GPU that the engine was not built for.
    """
    if not torch.cuda.is_available():
        raise ExportError(
            "engine: TensorRT needs an NVIDIA GPU, and PyTorch finds none here; take --backend onnxruntime or openvino"
        )
    if device != "auto" and not device.startswith("cuda"):
        raise ExportError(f"device: got '{device}' for an engine, expected cuda, cuda:N or auto")
    gpu = torch.device("cuda" if device == "auto" else device)
    here = "{}.{}".format(*torch.cuda.get_device_capability(gpu))
    if facts.compute_capability not in (None, here) and not facts.portable:
        raise ExportError(
            f"engine: built for a GPU of compute capability {facts.compute_capability}, {torch.cuda.get_device_name(gpu)} has {here}; {_REBUILD}"
        )
    return gpu
