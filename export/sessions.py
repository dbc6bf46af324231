"""Sessions that compute a graph, ONNX Runtime or OpenVINO, with named NumPy arrays. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from siamdetr.errors import ExportError
from siamdetr.export.bundle import METADATA_KEY
from siamdetr.system.installed import installed
from siamdetr.system.threads import usable_cores

logger = logging.getLogger(__name__)

OnnxBackend = Literal["onnxruntime", "openvino"]
Array = NDArray[Any]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_KEPT_KERNELS = 64  # OpenVINO's default of 5000 lets memory rise with every new image size
_ERRORS_ONLY = 3  # ONNX Runtime's log levels run from 0 (verbose) to 4 (fatal)


class Session(Protocol):
    """An opened graph."""

    @property
    def runtime(self) -> str:
        """Its name and version, for people."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers, best first."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the graph's inputs."""

    def run(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs."""


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU or an NVIDIA GPU.

    Args:
        path: the graph.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA if available, else the CPU.
        threads: of one operator on the CPU; None: one per core.
    Raises:
        ExportError: it cannot be opened; or CUDA was asked for and ONNX Runtime fell back to the CPU, which it does
            silently.
    """

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        wanted = wanted_providers(device)
        check_packages(wanted, required=device != "auto")
        self._session = _open(path, wanted, threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        check_providers(wanted, self.providers, required=device != "auto")
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}, {self.providers[0]}"
        self.inputs = {value.name: (str(value.type), tuple(value.shape)) for value in self._session.get_inputs()}
        self.outputs = {value.name: tuple(value.shape) for value in self._session.get_outputs()}
        self.input_names = tuple(self.inputs)
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def run(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs."""
        found: list[Array] = self._session.run(list(outputs), dict(feed))
        return found


class OpenVinoSession:
    """OpenVINO on the CPU.

    It computes in float32, unless the graph is in bfloat16 and the processor supports that. By default OpenVINO would
    compute in bfloat16 wherever the processor supports it, whatever the graph says.

    Raises:
        ExportError: OpenVINO is not installed, the device is not the CPU, or the file cannot be opened.
    """

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise ExportError(
                "OpenVINO is not installed: pip install 'siamdetr[openvino]', or take --backend onnxruntime"
            )
        if device not in ("cpu", "auto"):
            raise ExportError(f"device: got '{device}' with OpenVINO, which runs on the CPU here; take cpu or auto")
        import onnx
        import openvino

        core = _openvino_core()
        try:
            proto = onnx.load(path)
            half = any(weight.data_type == onnx.TensorProto.BFLOAT16 for weight in proto.graph.initializer)
            known = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if half and known else "f32"}
            hints["INFERENCE_NUM_THREADS"] = threads or usable_cores()
            hints["CPU_RUNTIME_CACHE_CAPACITY"] = _KEPT_KERNELS
            self._model = core.compile_model(core.read_model(str(path)), "CPU", hints)
            self._idle: list[Any] = []  # requests that no thread is using; appending and popping are atomic
        except Exception as error:  # protobuf's and OpenVINO's exceptions share no base but this
            raise ExportError(
                f"{path}: OpenVINO cannot open it ({_short(error)}); is it whole? Export it again"
            ) from error
        self.providers: tuple[str, ...] = ("OpenVINO CPU",)
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.runtime = f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {precision}"
        self.input_names = tuple(value.get_any_name() for value in self._model.inputs)
        self.metadata: str | None = next((e.value for e in proto.metadata_props if e.key == METADATA_KEY), None)

    def run(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs."""
        request = self._idle.pop() if self._idle else self._model.create_infer_request()
        try:
            found = request.infer(dict(feed))
            return [np.array(found[name]) for name in outputs]  # copied: OpenVINO writes the next answer over this one
        finally:
            self._idle.append(request)


@functools.cache
def _openvino_core() -> Any:
    """The one core of the process, which is never freed.

    A core gives the thread that makes it another stack for signals, and puts back at its end what it found. Two of
    them, freed in the order in which they were made, leave a stack that no longer exists: the next signal with a
    handler, Ctrl-C for example, would be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def wanted_providers(device: str) -> list[Any]:
    """The execution providers to request from ONNX Runtime.

    Raises:
        ExportError: there is no such device.
    """
    if device == "cpu" or (device == "auto" and not cuda_at_hand()):
        return [_CPU]
    if device == "auto":
        return [_CUDA, _CPU]
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise ExportError(f"device: got '{device}', expected cpu, cuda, cuda:N or auto")
    return [(_CUDA, {"device_id": int(number or 0)}), _CPU]


def check_providers(wanted: list[Any], actual: Sequence[str], *, required: bool) -> None:
    """Check the providers, because ONNX Runtime falls back silently and lists CUDA even without a GPU.

    Raises:
        ExportError: the first requested provider is missing and `required`; if not `required`, there is a warning.
    """
    names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
    if names[0] in actual:
        return
    text = (
        f"asked ONNX Runtime for {names[0]}, got {', '.join(actual)}: it fell back in silence. It needs an NVIDIA GPU, "
        "onnxruntime-gpu, and the CUDA and cuDNN versions of its release notes; or take device='cpu'"
    )
    if required:
        raise ExportError(text)
    logger.warning("%s", text)


def check_packages(wanted: list[Any], *, required: bool) -> None:
    """Check that two packages of ONNX Runtime do not share a folder, before a graph is opened.

    The package that was installed later hides the providers of the other.

    Raises:
        ExportError: `required`, CUDA is wanted, and this ONNX Runtime was not built with it; else there is a warning.
    """
    known = onnxruntime.get_available_providers()
    there = installed(_PACKAGES)
    if all(provider == _CPU for provider in wanted) or _CUDA in known:
        return
    if len(there) > 1:
        text = (
            f"ONNX Runtime knows {', '.join(known)} and not {_CUDA}: {' and '.join(there)} are both installed into one folder, and one "
            f"hides the other. pip uninstall -y {' '.join(there)} && pip install onnxruntime-gpu"
        )
    else:
        text = f"ONNX Runtime knows {', '.join(known)} and not {_CUDA}: install onnxruntime-gpu in place of onnxruntime; or take device='cpu'"
    if required:
        raise ExportError(text)
    logger.warning("%s", text)


def cuda_at_hand() -> bool:
    """Whether the CUDA driver answers; ONNX Runtime itself would print to the terminal."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def _open(path: Path, providers: list[Any], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False  # a plan of memory for each image size that ever came, kept for ever
    options.intra_op_num_threads = threads or usable_cores()
    try:
        return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = _short(error)
        if "NOT_IMPLEMENTED" in reason or "bfloat16" in reason:
            remedy = "it lacks an operation there, as all of bfloat16's on the CPU; --backend openvino and TensorRT have them"
        else:
            remedy = "is it whole? Export it again"
        raise ExportError(f"{path}: ONNX Runtime cannot open it ({reason}); {remedy}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
