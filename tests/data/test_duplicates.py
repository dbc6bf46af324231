"""Near-duplicates are found as if every pair were compared, and the doctor decodes each image once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import write_coco
from PIL import Image

from siamdetr.data.doctor import diagnose
from siamdetr.data.duplicates import MOST_BITS, ImageHashes, duplicate_groups, find_duplicates, hash_images
from siamdetr.images import check, open
from siamdetr.images.likeness import HASH_BYTES, LIKENESS_BYTES, likeness_of


def hashes_with_flipped_bits(count: int, seed: int) -> ImageHashes:
    """Ten different hashes, each many times with up to 10 flipped bits; every seventh image is unreadable."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (10, HASH_BYTES), dtype=np.uint8)[rng.integers(0, 10, count)]
    for row in hashes:
        for bit in rng.integers(0, 64, rng.integers(0, 11)):
            row[bit // 8] ^= np.uint8(1 << bit % 8)
    thumbnails = np.zeros((count, LIKENESS_BYTES - HASH_BYTES), dtype=np.uint8)
    return ImageHashes(hashes, thumbnails, np.arange(count) % 7 > 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_groups_are_those_of_comparing_every_pair(seed: int) -> None:
    images = hashes_with_flipped_bits(120, seed)
    bits = images.hashes.view(np.uint64)
    near = (np.bitwise_count(bits ^ bits.T) <= MOST_BITS) & images.readable & images.readable[:, None]
    np.fill_diagonal(near, True)
    for _ in range(7):  # paths of up to 2^7 steps
        near = near @ near
    groups = find_duplicates(images)
    assert np.array_equal(groups[:, None] == groups, near)


def test_a_thumbnail_tells_pictures_of_one_hash_apart() -> None:
    images = hashes_with_flipped_bits(3, 0)
    same = ImageHashes(images.hashes[[0, 0, 0]], images.thumbnails.copy(), np.ones(3, dtype=np.bool_))
    same.thumbnails[2, ::2] = 200
    assert [group.tolist() for group in duplicate_groups(find_duplicates(same))] == [[0, 1]]


def test_the_likeness_of_the_doctor_is_that_of_the_splits(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(small).resize((640, 480)).save(file := tmp_path / "a.jpg")
    facts, images = check.check_image(file), hash_images([file])
    assert facts.likeness == images.hashes.tobytes() + images.thumbnails.tobytes()
    whole, part = (
        np.frombuffer(one[:HASH_BYTES], dtype=np.uint64) for one in (likeness_of(Image.open(file)), facts.likeness)
    )
    assert np.bitwise_count(whole ^ part).item() <= MOST_BITS  # decoded at a quarter of the size


def test_the_doctor_decodes_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path)
    decoded: Counter[str] = Counter()
    real = open.to_rgb

    def counted(image: Any) -> Any:
        decoded[str(image.size)] += 1
        return real(image)

    monkeypatch.setattr(open, "to_rgb", counted)
    assert diagnose(tmp_path).splits[0].images == 3
    assert decoded.total() == 3
