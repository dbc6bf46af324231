"""The report of a run, from the files of its folder: curves, figures, pictures and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from siamdetr.drawing.html_page import Section, curve, curves_svg, page, picture, read_metrics, table
from siamdetr.files import ATTENTION, CONFIG_FILE, DIAGNOSTICS, EVALUATION_FILE, PICTURES, PROPOSALS_FILE, REPORT_FILE
from siamdetr.pretext.collapse import COLLAPSE_REMEDY, collapsed
from siamdetr.pretext.registry import PRETEXTS, name_of
from siamdetr.settings.registry import DETECTORS
from siamdetr.system.atomic_file import atomic_text
from siamdetr.training.run_folder import method_of

USED_FROM = 0.15  # IoU of own regions over another image's: from here on the report says that regions are used


def write_report(run_folder: str | Path) -> Path:
    """Write report.html from the files of a run folder; returns its path.

    Raises:
        FileNotFoundError: the folder has no config.yaml, so it is not a run.
    """
    folder = Path(run_folder)
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: no config.yaml here; is it a run folder?")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    rows = read_metrics(folder)
    found = folder / EVALUATION_FILE
    evaluation = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else None
    pictures = [
        *picture_sections(folder),
        *_sample_sections(folder, method_of(settings)),
        *_matched_sections(folder),
    ]
    warnings = _collapse_sections(rows)
    figures = [*_evaluation_sections(evaluation), *_curve_sections(rows), *_proposal_sections(folder)]
    sections = [*warnings, *figures, *pictures]
    config_text = Markup("<details><summary>config.yaml</summary><pre>{}</pre></details>")
    sections.append(Section("Settings", config_text.format(config.read_text(encoding="utf-8")), wide=True))
    text = page(f"siamdetr · {folder.name}", _lead(settings, rows, evaluation), sections)
    atomic_text(folder / REPORT_FILE, text)
    return folder / REPORT_FILE


def _lead(
    settings: Mapping[str, Any], rows: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any] | None
) -> str:
    detector = settings["detector"]
    method = method_of(settings)
    what = "Finetuning" if method is None else f"Pretraining without labels ({name_of(method)})"
    model = f"{_name(detector['variant'])} on {detector['backbone']}, {detector['encoder_layers']}+{detector['decoder_layers']} layers"
    steps = f"{max((row['step'] for row in rows), default=0):.0f} steps of {settings['batch_size']}"
    text = f"{_usage_sentence(rows)}{what} of {model}: {steps} on {', '.join(settings['data']['paths'])}."
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        text += f" The loss went from {losses[0]:.3g} to {losses[-1]:.3g}."
    overlaps = [row["monitor_matched_iou"] for row in rows if "monitor_matched_iou" in row]
    if overlaps:
        text += f" Predictions overlap the regions they are matched to by {overlaps[-1]:.2f} on average (IoU), {overlaps[0]:.2f} at first."
    if evaluation is not None:
        scores = evaluation["metrics"]
        text += f" Best AP {scores['ap']:.3f}, AP50 {scores['ap50']:.3f}, at step {evaluation['step']}."
    return text


def _usage_sentence(rows: Sequence[Mapping[str, float]]) -> str:
    """A sentence on whether regions are used, from the last diagnostics.

    "" if the method has no such figures.
    """
    last = next((row for row in reversed(rows) if "regions_own_iou" in row), None)
    if last is None:
        return ""
    own, other, none = (last[f"regions_{kind}_iou"] for kind in ("own", "other", "none"))
    verdict = "Regions are used" if own - other >= USED_FROM else "Regions are hardly used"
    return (
        f"{verdict}: matched boxes overlap by {own:.2f} (IoU) when queries are told their own regions, {other:.2f} when told another "
        f"image's, {none:.2f} when told none, at step {last['step']:.0f}. "
    )


def _name(variant: str) -> str:
    """The name of a detector; its key in the settings if this version does not know it."""
    return DETECTORS[variant].name if variant in DETECTORS else variant


def _curve_sections(rows: Sequence[Mapping[str, float]]) -> list[Section]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    parts = [key for key in keys if key.startswith("loss_")]
    monitors = [key for key in keys if key.startswith("monitor_")]
    usage = [key for key in keys if key.startswith("regions_")]
    groups: list[tuple[str, str, list[str]]] = [
        ("Average precision", "AP", [key for key in ("val_ap", "val_ap50", "val_ap75") if key in keys]),
        ("Loss", "loss", ["loss"] if "loss" in keys else []),
        ("Its parts, unweighted", "loss", parts),
        ("Are regions used? Matched boxes when queries are told these regions", "IoU", usage),
        ("Collapse monitors", "value", monitors),
        ("Learning rate", "rate", ["lr"] if "lr" in keys else []),
        ("Throughput", "images a second", ["images_per_second"] if "images_per_second" in keys else []),
    ]
    return [
        Section(title, curves_svg([curve(rows, key, _plain(key)) for key in chosen], y_label=label))
        for title, label, chosen in groups
        if chosen
    ]


def _plain(key: str) -> str:
    name = (
        key.removeprefix("loss_").removeprefix("monitor_").removeprefix("val_").removeprefix("num_").replace("_", " ")
    )
    return name.replace("ap", "AP", 1) if name.startswith("ap") else name.replace("ar1", "AR@1", 1)


def _evaluation_sections(evaluation: Mapping[str, Any] | None) -> list[Section]:
    if evaluation is None:
        return []
    scores = Section(
        "COCO metrics of the best weights",
        table(["metric", "value"], [(_plain(key), value) for key, value in evaluation["metrics"].items()]),
    )
    rows = evaluation["per_class"]
    if not rows:
        return [scores]
    header = list(rows[0])
    body = [[row[key] for key in header] for row in rows]
    return [scores, Section("Per class", table([_plain(key) for key in header], body))]


def _proposal_sections(folder: Path) -> list[Section]:
    """Sections on the recall of a pretraining run's proposals."""
    path = folder / PROPOSALS_FILE
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    recipe = Markup("<p>{}</p>").format(content["recipe"])
    return [Section("Proposals", table(["", "figure"], content["rows"]) + recipe)]


def picture_sections(folder: Path) -> list[Section]:
    """Detections of the best weights of a finetuning run in a few images, with the decoder's attention."""
    titles = {
        PICTURES: "Truth (left) and prediction (right)",
        ATTENTION: "Where the decoder looked for its best boxes, mean over layers and heads",
    }
    sections = []
    for name, title in titles.items():
        files = sorted((folder / name).glob("*.jpg"))
        body = Markup("").join(picture(file.read_bytes(), file.stem) for file in files)
        if files:
            sections.append(Section(title, Markup("<div class=pictures>{}</div>").format(body), wide=True))
    return sections


def _sample_sections(folder: Path, method: str | None) -> list[Section]:
    """Samples of a pretraining method."""
    files = sorted((folder / DIAGNOSTICS).glob("sample-*.jpg"))
    body = Markup("").join(picture(file.read_bytes(), f"image {i + 1}") for i, file in enumerate(files))
    what = PRETEXTS[method].shown if method in PRETEXTS else "regions of images"
    body = Markup("<div class=samples>{}</div>").format(body)
    return [Section(f"What the method is shown: {what}", body, wide=True)] if files else []


def _matched_sections(folder: Path) -> list[Section]:
    """One row per image, one column per step."""
    rows: dict[str, Markup] = {}
    for file in sorted((folder / DIAGNOSTICS).glob("matched-*.jpg")):
        _, image, step, iou = file.stem.split("-")
        shown = picture(file.read_bytes(), f"step {int(step)}, mean IoU {float(iou):.2f}")
        rows[image] = rows.get(image, Markup("")) + shown
    body = Markup("").join(Markup("<div class=strip>{}</div>").format(row) for row in rows.values())
    title = "Matched predictions over time: targets tinted and dashed, predictions solid in the same colour (the first five regions)"
    return [Section(title, body, wide=True)] if rows else []


def _collapse_sections(rows: Sequence[Mapping[str, float]]) -> list[Section]:
    """A warning if the last figures indicate a collapse."""
    last = next((row for row in reversed(rows) if "loss" in row), {})
    texts = collapsed(last).values()
    items = Markup("").join(Markup("<p class=warning>{}</p>").format(f"Collapse: {text}.") for text in texts)
    return [Section("Warning", items + Markup("<p>{}.</p>").format(COLLAPSE_REMEDY), wide=True)] if texts else []
