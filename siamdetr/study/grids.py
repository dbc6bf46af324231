"""The cells of each study; every comparison includes scratch on the same splits and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from siamdetr.settings.pretext import SiameseSettings
from siamdetr.study.cell import SCRATCH, Cell
from siamdetr.study.settings import StudyName, StudySettings, pretrain_settings

Variation = tuple[tuple[str, str], ...]

_OFFICIAL = {
    "conditioning": "position", "matching": "image", "mask_ratio": "0", "mask_by": "query", "start": "learned", "fold_mean": "false",
    "normalize_features": "false", "inside": "0", "distinct": "1", "least_area": "0.05",
}  # fmt: skip
_OURS = _OFFICIAL | {
    "conditioning": "content", "matching": "group", "mask_ratio": "0.5", "mask_by": "image", "start": "similar", "fold_mean": "true",
    "inside": "0.8", "distinct": "0.7", "least_area": "0.02",
}  # fmt: skip
# How queries are told regions, and which regions: the official way beside ours, one at a time and all together.
_PROMPTS: dict[str, dict[str, dict[str, str]]] = {
    "told in": {name: {"conditioning": name} for name in ("position", "content")},
    "matched within": {name: {"matching": name} for name in ("image", "group")},
    "told nothing": {
        "none": {"mask_ratio": "0"},
        "a quarter": {"mask_ratio": "0.25", "mask_by": "query"},
        "half of the images": {"mask_ratio": "0.5", "mask_by": "image"},
    },
    "starts": {name: {"start": name} for name in ("learned", "similar")},
    "mean region": {"dropped": {"fold_mean": "false"}, "folded in": {"fold_mean": "true"}},
    "features": {"raw": {"normalize_features": "false"}, "normalised": {"normalize_features": "true"}},
    "regions": {"clipped": {"inside": "0", "distinct": "1"}, "distinct": {"inside": "0.8", "distinct": "0.7"}},
    "recipe": {"official": _OFFICIAL, "ours": _OURS},
}


def plan(study: StudySettings) -> list[Cell]:
    """All cells of a study in running order: pretraining first, then small fractions before large ones."""
    wanted = list(_GRIDS[study.study](study))
    sources = [cell.source for cell in wanted if cell.source is not None]
    return list(dict.fromkeys([*sources, *wanted]))


def ablation_variations(study: StudySettings) -> dict[str, dict[str, Variation]]:
    """Varied setting -> label -> variation of the pretraining; the preset's own value counts once for all."""
    switches = {"both": ("1", "1"), "region only": ("0", "1"), "global only": ("1", "0"), "boxes only": ("0", "0")}
    base = _own(study)
    weights = tuple(base[name] if base[name] != "0" else "1" for name in ("weight_global", "weight_region"))
    return {
        "proposals": {name: _vary(study, proposals=name) for name in ("edgeboxes", "random")},
        "view IoU": {f"{iou:g}": _vary(study, view_iou=f"{iou:g}") for iou in sorted(study.view_ious)},
        "losses": {
            label: _vary(
                study,
                weight_global=weights[0] if on[0] == "1" else "0",
                weight_region=weights[1] if on[1] == "1" else "0",
            )
            for label, on in switches.items()
        },
        **{
            group: {label: _vary(study, **_possible(study, values)) for label, values in labelled.items()}
            for group, labelled in _PROMPTS.items()
            if group != "starts" or _learns_references(study)
        },
    }


def sensitivity_variations(study: StudySettings) -> dict[tuple[float, float], Variation]:
    """(λ_global, λ_region) -> variation."""
    return {
        (glob, region): _vary(study, weight_global=f"{glob:g}", weight_region=f"{region:g}")
        for glob in sorted(study.weights)
        for region in sorted(study.weights)
    }


def _data_efficiency(study: StudySettings) -> Iterable[Cell]:
    for fraction in sorted(study.fractions):
        for seed in study.seeds:
            for init in (SCRATCH, *study.methods):
                yield Cell("finetune", init, seed, fraction)


def _initialization(study: StudySettings) -> Iterable[Cell]:
    for init in (SCRATCH, *study.methods):
        yield Cell("agnostic", init)
    for seed in study.seeds:
        for init in (SCRATCH, *study.methods):
            yield Cell("finetune", init, seed, max(study.fractions), "body")


def _sensitivity(study: StudySettings) -> Iterable[Cell]:
    return _scratch_and(study, sensitivity_variations(study).values())


def _ablation(study: StudySettings) -> Iterable[Cell]:
    return _scratch_and(study, (one for group in ablation_variations(study).values() for one in group.values()))


def _cost(study: StudySettings) -> Iterable[Cell]:
    return (Cell("cost", method) for method in study.methods)


def _convergence(study: StudySettings) -> Iterable[Cell]:
    fraction = max(study.fractions)
    return (Cell("finetune", init, seed, fraction) for seed in study.seeds for init in (SCRATCH, *study.methods))


def _qualitative(study: StudySettings) -> Iterable[Cell]:
    return (Cell("qualitative", method) for method in study.methods)


def _scratch_and(study: StudySettings, variations: Iterable[Variation]) -> Iterable[Cell]:
    """Finetuning on the smallest fraction: from scratch, and from Siamese pretraining in each variation."""
    fraction = min(study.fractions)
    yield from (Cell("finetune", SCRATCH, seed, fraction) for seed in study.seeds)
    for variation in variations:
        yield from (Cell("finetune", "siamese", seed, fraction, variation=variation) for seed in study.seeds)


def _learns_references(study: StudySettings) -> bool:
    return pretrain_settings(study, Cell("pretrain", "siamese"), Path("unused")).detector.learns_references


def _possible(study: StudySettings, values: dict[str, str]) -> dict[str, str]:
    """The values that the preset's detector can take."""
    return values if _learns_references(study) else {key: value for key, value in values.items() if key != "start"}


def _vary(study: StudySettings, **values: str) -> Variation:
    own = _own(study)
    return tuple((f"siamese.{name}", value) for name, value in values.items() if own[name] != value)


def _own(study: StudySettings) -> dict[str, str]:
    """The preset's values of the varied settings."""
    siamese = pretrain_settings(study, Cell("pretrain", "siamese"), Path("unused")).of(SiameseSettings)
    names = ("proposals", "view_iou", "weight_global", "weight_region", *_OFFICIAL)
    return {name: _text(getattr(siamese, name)) for name in names}


def _text(value: object) -> str:
    """The value as an assignment writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


_GRIDS: dict[StudyName, Callable[[StudySettings], Iterable[Cell]]] = {
    "data-efficiency": _data_efficiency,
    "initialization": _initialization,
    "sensitivity": _sensitivity,
    "ablation": _ablation,
    "cost": _cost,
    "convergence": _convergence,
    "qualitative": _qualitative,
}
