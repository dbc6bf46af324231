"""An option that a call does not use is refused with a remedy, for every option of every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from siamdetr.cli.__main__ import COMMANDS, app
from siamdetr.cli.usage.rules import RULES

# Options that have an effect in every call of their command. A new option stands here, or in RULES and in CALLS.
_RUN = {
    "data", "preset", "steps", "batch_size", "imgsz", "resume", "lr", "grad_accum", "precision", "seed", "workers",
    "device", "data_format", "split", "strict", "config", "assignments", "compiled",
}  # fmt: skip
ALWAYS: dict[str, set[str]] = {
    "quickstart": {"fast", "output", "seed"},
    "doctor": {"data", "data_format", "split", "workers", "show", "json_file", "model"},
    "proposals": {
        "data", "output", "method", "keep", "score", "boxes", "shard", "ray", "workers", "split", "data_format",
    },
    "split": {"data", "output", "parts", "group", "duplicates", "seed", "data_format"},
    "train": {*_RUN, "proposals", "method", "cache_views"},
    "pretrain": {*_RUN, "proposals", "method", "cache_views"},
    "finetune": {*_RUN, "fraction", "augment", "freeze", "lr_backbone", "val_split", "overfit_batch"},
    "study": {
        "name", "data", "output", "unlabelled", "preset", "imgsz", "batch_size", "ray", "dry_run", "fast", "device",
        "data_format", "split", "both", "pretrain", "start",
    },
    "val": {"model", "data", "split", "data_format", "output", "threshold", "json_file", "max_detections"},
    "label": {
        "model", "images", "output", "to", "sure", "look", "objects", "next_images", "batch_size", "device", "backend",
    },
    "predict": {"model", "images", "threshold", "output", "tile", "batch_size", "device", "backend"},
    "demo": {"models", "examples", "port", "device", "root_path"},
    "attention": {"model", "image", "output", "layer", "heads", "point", "device"},
    "export": {"model", "output", "gate", "trt", "triton"},
    "serve": {
        "model", "host", "port", "workers", "threads", "queue", "max_batch", "name", "device", "cors_origins", "root_path",
        "backend",
    },
    "benchmark": {"models", "data", "batches", "sizes", "rounds", "warmup", "threads", "device", "output"},
    "convert": {"source", "family", "output", "arguments", "classes", "to", "push"},
    "gate": {"a", "b", "data", "split", "data_format", "images", "precision", "spec_a", "spec_b", "output", "device"},
    "info": {"file"},
    "presets": set(),
}  # fmt: skip

_PLAIN = ("export", "run", "-o", "out")
_BARE = (*_PLAIN, "--no-gate")
_BUNDLE = ("export", "BUNDLE", "-o", "out", "--trt")
_RESULTS = ("val", "results.json", "--data", "data")
_DATA_NEEDED = "it is about --data DATA, which is not given"
_ENGINE = "give --trt to build one"
_EXPORTED = "give the run folder or .safetensors file to export anew"
_NOTHING = "with --no-gate nothing is compared"
_RUN_CALLS = [
    (("--steps", "5"), "epochs", ("--epochs", "2"), "give one of the two"),
    (("--resume", "runs/a"), "init", ("--init", "runs/p"), "leave --init out"),
    ((), "allow_changes", ("--allow-changes",), "give --resume"),
    (("--resume", "runs/a"), "output", ("-o", "runs/b"), "goes on in the folder of that checkpoint"),
]

# (command and what makes the option idle, parameter, the option, the way). BUNDLE stands for a bundle folder.
CALLS: list[tuple[tuple[str, ...], str, tuple[str, ...], str]] = [
    *(
        ((verb, "--data", "data", *before), name, option, way)
        for verb in ("train", "pretrain", "finetune")
        for before, name, option, way in _RUN_CALLS
    ),
    (("proposals", "data", "-o", "p.arrow", "--method", "random"), "edge_model", ("--edge-model", "m"), "look at edges"),
    *(
        (("study", "data-efficiency", "--data", "d"), name, (f"--{name}", "2"), "give --ray")
        for name in ("cpus", "gpus")
    ),
    (("study", "cost", "--data", "d"), "allow_overlap", ("--allow-overlap",), "it is about --unlabelled"),
    (("study", "cost", "--data", "d"), "jobs", ("--jobs", "2"), "one after the other"),
    *(
        (("study", "cost", "--data", "d"), name, option, "finetunes nothing")
        for name, option in {
            "fractions": ("--fractions", "1"), "seeds": ("--seeds", "0"), "finetune_steps": ("--finetune-steps", "9"),
            "evaluations": ("--evaluations", "2"), "val_split": ("--val-split", "val"),
            "finetune": ("--finetune-set", "freeze=none"),
        }.items()
    ),
    (("study", "cost", "--data", "d"), "test_split", ("--test-split", "test"), "scores nothing"),
    (("study", "cost", "--data", "d"), "pretrain_steps", ("--pretrain-steps", "9"), "a fixed number of steps"),
    (("study", "ablation", "--data", "d"), "methods", ("--methods", "siamese,updetr"), "Siamese DETR alone"),
    *(
        (_RESULTS, name, option, "MODEL is a file of results")
        for name, option in {
            "batch_size": ("--batch-size", "2"), "workers": ("--workers", "1"), "device": ("--device", "cpu"),
            "backend": ("--backend", "onnxruntime"), "compiled": ("--compile",),
        }.items()
    ),
    (("val", "BUNDLE", "--data", "data"), "compiled", ("--compile",), "optimises itself"),
    (("predict", "BUNDLE", "a.jpg"), "compiled", ("--compile",), "optimises itself"),
    (("label", "run", "a.jpg", "-o", "out", "--sure", ".8", "--look", ".2"), "data", ("--data", "d"), "both thresholds"),
    (("label", "run", "a.jpg", "-o", "out"), "split", ("--split", "val"), _DATA_NEEDED),
    (("label", "run", "a.jpg", "-o", "out"), "data_format", ("--format", "coco"), _DATA_NEEDED),
    (("predict", "run", "a.jpg"), "overlap", ("--overlap", ".3"), "give --tile SIDE"),
    (("predict", "run", "a.jpg"), "stride", ("--stride", "2"), "these are images"),
    *(
        (("doctor", "data"), name, option, "give --model")
        for name, option in {
            "output": ("-o", "out"), "device": ("--device", "cpu"), "backend": ("--backend", "onnxruntime"),
        }.items()
    ),
    (("predict", "run", "a.mp4"), "save", ("--save", "csv"), "each video has its lines"),
    (("predict", "run", "a.mp4"), "json_file", ("--json", "a.json"), "each video has its lines"),
    (("attention", "run", "a.jpg", "--point", "1,1"), "boxes", ("--boxes", "2"), "of no box"),
    (("attention", "run", "a.jpg", "-o", "a.pdf"), "dpi", ("--dpi", "200"), "has no dots"),
    *(
        (("benchmark", "run"), name, option, _DATA_NEEDED)
        for name, option in {
            "split": ("--split", "val"), "data_format": ("--format", "coco"), "images": ("--images", "9"),
        }.items()
    ),
    (("serve", "bundle"), "max_delay", ("--max-delay", "5"), "give --max-batch 2 or more"),
    (_PLAIN, "split", ("--split", "val"), _DATA_NEEDED),
    (_BARE, "data_format", ("--format", "engine"), "--trt adds a TensorRT engine"),
    *(
        (_BUNDLE, name, option, _EXPORTED)
        for name, option in {
            "precision": ("--precision", "fp16"), "int8": ("--int8",), "resize": ("--resize", "letterbox"),
            "imgsz": ("--imgsz", "640"), "raw": ("--raw",), "attention": ("--attention",),
            "sampling": ("--sampling", "grid"), "threshold": ("--threshold", "0.3"),
        }.items()
    ),
    ((*_PLAIN, "--int8"), "precision", ("--precision", "fp16"), "leave one of the two out"),
    (_BARE, "data", ("--data", "d"), _NOTHING),
    (_BARE, "images", ("--images", "9"), _NOTHING),
    (_BARE, "batch", ("--batch", "1,1,2"), _NOTHING),
    *(
        (_PLAIN, name, option, _ENGINE)
        for name, option in {
            "trt_module": ("--trt-module", "tensorrt"), "heights": ("--heights", "9,9,9"),
            "widths": ("--widths", "9,9,9"), "workspace": ("--workspace", "2"), "timing_cache": ("--timing-cache", "c"),
            "tf32": ("--tf32",), "version_compatible": ("--version-compatible",),
            "hardware_compatible": ("--hardware-compatible",),
        }.items()
    ),
]  # fmt: skip


def parameters(command: str) -> set[str]:
    """Names of a command's arguments and options."""
    group = get_command(app)
    return {one.name for one in group.commands[command].params} - {"help"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_has_its_say(command: str) -> None:
    conditional = {name for rule in RULES.get(command, ()) for name in rule.options}
    assert parameters(command) == ALWAYS[command] | conditional
    assert not ALWAYS[command] & conditional
    assert {name for call, name, _, _ in CALLS if call[0] == command} == conditional


@pytest.mark.parametrize(
    ("call", "name", "option", "way"), CALLS, ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)
def test_an_option_without_effect_is_refused(
    call: tuple[str, ...], name: str, option: tuple[str, ...], way: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    answer = CliRunner().invoke(app, [str(bundle) if one == "BUNDLE" else one for one in (*call, *option)])
    said = " ".join(answer.output.replace("│", " ").split())
    assert answer.exit_code == 2, said
    flag = "--output" if option[0] == "-o" else option[0]
    assert f"{flag}: has no effect here: " in said
    assert way in said
    assert not (tmp_path / "out").exists()


def test_a_setting_is_not_given_twice() -> None:
    for command, key in (("train", "optimizer.lr"), ("finetune", "optimizer.lr")):
        call = [command, "--data", "d", "--lr", "0.1", "--set", f"{key}=0.2"]
        answer = CliRunner().invoke(app, [*call, *(() if command == "train" else ("--preset", "small"))])
        said = " ".join(answer.output.replace("│", " ").split())
        assert (answer.exit_code, f"{key}: given twice" in said) == (2, True), said


def test_settings_of_another_method_are_refused() -> None:
    answer = CliRunner().invoke(
        app, ["train", "--data", "d", "--steps", "1", "--method", "siamese", "--set", "updetr.num_regions=3"]
    )
    said = " ".join(answer.output.replace("│", " ").split())
    assert (answer.exit_code, "the method is siamese" in said) == (2, True), said


def test_a_learning_rate_of_a_frozen_backbone_is_refused() -> None:
    call = ["finetune", "--data", "d", "--steps", "1", "--freeze", "backbone", "--lr-backbone", "0.1"]
    answer = CliRunner().invoke(app, call)
    said = " ".join(answer.output.replace("│", " ").split())
    assert (answer.exit_code, "give --freeze none to train it" in said) == (2, True), said
