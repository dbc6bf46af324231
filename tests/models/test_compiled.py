"""torch.compile of a detector: one compilation for all image sizes, the same numbers, a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.tiny_models import NAMES, TINY
from torch import Tensor
from torch._dynamo.utils import counters

from siamdetr.api import SiamDETR
from siamdetr.errors import SettingsError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.compiled import check_compiler, compile_parts
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.training import FinetuneSettings
from siamdetr.structures.targets import DetectionBatch, Targets
from siamdetr.training.finetune_module import FinetuneModule

# Dynamo looks at `.grad` of what goes from one part to the next, and hides the warning of that except from `-W error`.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

SIZES = [(2, 64, 96), (2, 96, 64), (3, 96, 160), (2, 128, 128), (4, 160, 224)]  # images, height, width
SETTINGS = FinetuneSettings.model_validate({"data": {"paths": ["x"]}, "steps": 3})


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """The number of compilations so far."""
    return int(counters["stats"]["unique_graphs"])


def detector() -> Detector:
    """Small and without dropout, which draws other numbers in compiled code."""
    small = {**TINY, "backbone": "test_resnet", "decoder_layers": 1, "num_queries": 8, "dropout": 0.0}
    torch.manual_seed(0)
    return Detector(DetectorSettings.model_validate({**small, "variant": "conditional", "num_classes": 3}))


def module() -> FinetuneModule:
    return FinetuneModule(detector(), SETTINGS, PreprocessingSpec(), 3).train()


def batch(images: int, height: int, width: int) -> DetectionBatch:
    generator = torch.Generator().manual_seed(height)
    padding = torch.zeros(images, height, width, dtype=torch.bool)
    padding[0, :, width // 2 :] = True
    return DetectionBatch(
        torch.randint(0, 255, (images, 3, height, width), dtype=torch.uint8, generator=generator),
        padding,
        Targets(torch.full((images, 4), 0.4), torch.zeros(images, dtype=torch.long), (1,) * images),
        tuple(range(images)),
        torch.full((images, 2), height),
    )


def loss_and_gradients(trained: FinetuneModule, of: DetectionBatch) -> tuple[Tensor, list[Tensor]]:
    trained.zero_grad()
    loss = trained.training_step(of, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [weight.grad for weight in trained.parameters() if weight.grad is not None]


def test_another_image_size_compiles_nothing_and_losses_stay() -> None:
    """AOTAutograd traces forward and backward as for every compiler; C++ would take a minute more."""
    plain, compiled = module(), module()
    compile_parts(compiled.detector, backend="aot_eager")
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    seen = []
    for size in SIZES:
        wanted, found = (loss_and_gradients(one, batch(*size)) for one in (plain, compiled))
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0.0)
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-4)
        seen.append(graphs())
    assert sum(counters["graph_break"].values()) == 0
    assert seen == [4] * len(SIZES), "backbone, projection, encoder and decoder, once each"


def test_a_compiled_model_predicts_the_same() -> None:
    spec = PreprocessingSpec.from_size(96)
    plain, compiled = (SiamDETR.from_parts(detector(), class_names=NAMES, preprocessing=spec) for _ in range(2))
    compiled.predictor.compile(backend="eager")
    for height, width in ((64, 96), (128, 96), (96, 160)):
        image = torch.randint(0, 255, (height, width, 3), dtype=torch.uint8).numpy()
        wanted, found = (model.predict(image, threshold=0.0) for model in (plain, compiled))
        assert abs(wanted.xyxy - found.xyxy).max() < 1e-3
        assert abs(wanted.confidence - found.confidence).max() < 1e-5
    assert graphs() >= 4


def test_a_machine_without_a_compiler_is_told_so() -> None:
    from torch._inductor import config as inductor
    from torch._inductor.cpp_builder import cpp_compiler_search

    cpp_compiler_search.cache_clear()
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(SettingsError) as refusal:
        check_compiler(torch.device("cpu"))
    text = str(refusal.value)
    assert "no-such-compiler" in text
    assert "apt-get install g++" in text
    assert "\n" not in text
