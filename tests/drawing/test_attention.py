"""`siamdetr attention`: figures of attention maps."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_models import NAMES, tiny_model
from PIL import Image
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.drawing.attention import FigureOptions, attention_figure, best_boxes, chosen_map, heat
from siamdetr.inference.attention_maps import AttentionMaps, RecordedInspection
from siamdetr.inference.predictor import ScoredBoxes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    for variant in ("conditional", "deformable"):
        tiny_model(variant).save(folder / f"{variant}.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / "image.png")
    return folder


def run(folder: Path, *words: str, model: str = "conditional") -> tuple[int, str]:
    result = CliRunner().invoke(
        app,
        ["attention", str(folder / f"{model}.safetensors"), str(folder / "image.png"), *words],
        env={"COLUMNS": "200"},
    )
    return result.exit_code, result.output + str(result.exception or "")


@pytest.mark.parametrize("model", ["conditional", "deformable"])
def test_the_command_writes_a_figure_at_print_quality(folder: Path, model: str) -> None:
    code, text = run(folder, "-o", str(folder / "new" / f"{model}.png"), "--boxes", "2", "--dpi", "200", model=model)
    assert code == 0, text
    with Image.open(folder / "new" / f"{model}.png") as figure:
        assert figure.width == 1400  # 7 inches
        assert np.asarray(figure.convert("L")).std() > 10


def test_heads_layers_and_points_of_the_encoder(folder: Path) -> None:
    code, text = run(folder, "-o", str(folder / "fig.pdf"), "--heads", "--layer", "2")
    assert code == 0, text
    assert (folder / "fig.pdf").read_bytes().startswith(b"%PDF")
    code, text = run(folder, "-o", str(folder / "fig.svg"), "--point", "40,30", model="deformable")
    assert code == 0, text
    assert "<svg" in (folder / "fig.svg").read_text()[:1000]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "fig.gif"], "got fig.gif, expected a name in .jpg, .pdf, .png, .svg"),
        (["--point", "here"], "got 'here', expected two pixels such as 120,80"),
        (["--point", "81,3"], "got 81,3, expected a pixel of the image, which is 80 × 60"),
        (["--layer", "3"], "layer: got 3, expected 1 to 2; leave it out for the mean of all layers"),
    ],
)
def test_a_wrong_request_is_explained(folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    if "-o" not in words:
        words = [*words, "-o", str(tmp_path / "fig.png")]
    code, text = run(folder, *words)
    assert code != 0
    assert message in " ".join(text.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_best_boxes_takes_a_query_once() -> None:
    boxes = np.array([[[0, 0, 9, 9], [1, 1, 5, 5], [0, 0, 9, 9], [2, 2, 4, 4]]], dtype=np.float32)
    scores = np.array([[0.9, 0.3, 0.8, 0.5]], dtype=np.float32)
    seen = RecordedInspection(ScoredBoxes(scores, np.zeros((1, 4), np.int64), boxes), (10, 10), None)
    assert best_boxes(seen, 3) == [0, 3, 1]


def test_maps_of_layers_and_heads() -> None:
    maps = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    attention = AttentionMaps(maps)
    np.testing.assert_allclose(chosen_map(attention, layer=None, head=None), maps.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(chosen_map(attention, layer=2, head=1), maps[1, 1], rtol=1e-6)
    np.testing.assert_allclose(chosen_map(attention, layer=None, head=2), maps[:, 2].mean(0), rtol=1e-6)


def test_heat_peaks_where_the_map_does_and_an_even_map_stays_dark() -> None:
    even = np.full((10, 10), 0.01, dtype=np.float32)
    assert heat(even, (100, 100)).max() == pytest.approx(1 / 3, abs=0.01)
    peaked = even.copy()
    peaked[2, 7] = 0.5
    large = heat(peaked, (100, 100))
    assert np.unravel_index(large.argmax(), large.shape)[0] // 10 == 2
    assert np.unravel_index(large.argmax(), large.shape)[1] // 10 == 7
    assert large.max() == pytest.approx(1, abs=0.05)
    assert large.shape == (100, 100)


def test_the_figure_of_an_onnx_file_s_arrays() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[[5, 5, 30, 30], [20, 10, 50, 40]]], dtype=np.float32)
    scored = ScoredBoxes(np.array([[0.9, 0.4]], np.float32), np.array([[0, 2]]), boxes)
    seen = RecordedInspection(scored, (48, 64), rng.random((2, 4, 2, 3, 4), dtype=np.float32))
    image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    figure = attention_figure(image, seen, NAMES, FigureOptions(boxes=2))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["boxes", "cat  0.90", "cell  0.40"]
    with pytest.raises(ValueError, match="keeps no attention of its encoder"):
        attention_figure(image, seen, NAMES, FigureOptions(point=(0.5, 0.5)))


def test_a_photo_is_drawn_no_larger_than_print_shows_and_measured_in_its_own_pixels() -> None:
    boxes = np.array([[[500, 500, 3000, 3000]]], dtype=np.float32)
    scored = ScoredBoxes(np.array([[0.9]], np.float32), np.array([[0]]), boxes)
    seen = RecordedInspection(scored, (3000, 4000), np.ones((1, 1, 1, 3, 4), np.float32) / 12)
    figure = attention_figure(Image.new("RGB", (4000, 3000)), seen, ("5$ or 10$",), FigureOptions(boxes=1))
    for axis in figure.axes:
        assert (axis.get_xlim(), axis.get_ylim()) == ((0, 4000), (3000, 0))
        for drawn in axis.images:
            assert np.asarray(drawn.get_array()).shape[:2] == (1350, 1800)
    figure.savefig(BytesIO(), format="svg")  # dollars in a name are no mathematics
