"""Proposals: they find things, are computed once, survive interruption, and their file is checked when opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from data_sets import write_image
from PIL import Image

from siamdetr.data import proposal_store, proposals
from siamdetr.data.images import content_key, read_bytes
from siamdetr.data.index import DetectionIndex
from siamdetr.data.open import open_dataset
from siamdetr.data.problems import DataError
from siamdetr.data.proposals import ProposalStore, compute_proposals, gradient_edges, propose


def key_of(index: DetectionIndex, i: int) -> bytes:
    return content_key(read_bytes(index.path(i)))


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    for i in range(6):
        write_image(tmp_path / "images" / f"{i}.jpg", seed=i)
    return open_dataset(tmp_path / "images")


def test_a_plain_object_is_among_the_first_proposals() -> None:
    pixels = np.full((200, 300, 3), 60, np.uint8)
    cv2.rectangle(pixels, (90, 50), (209, 149), (200, 180, 40), -1)
    boxes = propose(Image.fromarray(pixels))[:10] * np.asarray([300, 200, 300, 200])
    assert np.abs(boxes - [90, 50, 210, 150]).max(axis=1).min() < 8


def test_proposals_are_fractions_best_first_and_few() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = propose(Image.fromarray(pixels), keep=20)
    assert boxes.shape == (20, 4)
    assert boxes.dtype == np.float32
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("shape", [(50, 50, 3), (3, 3, 3)])
def test_without_edges_there_is_the_centred_box_of_half_the_sides(shape: tuple[int, int, int]) -> None:
    assert propose(Image.fromarray(np.full(shape, 128, np.uint8))).tolist() == [[0.25, 0.25, 0.75, 0.75]]


def test_edges_are_thin_lines_with_the_direction_of_their_gradient() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    strength, direction = gradient_edges(pixels)
    on = strength[20] > 0.5
    assert 1 <= on.sum() <= 2
    assert strength.max() <= 1
    assert np.minimum(direction[20][on], np.pi - direction[20][on]) == pytest.approx(0, abs=0.01)


def test_grainy_images_have_few_edges() -> None:
    strength, _ = gradient_edges(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    assert (strength > 0).mean() <= proposals.MOST_EDGES + 0.01


def test_stored_boxes_are_those_computed(index: DetectionIndex, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    store = compute_proposals(
        index, tmp_path / "p.arrow", workers=2, part_size=4, progress=lambda *at: calls.append(at)
    )
    assert calls == [(i + 1, 6) for i in range(6)]
    assert len(store) == 6
    for i in range(6):
        with Image.open(index.path(i)) as image:
            expected = propose(image)
        assert store.fractions(key_of(index, i)) == pytest.approx(expected, abs=1e-5)
        assert store.boxes(key_of(index, i)) == pytest.approx(expected * np.asarray([60, 40, 60, 40]), abs=1e-3)
    assert store.boxes(bytes(16)) is None
    assert list(tmp_path.glob("*.part-*")) == []


def test_a_second_run_computes_only_what_is_missing(
    index: DetectionIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.arrow"
    first = compute_proposals(index.subset(range(4)), path)
    before = {i: first.fractions(key_of(index, i)) for i in range(4)}
    computed: list[int] = []

    def counted(image: Image.Image, keep: int = 100) -> np.ndarray:
        computed.append(1)
        return propose(image, keep)

    monkeypatch.setattr(proposals, "propose", counted)
    store = compute_proposals(index, path)
    assert len(computed) == 2
    assert len(store) == 6
    for i, boxes in before.items():
        assert np.array_equal(store.fractions(key_of(index, i)), boxes)
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr(proposals, "read_bytes", None)  # an unchanged data set is not even read
    compute_proposals(index, path)
    assert path.stat().st_mtime_ns == stamp


def test_a_moved_image_is_known_by_its_content(
    index: DetectionIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.arrow"
    compute_proposals(index, path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(proposals, "propose", None)
    moved = open_dataset(tmp_path / "elsewhere")
    assert compute_proposals(moved, path).fractions(key_of(moved, 3)) is not None


def test_an_interrupted_run_goes_on_where_it_stopped(
    index: DetectionIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.arrow"

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_proposals(index, path, workers=1, part_size=2, progress=interrupt)
    assert not path.exists()
    computed: list[int] = []

    def counted(image: Image.Image, keep: int = 100) -> np.ndarray:
        computed.append(1)
        return propose(image, keep)

    monkeypatch.setattr(proposals, "propose", counted)
    assert len(compute_proposals(index, path)) == 6
    assert len(computed) <= 2
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["p.arrow"]


def test_another_recipe_is_computed_afresh(index: DetectionIndex, tmp_path: Path) -> None:
    compute_proposals(index, tmp_path / "p.arrow", keep=50)
    store = compute_proposals(index, tmp_path / "p.arrow", keep=7)
    assert len(store.fractions(key_of(index, 0))) == 7  # type: ignore[arg-type]
    assert "kept=7" in store.recipe


def test_unreadable_images_are_left_out_with_a_warning(
    index: DetectionIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index.path(2).write_bytes(b"broken")
    store = compute_proposals(index, tmp_path / "p.arrow")
    assert len(store) == 5
    assert "2.jpg: cannot be opened as an image (no image reader knows it)" in caplog.text
    assert "1 images could not be read and have no proposals" in caplog.text


def test_a_store_travels_to_worker_processes_by_its_path(index: DetectionIndex, tmp_path: Path) -> None:
    store = compute_proposals(index, tmp_path / "p.arrow")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301  what the data loader does with our own object
    assert np.array_equal(copy.fractions(key_of(index, 0)), store.fractions(key_of(index, 0)))
    assert len(pickle.dumps(store)) < 1000


def test_an_empty_store_answers_none(index: DetectionIndex, tmp_path: Path) -> None:
    store = compute_proposals(index.subset([]), tmp_path / "p.arrow")
    assert len(store) == 0
    assert store.boxes(bytes(16)) is None


def test_keys_that_end_in_zeros_are_found(tmp_path: Path) -> None:
    box = np.asarray([[0.1, 0.2, 0.5, 0.6]], np.float32)
    keys = [bytes([1] * 14 + [0, 0]), bytes([1] * 16), bytes(16)]
    rows = [proposal_store.StoredImage.of(key, key, (10, 20), box * (i + 1) / 3) for i, key in enumerate(keys)]
    proposal_store.write_store(tmp_path / "p.arrow", "recipe", proposal_store.KnownImages(None, rows))
    store = ProposalStore.open(tmp_path / "p.arrow")
    for i, key in enumerate(keys):
        assert store.fractions(key) == pytest.approx(box * (i + 1) / 3, abs=1e-5)
    with pytest.raises(ValueError, match="got a key of 3 bytes, expected 16"):
        store.boxes(b"abc")


def test_a_file_that_is_not_ours_is_refused(index: DetectionIndex, tmp_path: Path) -> None:
    text, foreign, cut = (tmp_path / name for name in ("text", "foreign", "cut"))
    text.write_text("no arrow")
    with pa.ipc.new_file(str(foreign), pa.schema([("a", pa.int32())])):
        pass
    whole = tmp_path / "p.arrow"
    compute_proposals(index, whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    for path in (text, cut):
        with pytest.raises(DataError, match=f"{path.name}: not a file of proposals, or broken off .*delete it"):
            ProposalStore.open(path)
    with pytest.raises(DataError, match="not a file of proposals that this version reads; delete it"):
        ProposalStore.open(foreign)
    with pytest.raises(DataError, match="no such file of proposals; `siamdetr train` computes it"):
        ProposalStore.open(tmp_path / "none.arrow")
