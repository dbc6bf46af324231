"""`siamdetr train` (alias `pretrain`): self-supervised pretraining on images without labels."""

from __future__ import annotations

from siamdetr.cli import options
from siamdetr.cli.usage import train_options
from siamdetr.cli.usage.unused_options import refuse_twice, unused_setting


def train(
    data: options.DataList,
    preset: options.Preset = None,
    proposals: train_options.Proposals = [],  # noqa: B006 - typer copies it
    method: train_options.Method = None,
    cache_views: train_options.CacheViews = None,
    init: options.Init = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    imgsz: options.ImageSize = None,
    output: options.Output = None,
    resume: options.Resume = None,
    allow_changes: options.AllowChanges = False,
    lr: options.LearningRate = None,
    grad_accum: options.GradAccum = None,
    precision: options.Precision = None,
    compiled: options.Compile = False,
    seed: options.Seed = None,
    workers: options.Workers = None,
    device: options.RunDevice = None,
    data_format: options.RunFormat = None,
    split: options.Split = None,
    strict: options.Strict = False,
    config: options.Config = None,
    assignments: options.Set = [],  # noqa: B006 - typer copies it
) -> None:
    """Pretrain a detector on images WITHOUT labels (self-supervised).

    To train on labels: `siamdetr finetune`.
    """
    from siamdetr.cli.console import RunProgress
    from siamdetr.pretext.registry import PRETEXTS
    from siamdetr.pretext.run_settings import PretrainSettings
    from siamdetr.settings.resolve import resolve
    from siamdetr.system.extras import require
    from siamdetr.training.pretrain import pretrain

    require("cv2")
    flags = {
        "data.paths": [str(path) for path in data],
        "data.format": data_format,
        "data.split": split,
        "data.strict": strict or None,
        "data.proposals": [str(path) for path in proposals] or None,
        "method": method,
        "siamese.cache_views": cache_views,
        "init": init,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        **dict.fromkeys((f"{key}.size" for key in PRETEXTS), options.image_size(imgsz)),
        "output": None if output is None else str(output),
        "optimizer.lr": lr,
        "grad_accum": grad_accum,
        "precision": precision,
        "compile": compiled or None,
        "seed": seed,
        "workers": workers,
        "device": device,
    }
    refuse_twice(flags, assignments)
    settings = resolve(PretrainSettings, preset=preset, file=config, flags=flags, assignments=assignments)
    others = set(PRETEXTS) - {settings.method}
    for assignment in assignments:
        if assignment.partition(".")[0].strip() in others:
            raise unused_setting(assignment, f"the method is {settings.method}")
    options.check_run_outputs(settings.data, settings.output, init=settings.init, config=config, resume=resume)
    with RunProgress() as progress:
        result = pretrain(settings, progress=progress, resume=resume, allow_changes=allow_changes)
    options.next_steps(result.folder, "finetune --data LABELLED --init {run}", "predict {run} IMAGES…")
