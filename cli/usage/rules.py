"""Rules for options that have an effect only together with others.

Options without a rule always have an effect.
"""

from __future__ import annotations

from pathlib import Path

from siamdetr.cli.usage.inputs import only_videos
from siamdetr.cli.usage.unused_options import Rule, Values

_EXPORTED_SUFFIXES = (".onnx", ".engine")
_NEEDS_DATA = "it is about --data DATA, which is not given"
_COMPILED_ALREADY = (
    "MODEL is an exported file, which its runtime optimises itself; give the run folder or .safetensors file"
)


def is_exported(model: Path) -> bool:
    """Whether a path is an exported file: a bundle, an ONNX file or an engine."""
    return model.suffix in _EXPORTED_SUFFIXES or (model / "manifest.json").is_file() or (model / "model.onnx").is_file()


def _has_data(values: Values) -> bool:
    return values["data"] is not None


def _is_model(values: Values) -> bool:
    return not str(values["model"]).endswith(".json")


def _is_checkpoint(values: Values) -> bool:
    return not is_exported(values["model"])


def _compares_or_measures(values: Values) -> bool:
    return bool(values["gate"] or values["int8"])


def _new_folder(values: Values) -> bool:
    return values["resume"] in (None, "auto")


def _writes_where_it_says(values: Values) -> bool:
    if _new_folder(values):
        return True
    resume = Path(values["resume"])
    folder = resume if resume.is_dir() else resume.parent
    return bool(folder.resolve() == values["output"].resolve())


_OF_RUNS = (
    Rule(("epochs",), lambda v: v["steps"] is None, "--steps says how long; give one of the two"),
    Rule(("output",), _writes_where_it_says, "--resume PATH goes on in the folder of that checkpoint; leave -o out"),
    Rule(("init",), _new_folder, "--resume PATH goes on from that checkpoint's weights; leave --init out"),
    Rule(("allow_changes",), lambda v: v["resume"] is not None, "it is about a run that goes on; give --resume"),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "doctor": (
        Rule(
            ("output", "device", "backend"),
            lambda v: v["model"] is not None,
            "it is about a model that looks for label errors; give --model",
        ),
    ),
    "predict": (
        Rule(("compiled",), _is_checkpoint, _COMPILED_ALREADY),
        Rule(("overlap",), lambda v: v["tile"] is not None, "it is of tiles; give --tile SIDE"),
        Rule(("stride",), lambda v: only_videos(v["images"]), "it leaves out frames of a video; these are images"),
        Rule(("save",), lambda v: not only_videos(v["images"]), "each video has its lines in OUTPUT/NAME.jsonl"),
        Rule(("json_file",), lambda v: not only_videos(v["images"]), "each video has its lines in OUTPUT/NAME.jsonl"),
    ),
    "train": _OF_RUNS,
    "pretrain": _OF_RUNS,
    "finetune": _OF_RUNS,
    "proposals": (
        Rule(
            ("edge_model",),
            lambda v: v["method"] in ("edgeboxes", "merged"),
            "only --method edgeboxes and --method merged look at edges",
        ),
    ),
    "study": (
        Rule(("allow_overlap",), lambda v: bool(v["unlabelled"]), "it is about --unlabelled, which is not given"),
        Rule(("cpus", "gpus"), lambda v: v["ray"] is not None, "they are what a cell occupies on a cluster; give --ray"),
        Rule(
            ("jobs",),
            lambda v: v["name"] != "cost" or v["ray"] is not None,
            "cost times its cells one after the other",
        ),
        Rule(
            ("fractions", "seeds", "finetune_steps", "evaluations", "val_split", "finetune"),
            lambda v: v["name"] not in ("cost", "qualitative"),
            "this study pretrains only and finetunes nothing",
        ),
        Rule(("test_split",), lambda v: v["name"] != "cost", "this study scores nothing"),
        Rule(("pretrain_steps",), lambda v: v["name"] != "cost", "cost times a fixed number of steps"),
        Rule(
            ("methods",),
            lambda v: v["name"] not in ("sensitivity", "ablation") or v["methods"].strip() == "siamese",
            "this study varies settings of Siamese DETR alone",
        ),
    ),
    "val": (
        Rule(
            ("batch_size", "workers", "device", "backend", "compiled"),
            _is_model,
            "MODEL is a file of results, which are scored as they are; give a model",
        ),
        Rule(("compiled",), _is_checkpoint, _COMPILED_ALREADY),
    ),
    "label": (
        Rule(
            ("data",),
            lambda v: v["sure"] is None or v["look"] is None,
            "--sure and --look say both thresholds, so that none is chosen on labelled images",
        ),
        Rule(("split", "data_format"), _has_data, _NEEDS_DATA),
    ),
    "attention": (
        Rule(("boxes",), lambda v: v["point"] is None, "--point shows the encoder's attention, of no box"),
        Rule(
            ("dpi",),
            lambda v: v["output"].suffix.lower() in (".png", ".jpg"),
            "a .pdf or .svg has no dots; name a .png or .jpg with -o",
        ),
    ),
    "benchmark": (Rule(("split", "data_format", "images"), _has_data, _NEEDS_DATA),),
    "serve": (
        Rule(
            ("max_delay",),
            lambda v: v["max_batch"] > 1,
            "nothing waits for others while --max-batch is 1; give --max-batch 2 or more",
        ),
    ),
    "export": (
        Rule(
            ("split", "data_format"),
            _has_data,
            f"{_NEEDS_DATA} (what is written is always ONNX; --trt adds a TensorRT engine)",
        ),
        Rule(
            ("precision", "int8", "resize", "imgsz", "raw", "attention", "sampling", "threshold"),
            _is_checkpoint,
            "MODEL is exported already, and its graph is what it is; give the run folder or .safetensors file to export anew",
        ),
        Rule(("precision",), lambda v: not v["int8"], "--int8 is a precision itself; leave one of the two out"),
        Rule(
            ("data",),
            _compares_or_measures,
            "with --no-gate nothing is compared, and without --int8 no scales are measured",
        ),
        Rule(
            ("images",),
            _compares_or_measures,
            "with --no-gate nothing is compared, and without --int8 no scales are measured",
        ),
        Rule(
            ("batch",),
            lambda v: bool(v["gate"] or v["trt"]),
            "with --no-gate nothing is compared, and without --trt no engine is built; the graph takes any batch",
        ),
        Rule(
            (
                "trt_module", "heights", "widths", "workspace", "timing_cache", "tf32", "version_compatible",
                "hardware_compatible",
            ),
            lambda v: bool(v["trt"]),
            "it is about a TensorRT engine; give --trt to build one",
        ),
    ),
}  # fmt: skip
