"""Proposals: they find objects, are computed once, survive interruption, and are checked when opened."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from helpers.data_sets import write_coco, write_image
from PIL import Image

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError, EngineError
from siamdetr.images.open import content_key, read_bytes
from siamdetr.proposals import compute as proposals
from siamdetr.proposals.compute import ProposalStore, compute_proposals, open_proposals
from siamdetr.proposals.edge_map import MOST_EDGES, check_edge_model, gradient_edges
from siamdetr.proposals.from_objectness import read_objectness
from siamdetr.proposals.methods import METHODS, Method, Proposed, Recipe, merge_proposals, pairwise_overlap, propose
from siamdetr.proposals.recall import proposal_recall
from siamdetr.proposals.rows import Rows, StoredImage
from siamdetr.proposals.shards import Shard, find_shard
from siamdetr.proposals.writing import write_store
from siamdetr.system.parallel import TaskRunner


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
    boxes = propose(Image.fromarray(pixels)).boxes[:10] * np.asarray([300, 200, 300, 200])
    assert np.abs(boxes - [90, 50, 210, 150]).max(axis=1).min() < 8


@pytest.mark.parametrize("method", [name for name in METHODS if name != "objectness-file"])
def test_proposals_are_fractions_best_first_and_few(method: Method) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = propose(Image.fromarray(pixels), Recipe(method, keep=20)).boxes
    assert 4 <= len(boxes) <= 20
    assert boxes.dtype == np.float32
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("shape", [(50, 50, 3), (3, 3, 3)])
def test_without_edges_there_is_the_centred_box_of_half_the_sides(shape: tuple[int, int, int]) -> None:
    found = propose(Image.fromarray(np.full(shape, 128, np.uint8)))
    assert found.boxes.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert found.fallback == 2


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
    assert (strength > 0).mean() <= MOST_EDGES + 0.01


def test_stored_boxes_are_those_computed(index: DetectionIndex, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    engine = TaskRunner("threads", 2)
    store = compute_proposals(
        index, tmp_path / "p.arrow", engine=engine, part_size=1, progress=lambda *at: calls.append(at)
    )
    assert calls == [(i + 1, 6) for i in range(6)]
    assert len(store) == 6
    for i in range(6):
        with Image.open(index.path(i)) as image:
            expected = propose(image).boxes
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

    def counted(image: Image.Image, recipe: Recipe, *, seed: int) -> Proposed:
        computed.append(1)
        return propose(image, recipe, seed=seed)

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
        compute_proposals(index, path, engine=TaskRunner("threads", 1), part_size=1, progress=interrupt)
    assert not path.exists()
    computed: list[int] = []

    def counted(image: Image.Image, recipe: Recipe, *, seed: int) -> Proposed:
        computed.append(1)
        return propose(image, recipe, seed=seed)

    monkeypatch.setattr(proposals, "propose", counted)
    assert len(compute_proposals(index, path)) == 6
    assert len(computed) <= 2
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["p.arrow"]


def test_another_recipe_is_computed_afresh(index: DetectionIndex, tmp_path: Path) -> None:
    compute_proposals(index, tmp_path / "p.arrow", recipe=Recipe(keep=50))
    store = compute_proposals(index, tmp_path / "p.arrow", recipe=Recipe(keep=7))
    assert len(store.fractions(key_of(index, 0))) == 7  # type: ignore[arg-type]
    assert "kept=7" in store.recipe


def test_unreadable_images_are_left_out_with_a_warning(
    index: DetectionIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index.path(2).write_bytes(b"broken")
    store = compute_proposals(index, tmp_path / "p.arrow")
    assert len(store) == 5
    assert "2.jpg: not an image, or none of the formats that are decoded; convert it to JPEG or PNG" in caplog.text
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
    keys = [bytes([1] * 14 + [0, 0]), bytes([1] * 16), bytes(16), bytes([255] * 16)]
    rows = [StoredImage.of(key, key, (10, 20), box * (i + 1) / 4) for i, key in enumerate(keys)]
    write_store(tmp_path / "p.arrow", "recipe", Rows.of(rows))
    store = ProposalStore.open(tmp_path / "p.arrow")
    for i, key in enumerate(keys):
        assert store.fractions(key) == pytest.approx(box * (i + 1) / 4, abs=1e-5)
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
    with pytest.raises(DataError, match=r"no such file of proposals; `siamdetr proposals DATA -o .* makes it"):
        ProposalStore.open(tmp_path / "none.arrow")


def test_a_store_finds_every_key_among_many_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(3000)]
    boxes = rng.random((3000, 1, 4), dtype=np.float32)
    rows = [StoredImage.of(key, key, (10, 20), box) for key, box in zip(keys, boxes, strict=True)]
    write_store(tmp_path / "p.arrow", "recipe", Rows.of(rows))
    store = ProposalStore.open(tmp_path / "p.arrow")
    for key, box in zip(keys, boxes, strict=True):
        assert store.fractions(key) == pytest.approx(box, abs=1e-5)
    assert all(store.find(rng.bytes(16)) is None for _ in range(1000))


def test_a_look_up_reads_few_rows_however_many_there_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (20_000, 16), dtype=np.uint8)
    nothing = np.zeros(20_000, np.uint8)
    offsets, sizes = np.zeros(20_001, np.int64), np.ones((20_000, 2), np.int32)
    rows = Rows(keys, keys, sizes, nothing, offsets, np.zeros((0, 4), np.uint16))
    write_store(tmp_path / "p.arrow", "recipe", rows.sorted())
    with pa.memory_map(str(tmp_path / "p.arrow")) as file:
        fanout = pa.ipc.open_file(file).get_batch(0).column("fanout").to_numpy()
    steps = np.diff([*fanout, 20_000])  # rows that share an entry
    assert steps.max() <= 12
    assert (steps**2).mean() < 3  # what a look-up passes over on average


def test_selective_search_and_the_merged_method_give_the_same_boxes_every_time() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for method in ("selective-search", "merged", "edgeboxes"):
        first, second = (propose(image, Recipe(method)).boxes for _ in range(2))
        assert np.array_equal(first, second), method


def test_random_proposals_are_a_function_of_the_image_s_content(index: DetectionIndex, tmp_path: Path) -> None:
    stores = [compute_proposals(index, tmp_path / f"{n}.arrow", recipe=Recipe("random")) for n in range(2)]
    boxes = [[store.fractions(key_of(index, i)) for store in stores] for i in range(2)]
    assert np.array_equal(*boxes[0])
    assert len(boxes[0][0]) != len(boxes[1][0]) or not np.array_equal(boxes[0][0], boxes[1][0])


def test_merging_puts_first_what_both_methods_find_and_suppresses_copies() -> None:
    a = np.asarray([[0, 0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]], np.float32)
    b = np.asarray([[0.7, 0, 1, 0.3], [0.5, 0.5, 0.9, 0.88]], np.float32)
    merged = merge_proposals(a, b)
    assert len(merged) == 3
    assert merged[0, 0] == 0.5
    assert merge_proposals(a[:0], b[:0]).shape == (0, 4)
    assert len(merge_proposals(a[:0], b)) == 2


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.asarray([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], np.float32)
    assert pairwise_overlap(boxes, boxes) == pytest.approx(np.asarray([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]]))


def test_fallbacks_are_counted(tmp_path: Path) -> None:
    for i, value in enumerate((10, 200)):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    write_image(tmp_path / "flat" / "noise.jpg")
    store = compute_proposals(open_dataset(tmp_path / "flat"), tmp_path / "p.arrow")
    assert store.fallback_counts() == (0, 2)


def test_shards_are_merged_by_listing_them(index: DetectionIndex, tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        shard = Shard(number, 3)
        paths.append(shard.name(tmp_path / "p.arrow"))
        compute_proposals(shard.of(index), paths[-1])
    assert [path.name for path in paths] == [f"p-{i}-of-3.arrow" for i in range(3)]
    store = open_proposals(index, paths)
    whole = compute_proposals(index, tmp_path / "whole.arrow")
    assert len(store) == len(whole) == 6
    assert store.recipe == whole.recipe
    for i in range(6):
        assert np.array_equal(store.fractions(key_of(index, i)), whole.fractions(key_of(index, i)))
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301  what the data loader does with our own object
    assert copy.find(key_of(index, 5)) is not None


def test_the_shard_is_read_from_torchrun_and_slurm() -> None:
    assert find_shard(None, {}) == Shard(0, 1)
    assert find_shard(None, {"RANK": "2", "WORLD_SIZE": "4"}) == Shard(2, 4)
    assert find_shard(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Shard(0, 8)
    of_a_step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
    assert find_shard(None, of_a_step) == Shard(1, 4)
    of_a_shell = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # nobody starts the other three
    assert find_shard(None, of_a_shell) == Shard(0, 1)
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    assert find_shard(None, array) == Shard(2, 3)
    assert find_shard("1/2", {"RANK": "2", "WORLD_SIZE": "4"}) == Shard(1, 2)


@pytest.mark.parametrize("text", ["2", "a/b", "4/4", "-1/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"--shard"):
        find_shard(text, {})


def test_a_store_of_other_images_says_how_many_are_missing(
    index: DetectionIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute_proposals(index.subset(range(4)), tmp_path / "p.arrow")
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        store = open_proposals(index, [tmp_path / "p.arrow"])
    assert "p.arrow: 2 images are missing (of 6 in" in caplog.text
    assert "each gets EdgeBoxes whenever it is read" in caplog.text
    assert len(store) == 4
    with pytest.raises(
        DataError, match=r"has proposals of 4 images, and none of the 2 images .* made for other images"
    ):
        open_proposals(index.subset([4, 5]), [tmp_path / "p.arrow"])


def test_moved_images_are_found_in_a_given_store_by_their_content(
    index: DetectionIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute_proposals(index, tmp_path / "p.arrow")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    open_proposals(open_dataset(tmp_path / "elsewhere"), [tmp_path / "p.arrow"])
    assert "missing" not in caplog.text


def test_recall_counts_objects_by_the_best_of_the_first_proposals(tmp_path: Path) -> None:
    write_coco(tmp_path / "data")
    index = open_dataset(tmp_path / "data")  # boxes (20, 10, 35, 22) and (25, 10, 40, 22) in each of three images
    boxes = np.asarray([[20, 10, 35, 22], [0, 0, 5, 5], [25, 10, 40, 20]], np.float32) / [60, 40, 60, 40]
    rows = [StoredImage.of(bytes(16), key_of(index, i), (40, 60), boxes.astype(np.float32)) for i in range(2)]
    write_store(tmp_path / "p.arrow", "given", Rows.of(rows))
    recall = proposal_recall(index, ProposalStore.open(tmp_path / "p.arrow"), counts=(1, 3))
    assert recall.num_boxes == 6
    assert recall.missing == 1
    # IoU of the first proposal: 1 and 1/2 (both give "at .5"); of the third with the second object: 10/12 passes seven thresholds.
    assert recall.at_50 == pytest.approx({1: 4 / 6, 3: 4 / 6})
    assert recall.average == pytest.approx({1: 2 * 11 / 60, 3: 2 * 17 / 60})


def test_boxes_of_another_program_are_taken_best_first(tmp_path: Path) -> None:
    write_coco(tmp_path / "data")
    index = open_dataset(tmp_path / "data")
    entries = [
        {"image_id": 1, "bbox": [6, 4, 30, 20], "score": 0.2},
        {"image_id": 1, "bbox": [0, 0, 60, 40], "score": 0.9},
        {"image_id": 99, "bbox": [0, 0, 60, 40], "score": 0.9},
    ]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(entries))
    given = read_objectness(file, index)
    recipe = Recipe("objectness-file", boxes_file=file)
    store = compute_proposals(index, tmp_path / "p.arrow", recipe=recipe, given=given)
    assert store.fractions(key_of(index, 0)) == pytest.approx(
        np.asarray([[0, 0, 1, 1], [0.1, 0.1, 0.6, 0.6]]), abs=1e-4
    )
    assert store.fallback_counts() == (0, 2)
    assert "objectness-file boxes.json:" in store.recipe
    with pytest.raises(ValueError, match="come from the file"):
        propose(Image.new("RGB", (20, 20)), recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "not a JSON file"),
        ("{}", "got a dict, expected COCO's results format"),
        ('[{"image_id": 1}]', 'entry 0 is {"image_id": 1}; expected'),
        ('[{"image_id": 1, "bbox": [0, 0, 0, 5], "score": 1}]', "with sides above 0"),
        ('[{"image_id": 77, "bbox": [0, 0, 9, 5], "score": 1}]', r"1 boxes, and none for an image .*ids 1 to 3"),
    ],
)
def test_a_file_of_boxes_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    write_coco(tmp_path / "data")
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_objectness(tmp_path / "boxes.json", open_dataset(tmp_path / "data"))


def test_an_edge_model_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such edge model; expected OpenCV's structured forests"):
        check_edge_model(tmp_path / "none.yml.gz")
    (tmp_path / "bad.yml").write_text("hello")
    with pytest.raises(DataError, match="not a model of structured forests that OpenCV reads"):
        check_edge_model(tmp_path / "bad.yml")


def test_processes_give_the_same_store_as_threads(index: DetectionIndex, tmp_path: Path) -> None:
    stores = [
        compute_proposals(index, tmp_path / f"{engine.kind}.arrow", engine=engine, part_size=3)
        for engine in (TaskRunner("threads", 2), TaskRunner("processes", 1))
    ]
    threads, processes = (store.paths[0].read_bytes() for store in stores)
    assert threads == processes


@pytest.mark.slow
def test_a_local_ray_cluster_gives_the_same_store(index: DetectionIndex, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'siamdetr[study]'")
    here = compute_proposals(index, tmp_path / "here.arrow", part_size=3)
    there = compute_proposals(index, tmp_path / "ray.arrow", part_size=3, engine=TaskRunner("ray", 2, "local"))
    assert here.paths[0].read_bytes() == there.paths[0].read_bytes()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"--ray needs Ray, which is an extra: pip install 'siamdetr\[study\]'"):
        list(TaskRunner("ray", address="local").run(len, ["task"]))
