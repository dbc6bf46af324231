"""The demo's server: answers to its page, refusals, and isolation from other hosts."""

from __future__ import annotations

import base64
import importlib.resources
import io
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.onnx_attention import write_attention_onnx
from helpers.paths import ROOT
from helpers.pictures import bomb
from helpers.tiny_models import NAMES, tiny_model
from PIL import Image
from typer.testing import CliRunner

from siamdetr.api import SiamDETR, load
from siamdetr.cli.__main__ import app
from siamdetr.cli.demo import distinguishing_names
from siamdetr.errors import ImageError
from siamdetr.inference.attention_maps import AttentionMaps
from siamdetr.serve.demo.answers import Answers, NamedModel, data_url, pack
from siamdetr.serve.demo.example_images import find_examples, open_upload
from siamdetr.settings.registry import DETECTORS


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def png(image: Image.Image, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, format)
    return content.getvalue()


def unpack(answer: dict[str, Any]) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(answer["maps"]), dtype=np.uint8).reshape(answer["shape"])
    return levels * np.array(answer["peaks"]).reshape(*answer["shape"][:2], 1, 1) / 255


@pytest.mark.parametrize("variant", sorted(DETECTORS))
def test_every_variant_answers_for_boxes_and_points(variant: str, picture: Image.Image) -> None:
    model = tiny_model(variant)
    model.detector.eval()
    answers = Answers([NamedModel("mine", model)])
    told = answers.detect(picture, "noise")
    (described,) = told["models"]
    assert told["picture"] | {"url": ""} == {"id": 1, "url": "", "name": "noise", "width": 80, "height": 60}
    assert described["name"] == "mine"
    assert described["note"].startswith(variant)
    assert described["classes"] == list(NAMES)
    boxes = np.array(described["boxes"])
    assert (np.diff(boxes[:, 4]) <= 0).all()
    assert (boxes[:, :4] >= 0).all()
    assert (boxes[:, 2] <= 80).all()
    looked = answers.look({"picture": 1, "model": 0, "box": 0})
    seen = model.inspect(picture)
    best = int(np.argsort(-seen.scored.scores[0], kind="stable")[0])
    expected = seen.decoder_attention(best)
    np.testing.assert_allclose(unpack(looked), expected.maps, atol=float(expected.maps.max()) / 400)
    assert (looked["points"] is not None) == (expected.points is not None)
    assert (looked["references"] is None) == (variant == "vanilla")
    assert answers.look({"picture": 1, "model": 0, "x": 0.5, "y": 0.5})["shape"][:2] == [1, 2]


def test_points_travel_with_their_weights() -> None:
    rng = np.random.default_rng(0)
    look = AttentionMaps(
        np.zeros((2, 3, 4, 5), np.float32), rng.random((2, 3, 7, 2), np.float32), rng.random((2, 3, 7), np.float32)
    )
    answer = pack(look)
    sent = np.frombuffer(base64.b64decode(answer["points"]), dtype="<f4").reshape(2, 3, 7, 3)
    np.testing.assert_array_equal(sent[..., :2], look.points)
    np.testing.assert_array_equal(sent[..., 2], look.weights)
    assert unpack(answer).max() == 0  # a map without any weight divides by nothing


def test_models_stand_side_by_side_and_old_pictures_are_let_go(picture: Image.Image) -> None:
    answers = Answers([NamedModel("a", tiny_model("conditional")), NamedModel("b", tiny_model("vanilla", "softmax"))])
    assert [model["name"] for model in answers.detect(picture, "first")["models"]] == ["a", "b"]
    assert answers.look({"picture": 1, "model": 1, "box": 3})["shape"][:2] == [2, 2]
    for _ in range(4):
        answers.detect(picture, "later")
    with pytest.raises(ValueError, match=r"This picture is no longer kept; open it again\."):
        answers.look({"picture": 1, "model": 0, "box": 0})


def test_pictures_of_several_people_at_once_are_not_mixed_up(picture: Image.Image) -> None:
    """Attention is recorded by hooks in the one model: two passes at once would record each other's."""
    model = tiny_model("deformable")
    model.detector.eval()
    turned = picture.transpose(Image.Transpose.ROTATE_180)
    answers = Answers([NamedModel("mine", model)])
    with ThreadPoolExecutor(4) as people:
        told = list(people.map(lambda i: answers.detect(turned if i % 2 else picture, str(i)), range(4)))
    for i, one in enumerate(told):
        alone = pack(
            model.inspect(turned if i % 2 else picture).decoder_attention(_best(model, turned if i % 2 else picture))
        )
        assert answers.look({"picture": one["picture"]["id"], "model": 0, "box": 0})["points"] == alone["points"]


def _best(model: SiamDETR, image: Image.Image) -> int:
    return int(np.argsort(-model.inspect(image).scored.scores[0], kind="stable")[0])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "picture: got None, expected a whole number"),
        ({"picture": True, "model": 0}, "picture: got True, expected a whole number"),
        ({"picture": 1, "model": 5, "box": 0}, "model: got 5, expected 0 to 0"),
        ({"picture": 1, "model": 0, "box": 60}, "box: got 60, expected 0 to 59"),
        ({"picture": 1, "model": 0, "box": "0"}, "box: got '0', expected a whole number"),
        ({"picture": 1, "model": 0, "x": "a", "y": 0}, "x: got 'a', expected a number"),
        ({"picture": 1, "model": 0, "x": float("nan"), "y": 0}, "expected fractions of the image from 0 to 1"),
    ],
)
def test_questions_that_make_no_sense_are_refused(picture: Image.Image, question: dict[str, Any], message: str) -> None:
    answers = Answers([NamedModel("mine", tiny_model())])
    answers.detect(picture, "noise")
    with pytest.raises(ValueError, match=message):
        answers.look(question)


def test_an_onnx_file_answers_where_it_carries_attention(tmp_path: Path, picture: Image.Image) -> None:
    maps = write_attention_onnx(tmp_path / "seen.onnx", attention=True)
    write_attention_onnx(tmp_path / "blind.onnx", attention=False)
    models = [NamedModel(name, load(tmp_path / f"{name}.onnx")) for name in ("seen", "blind")]
    answers = Answers(models)
    told = answers.detect(picture, "noise")["models"]
    assert [model["decoder"] for model in told] == [True, False]
    assert [model["encoder"] for model in told] == [False, False]
    assert told[0]["boxes"][0] == [10.0, 10.0, 40.0, 40.0, 0.9, 1]
    looked = unpack(answers.look({"picture": 1, "model": 0, "box": 0}))
    np.testing.assert_allclose(looked, maps[0, :, :, 1], atol=maps.max() / 400)  # box 1 of the graph has the best score
    with pytest.raises(ValueError, match="keeps no attention; export it again with --attention"):
        answers.look({"picture": 1, "model": 1, "box": 0})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the picture: empty, 0 bytes"),
        (b"<html><body>hello</body></html>", "none of the formats JPEG, PNG, WEBP, BMP"),
        (bomb(13000, 13000), "13000 × 13000 pixels, at most 40000000 and 16384 a side are taken"),
        (bomb(60000, 60000), "far more pixels than the 40000000 that are taken"),
        (bomb(20000, 100), "20000 × 100 pixels, at most 40000000 and 16384 a side"),
        (bomb(4000, 100), "4000 × 100 pixels: too elongated"),
        (bomb(100, 100), "the picture: truncated or damaged"),
        (b"x" * (10 * 2**20 + 1), "10485761 bytes, at most 10485760 are taken"),
        (png(Image.new("RGB", (30, 30)), "GIF"), "none of the formats"),
        (png(Image.effect_noise((99, 99), 90), "JPEG")[:700], "the picture: truncated or damaged"),
    ],
    ids=["empty", "html", "bomb", "large bomb", "long", "elongated", "false", "large", "gif", "truncated"],
)
def test_bad_uploads_are_refused_in_words(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_upload(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_any_mode_become_upright_rgb(mode: str) -> None:
    image = Image.fromarray(np.zeros((20, 30), np.uint16)) if mode == "I;16" else Image.new(mode, (30, 20))
    opened = open_upload(png(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert (opened.mode, opened.size) == ("RGB", (30, 20))


def test_examples_are_a_folder_s_a_run_s_or_drawn(tmp_path: Path, picture: Image.Image) -> None:
    drawn = find_examples(None, tmp_path)
    assert len(drawn) == 8
    assert drawn[0].open().size == (320, 320)
    for i in range(20):
        picture.save(tmp_path / f"{i:02}.png")
    names = [example.name for example in find_examples(tmp_path, tmp_path)]
    assert len(names) == 8
    assert (names[0], names[-1]) == ("00.png", "19.png")
    with pytest.raises(FileNotFoundError, match="no images here to begin with; give --examples a folder of images"):
        find_examples(tmp_path / "none", tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    tiny_model().save(run / "best.safetensors")
    (run / "config.yaml").write_text(f"data: {{paths: ['{tmp_path}']}}")
    assert find_examples(None, run)[0].name.startswith("drawn")  # a folder of images has no part to validate on


def test_shown_pictures_are_at_most_so_large() -> None:
    url = data_url(Image.new("RGB", (4000, 1000)), longest=1600)
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (1600, 400)


def test_models_are_named_by_what_tells_them_apart() -> None:
    assert distinguishing_names([Path("runs/a"), Path("runs/b.safetensors")]) == ["a", "b"]
    assert distinguishing_names([Path("x/run/best.safetensors"), Path("y/run/best.safetensors")]) == [
        "x/run/best",
        "y/run/best",
    ]
    assert distinguishing_names([Path("runs/a"), Path("runs/a")]) == ["a", "a"]
    assert distinguishing_names([Path("runs/lr-0.1"), Path("runs/lr-0.2")]) == ["lr-0.1", "lr-0.2"]
    assert distinguishing_names([Path("run/best.safetensors"), Path("run/best.onnx")]) == [
        "best.safetensors",
        "best.onnx",
    ]


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "none")])
    assert "no such file or folder" in str(result.exception)
    tiny_model().save(tmp_path / "model.safetensors")
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "model.safetensors"), "--examples", str(tmp_path)])
    assert "no images here to begin with" in str(result.exception)
    monkeypatch.setitem(sys.modules, "siamdetr.serve.demo.app", None)
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "model.safetensors")])
    assert "is not installed; pip install 'siamdetr[demo]'" in str(result.exception)


def test_the_page_is_part_of_the_package() -> None:
    """Files other than Python are listed separately; a forgotten one is missing only from the wheel."""
    page = importlib.resources.files("siamdetr.serve.demo") / "page"
    names = {file.name for file in page.iterdir()}
    assert names == {"viewer.html", "viewer.css", "viewer.js", "stage.js", "heat.js"}
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"]["siamdetr.serve.demo"] == ["page/*"]
