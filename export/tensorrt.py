"""Build a TensorRT engine from an exported graph, with TensorRT from 10.12 on or TensorRT-RTX.

The network is strongly typed: its precision comes from the casts in the graph (`export/precision.py`) and from no
builder flag. TensorRT 11 removed those flags; code that sets them only where they exist silently builds float32 engines
there. Therefore the precision of the layers is read back, and another precision than requested is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from siamdetr.errors import ExportError
from siamdetr.export.engine_precision import LayerPrecision, check_realised, inspect_engine, read_network
from siamdetr.export.options import Precision, Triple, check_range
from siamdetr.export.sessions import cuda_at_hand
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.system.atomic_file import atomic_write

TrtModule = Literal["tensorrt", "tensorrt_rtx"]

_INSTALL = {
    "tensorrt": "pip install 'siamdetr[trt]' (an NVIDIA GPU and its driver are needed too)",
    "tensorrt_rtx": "pip install tensorrt-rtx",
}
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory")


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine accepts: smallest, usual and largest of each."""

    batch: Triple
    height: Triple
    width: Triple

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            check_range(name, getattr(self, name))

    def takes(self, height: int, width: int) -> bool:
        """Whether the profile accepts images of this size."""
        return self.height[0] <= height <= self.height[2] and self.width[0] <= width <= self.width[2]

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Smallest, usual and largest shape of an input."""
        if name == "images":
            return [(n, 3, h, w) for n, h, w in zip(self.batch, self.height, self.width, strict=True)]
        return [(n, 2) for n in self.batch]


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine's build.

    Attributes:
        module: "tensorrt", or "tensorrt_rtx", which also builds without a GPU; None: the first that is installed.
        workspace: GiB that layers may use as scratch memory.
        timing_cache: a file that is read if it exists, and written, so that the next build measures less.
        tf32: let float32 multiplications round to 10 bits; off, so that an fp32 engine is one.
        version_compatible: the engine also runs with later versions of TensorRT; slower.
        hardware_compatible: the engine also runs on other GPUs from Ampere on; slower.
    """

    module: TrtModule | None = None
    workspace: float = 4.0
    timing_cache: Path | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.module not in (None, *get_args(TrtModule)):
            raise ExportError(f"trt: got module '{self.module}', expected {' or '.join(get_args(TrtModule))}")
        if self.workspace <= 0:
            raise ExportError(f"workspace: got {self.workspace} GiB, expected more than 0")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and its facts."""

    plan: bytes
    module: TrtModule
    version: str
    realised: LayerPrecision
    seconds: float


def default_profile(spec: PreprocessingSpec, batch: Triple, *, least: int = 65) -> Profile:
    """The profile of a preprocessing.

    It has one size, or all sizes that a shortest and a longest side allow.
    """
    if isinstance(spec.size, tuple):
        height, width = spec.size
        return Profile(batch, (height,) * 3, (width,) * 3)
    longest = spec.max_size or 2 * spec.size
    short = max(least, min(spec.size, longest))
    usual = (short, max(short, min(longest, round(spec.size * 4 / 3))))
    return Profile(
        batch, (min(least, short), usual[0], max(longest, short)), (min(least, short), usual[1], max(longest, short))
    )


def find_module(wanted: TrtModule | None) -> TrtModule:
    """The name of the installed TensorRT module.

    Raises:
        ExportError: none is installed, or it needs a GPU that is not there; the text says what to do.
    """
    names: Sequence[TrtModule] = get_args(TrtModule) if wanted is None else (wanted,)
    there = [name for name in names if importlib.util.find_spec(name) is not None]
    if not there:
        raise ExportError(
            f"TensorRT is not installed: {_INSTALL[names[0]]}; to build without a GPU: {_INSTALL['tensorrt_rtx']}"
        )
    usable = [name for name in there if name == "tensorrt_rtx" or cuda_at_hand()]
    if not usable:
        raise ExportError(
            "TensorRT builds for the GPU that it finds, and there is none (or no driver); run this on the target machine, or build "
            f"with TensorRT-RTX: {_INSTALL['tensorrt_rtx']}"
        )
    return usable[0]


def build_engine(
    onnx_file: Path,
    *,
    precision: Precision,
    profiles: Sequence[Profile],
    options: EngineOptions | None = None,
    half_share: float = 1.0,
) -> BuiltEngine:
    """Build an engine from an exported graph.

    Args:
        onnx_file: written by `export_onnx`.
        precision: of the graph, to be compared with the realised precision.
        profiles: shapes to build for; at run time the first that fits is taken.
        options: see `EngineOptions`.
        half_share: share of the graph's multiplications that are in half precision, as its manifest says.
    Raises:
        ExportError: TensorRT is not installed or finds no GPU, cannot read the graph, runs out of memory, or makes too
            few of the multiplications of a half-precision graph in half precision (`check_realised`).
    """
    options = options or EngineOptions()
    module = find_module(options.module)
    _check_readable(onnx_file)
    started = time.perf_counter()
    trt = importlib.import_module(module)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(f"{onnx_file}: TensorRT {trt.__version__} cannot read the graph: {'; '.join(reasons)[:600]}")
    config = _config(trt, builder, network, profiles, options)
    cache = _timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{onnx_file}: TensorRT {trt.__version__} built no engine: {failure_reason(logger.errors)}")
    if options.timing_cache is not None and cache is not None:
        blob = bytes(cache.serialize())
        atomic_write(options.timing_cache, lambda file: file.write(blob))
    content = bytes(plan)
    realised = inspect_engine(trt, logger, content) or read_network(trt, network)
    check_realised(realised, precision, half_share)
    return BuiltEngine(content, module, trt.__version__, realised, time.perf_counter() - started)


def _config(trt: Any, builder: Any, network: Any, profiles: Sequence[Profile], options: EngineOptions) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector names no types
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            profile.set_shape(name, *shapes.shapes(name))
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(
                f"profile: TensorRT refuses {shapes}; are the sizes at least one cell of the coarsest level?"
            )
    return config


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    with warnings.catch_warnings():
        # TensorRT-RTX calls its timing cache deprecated: it measures nothing while building.
        warnings.simplefilter("ignore")
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _check_readable(onnx_file: Path) -> None:
    try:
        graph = onnx.load(onnx_file)
    except Exception as error:  # protobuf raises its own
        raise ExportError(f"{onnx_file}: not a whole ONNX file ({error}); export it again") from error
    if _sums_while_scattering(graph):
        raise ExportError(
            f"{onnx_file}: has the attention of a deformable model as an output, which TensorRT cannot read (ScatterElements with "
            "a sum); export it without --attention"
        )
    dynamic = sorted({node.op_type for node in graph.graph.node} & _DYNAMIC)
    if dynamic:
        raise ExportError(
            f"{onnx_file}: dynamically quantised ({', '.join(dynamic)}), which TensorRT cannot read; export with --int8, which is static"
        )


def _sums_while_scattering(graph: onnx.ModelProto) -> bool:
    """Whether a graph has the operator that draws the attention of deformable models."""
    return any(
        attribute.name == "reduction" and attribute.s not in (b"", b"none")
        for node in graph.graph.node
        if node.op_type == "ScatterElements"
        for attribute in node.attribute
    )


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} '{error.node_name()}': {error.desc()}"


def failure_reason(errors: Sequence[str]) -> str:
    """The last errors of TensorRT, for a message, with the remedy if memory ran out."""
    text = " | ".join(errors[-3:]) or "it gave no reason"
    if any(word in text.lower() for word in _OUT_OF_MEMORY):
        return f"the GPU ran out of memory ({text[:300]}); take a smaller --batch or --workspace, or free the GPU"
    return text[:600]


def _logger(trt: Any) -> Any:
    """TensorRT's logger, which keeps errors for our messages and prints nothing."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Collector()
