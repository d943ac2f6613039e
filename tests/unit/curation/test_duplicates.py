"""Fingerprints of images, and groups of images that show the same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detrkit.curation.duplicates import (
    MAX_DISTANCE,
    Fingerprints,
    exact_duplicates,
    fingerprint,
    fingerprints,
    hamming,
    near_duplicates,
)
from detrkit.curation.synthetic import draw_scene
from detrkit.errors import ImageError


def picture(seed: int, size: int = 256) -> Image.Image:
    return Image.fromarray(draw_scene(np.random.default_rng(seed), size)[0])


def trimmed(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * share), 0, width, height))


COPIES = {
    "re-encoded": lambda image: image,
    "stretched": lambda image: image.resize((300, 180)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "trimmed": lambda image: trimmed(image, 0.02),
}


def of_words(words: np.ndarray) -> Fingerprints:
    count = len(words)
    digests = np.zeros((count, 32), dtype=np.uint8)
    digests[:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4)
    return Fingerprints(digests, words, np.zeros(count, dtype=bool), {})


def with_flipped_bits(words: np.ndarray, positions: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(words.view(np.uint8))
    bits[positions] ^= 1
    return np.packbits(bits).view(np.uint64)


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_of_a_picture_are_close_and_other_pictures_are_not(copy, tmp_path: Path):
    for seed in range(4):
        original = picture(seed)
        original.save(tmp_path / f"{seed}.png")
        copy(original).save(tmp_path / f"{seed}-copy.jpg", quality=60)
    prints = fingerprints([tmp_path / f"{seed}{end}" for seed in range(4) for end in (".png", "-copy.jpg")])
    assert [group.tolist() for group in near_duplicates(prints)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    distances = hamming(prints.words[::2, None], prints.words[None, ::2])[~np.eye(4, dtype=bool)]
    assert distances.min() > MAX_DISTANCE + 20


def test_flat_images_are_duplicates_of_equal_files_only(tmp_path: Path):
    paths = []
    for number, gray in enumerate((0, 0, 255, 128, 129)):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (60 + 4 * (number > 1), 40), (gray, gray, gray)).save(paths[-1])
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8), (64, 64))
    for name, pixels in (("right", ramp), ("right, smaller", ramp[:40, ::2])):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1])
    prints = fingerprints(paths)
    assert prints.is_plain.all()
    assert [group.tolist() for group in near_duplicates(prints)] == [[0, 1]]
    assert [group.tolist() for group in exact_duplicates(prints)] == [[0, 1]]


def test_unreadable_files_are_named_and_belong_to_no_group(tmp_path: Path):
    picture(0).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    paths = [tmp_path / name for name in ("good.jpg", "cut.jpg", "gone.jpg", "empty.jpg")]
    seen: list[tuple[int, int]] = []
    prints = fingerprints(paths, progress=lambda done, total: seen.append((done, total)))
    assert sorted(prints.errors) == [1, 2, 3]
    assert "cut.jpg" in str(prints.errors[1])
    assert near_duplicates(prints) == exact_duplicates(prints) == []
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        fingerprint(paths[2])


def test_every_pair_within_31_bits_is_found_and_none_beyond_the_limit():
    random = np.random.default_rng(0)
    words = random.integers(0, 2**63, (400, 4), dtype=np.uint64)
    for row in range(100):
        words[399 - row] = with_flipped_bits(words[row], random.choice(256, 31, replace=False))
    groups = [group.tolist() for group in near_duplicates(of_words(words), max_distance=31)]
    assert groups == [[row, 399 - row] for row in range(100)]
    assert near_duplicates(of_words(words), max_distance=30) == []
    assert all(near_duplicates(of_words(words[:count])) == [] for count in (0, 1, 2))


def test_frames_of_a_fixed_camera_are_one_group_without_comparing_all_pairs():
    random = np.random.default_rng(2)
    scene = random.integers(0, 2, 256, dtype=np.uint8)
    frames = scene ^ (random.random((30_000, 256)) < 0.04)
    words = np.packbits(frames.astype(np.uint8), axis=1).view(np.uint64)
    groups = near_duplicates(of_words(words))
    assert [len(group) for group in groups] == [30_000]


def test_coco_images_are_all_different_and_burst_frames_are_found(shared_data: Path):
    coco = fingerprints(sorted((shared_data / "coco_mini").glob("*2017/*.jpg")))
    assert len(coco) == 290
    assert near_duplicates(coco) == []
    blood = fingerprints(sorted((shared_data / "bccd_voc" / "JPEGImages").glob("*.jpg")))
    assert [group.tolist() for group in near_duplicates(blood)] == [[35, 36]]  # seen: the same cells, refocused
