"""Near-duplicates: the groups are those of all pairs, of few links, and the doctor decodes each image once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import write_coco
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse.csgraph import connected_components

from siamdetr.data.doctor import diagnose
from siamdetr.data.duplicates import (
    MOST_BITS,
    MOST_DIFFERENCE,
    ImageHashes,
    find_duplicates,
    hash_images,
    links_of_part,
)
from siamdetr.images import check, open
from siamdetr.images.likeness import HASH_BYTES, likeness_of


def scenes(count: int, of_each: int, *, seed: int, bits: int) -> ImageHashes:
    """`of_each` pictures of every scene: up to `bits` of the hash turned, and grey levels a little apart."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, 8), dtype=np.uint8).repeat(of_each, axis=0)
    for row in hashes:
        for bit in rng.integers(0, 64, rng.integers(0, bits + 1)):
            row[bit // 8] ^= 1 << (bit % 8)
    thumbnails = rng.integers(0, 256, (count, 256)).repeat(of_each, axis=0)
    thumbnails = (thumbnails + rng.integers(-9, 10, thumbnails.shape)).clip(0, 255)
    return ImageHashes(hashes, thumbnails.astype(np.uint8), rng.random(len(hashes)) > 0.1)


def groups_of_all_pairs(images: ImageHashes) -> NDArray[np.int64]:
    bits = np.bitwise_count(images.hashes[:, None] ^ images.hashes[None]).sum(2)
    grey = images.thumbnails.astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    apart = np.abs(grey[:, None] - grey[None]).mean(2)
    both = images.readable[:, None] & images.readable[None]
    near = (bits <= MOST_BITS) & (apart <= MOST_DIFFERENCE) & both
    return np.asarray(connected_components(near, directed=False)[1], dtype=np.int64)


@pytest.mark.parametrize("seed", range(3))
def test_the_groups_are_those_of_all_pairs(seed: int) -> None:
    images = scenes(30, 5, seed=seed, bits=5)
    found, expected = find_duplicates(images), groups_of_all_pairs(images)
    assert len(np.unique(expected)) < len(expected)
    assert np.array_equal(found[:, None] == found, expected[:, None] == expected)


def test_pictures_of_one_scene_have_fewer_links_than_pictures() -> None:
    images = scenes(1, 2000, seed=0, bits=1)
    for part in range(8):
        assert sum(len(others) for _, others in links_of_part(images, part)) < 2000
    assert len(np.unique(find_duplicates(images)[images.readable])) == 1


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
