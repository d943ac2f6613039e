from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli.data.cache import cache as cache_command
from detrkit.config import DataConfig
from detrkit.curation.cache import CacheReport, build_cache, reduced_hw
from detrkit.data.cache import ImageCache, default_cache_folder, find_cache, read_manifest
from detrkit.data.coco import CocoDataset
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_coco
from detrkit.errors import DataError, UsageError
from detrkit.ops.images import DecodeTarget

from .factory import annotation, coco, image_entry

SHORT = 100
LARGE, ODD, SMALL, PNG, TURNED = range(5)
NAMES = ("large.jpg", "sub/odd.jpg", "small.jpg", "large.png", "turned.jpg")
SIZES_HW = ((400, 600), (301, 401), (80, 90), (250, 220), (240, 320))


def picture(height: int, width: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def size_wh(path: Path) -> tuple[int, int]:
    """Width and height of a file whose pixels can all be read."""
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five images: two large JPEGs, a small one, a PNG, and one that EXIF turns."""
    root = tmp_path / "set"
    images, annotations = [], []
    for row, (name, (height, width)) in enumerate(zip(NAMES, SIZES_HW, strict=True)):
        path = root / "train2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if row == TURNED:
            exif[0x0112] = 6
            picture(width, height, row).save(path, exif=exif, quality=95)
        else:
            picture(height, width, row).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
        images.append(image_entry(row + 1, name, height, width))
        box = [width / 4, height / 8, width / 2, height / 2]
        annotations.append(annotation(row + 1, row + 1, bbox=box, area=box[2] * box[3] * 0.7))
    (root / "annotations").mkdir()
    content = coco(images, annotations)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def index_of(data: Path) -> CocoIndex:
    return read_coco(data / "annotations" / "instances_train2017.json", data / "train2017", "error")[0]


def build(data: Path, **options: object) -> CacheReport:
    settings = {"short": SHORT, "workers": 2, **options}
    return build_cache(index_of(data), data / "train2017", "train", default_cache_folder(data), **settings)  # type: ignore[arg-type]


def found(data: Path, cache: str = "auto", short: int = SHORT) -> tuple[ImageCache | None, list[str]]:
    config = DataConfig(root=str(data), cache=cache)
    return find_cache(config, "train", index_of(data), data / "train2017", DecodeTarget(short))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".npz"
    }


def test_large_images_are_made_smaller_and_small_ones_linked(data: Path) -> None:
    report = build(data)
    assert (report.images, report.resized, report.linked, report.kept) == (5, 4, 1, 0)
    assert report.copy_bytes < report.source_bytes
    copies = default_cache_folder(data) / "train"
    assert size_wh(copies / "large.jpg") == (150, 100)
    assert size_wh(copies / "sub" / "odd.jpg") == (133, 100)
    assert size_wh(copies / "turned.jpg") == (133, 100)  # upright
    assert (copies / "large.png.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert (copies / "small.jpg").samefile(data / "train2017" / "small.jpg")
    assert not list(default_cache_folder(data).rglob("*.tmp"))
    assert "4 made smaller, 1 small enough" in report.lines()[0]


def test_samples_of_a_cache_have_the_boxes_and_areas_of_the_originals(data: Path) -> None:
    build(data)
    cache, lines = found(data)
    assert cache is not None
    assert len(cache) == 5
    assert "5 of 5" in lines[0]
    index = index_of(data)
    plain = CocoDataset(index, data / "train2017", None)
    cached = CocoDataset(index, data / "train2017", None, cache=cache)
    for row in range(5):
        image, target = plain.read_sample(row)
        copy, copied_target = cached.read_sample(row)
        height, width = image.shape[1:]
        assert tuple(copy.shape[1:]) == reduced_hw((height, width), SHORT)
        relative = target["boxes"].as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
        copied = copied_target["boxes"].as_subclass(torch.Tensor)
        copied = copied / torch.tensor([copy.shape[2], copy.shape[1]] * 2)
        torch.testing.assert_close(copied, relative, rtol=0, atol=1e-6)
        assert copied_target["boxes"].canvas_size == tuple(copy.shape[1:])
        assert torch.equal(copied_target["area"], target["area"])
        assert copied_target["orig_size_hw"] == target["orig_size_hw"] == SIZES_HW[row]
        reference = torch.nn.functional.interpolate(
            image[None].double(), tuple(copy.shape[1:]), mode="bilinear", antialias=True
        )
        assert (reference[0] - copy).abs().mean() < 4  # the same picture


def test_other_settings_make_all_anew(data: Path) -> None:
    build(data)
    report = build(data, short=90)
    assert (report.resized, report.linked, report.kept) == (4, 1, 0)
    assert size_wh(default_cache_folder(data) / "train" / "large.jpg") == (135, 90)
    assert build(data, short=90, quality=50).kept == 0
    assert build(data, short=500).linked == 5
    assert size_wh(data / "train2017" / "large.jpg") == (600, 400)  # a link never reaches the source
    assert build(data).resized == 4
    assert size_wh(data / "train2017" / "large.jpg") == (600, 400)


def test_a_changed_image_is_read_itself_until_the_cache_is_renewed(data: Path) -> None:
    build(data)
    path = data / "train2017" / "large.jpg"
    Image.new("RGB", (600, 400), (255, 0, 0)).save(path)
    cache, lines = found(data)
    assert cache is not None
    assert len(cache) == 4
    assert "4 of 5" in lines[0]
    assert "detrkit data cache" in lines[0]
    dataset = CocoDataset(index_of(data), data / "train2017", None, cache=cache)
    image, _ = dataset.read_sample(LARGE)
    assert image.shape == (3, 400, 600)
    assert image[0].min() > 240
    report = build(data)
    assert (report.resized, report.kept) == (1, 4)
    renewed = CocoDataset(index_of(data), data / "train2017", None, cache=found(data)[0])
    assert renewed.read_sample(LARGE)[0].shape == (3, 100, 150)


def test_a_damaged_copy_is_renewed_and_meanwhile_not_read(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(data)
    copy = default_cache_folder(data) / "train" / "large.jpg"
    copy.write_bytes(copy.read_bytes()[:-200])
    dataset = CocoDataset(index_of(data), data / "train2017", None, cache=found(data)[0])
    for _ in range(2):
        assert dataset.read_sample(LARGE)[0].shape == (3, 400, 600)
    assert len(caplog.records) == 1
    report = build(data)
    assert (report.resized, report.kept) == (1, 4)
    assert size_wh(copy) == (150, 100)


def test_unreadable_images_are_named_and_have_no_copy(data: Path) -> None:
    (data / "train2017" / "large.jpg").write_bytes(b"not an image")
    report = build(data)
    assert len(report.unreadable) == 1
    assert "large.jpg" in report.unreadable[0]
    assert "large.jpg" in report.lines()[-1]
    cache, _ = found(data)
    assert cache is not None
    assert len(cache) == 4
    assert not (default_cache_folder(data) / "train" / "large.jpg").exists()


@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_stopped_run_goes_on_where_it_was(data: Path, tmp_path: Path, stop_after: int) -> None:
    expected = files_in(build(data).folder)
    shutil.rmtree(default_cache_folder(data))

    def stop(done: int, total: int) -> None:
        if done > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(data, progress=stop, workers=1)
    assert found(data) == (None, [])  # not finished: training does not use it
    # what dying in the middle of a copy would leave behind
    (default_cache_folder(data) / "train" / f".{'0' * 32}.tmp").write_bytes(b"half")
    report = build(data)
    assert stop_after + 1 <= report.kept <= 5  # the thread may have been ahead by any number
    assert report.resized + report.linked == 5 - report.kept
    assert files_in(default_cache_folder(data)) == expected


def test_a_full_disk_is_said_and_leaves_nothing_half_written(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = files_in(build(data).folder)
    shutil.rmtree(default_cache_folder(data))
    save, calls = Image.Image.save, []

    def save_until_full(self: Image.Image, file: object, *args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) > 2:
            file.write(b"half an image")  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, file, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(DataError, match=r"No space left on device, .* [GM]B are free; \d of 5 images are done"):
        build(data, workers=1)
    monkeypatch.undo()
    left = files_in(default_cache_folder(data) / "train")
    assert all(size_wh(default_cache_folder(data) / "train" / name) for name in left)
    assert not any(name.endswith(".tmp") for name in files_in(default_cache_folder(data)))
    report = build(data)
    assert report.kept == len(left)
    assert files_in(default_cache_folder(data)) == expected


def test_a_cache_that_is_too_small_is_not_found_but_can_be_named(data: Path) -> None:
    build(data)
    cache, lines = found(data, short=200)
    assert cache is None
    assert "cache not used" in lines[0]
    cache, lines = found(data, str(default_cache_folder(data)), short=200)
    assert cache is not None
    assert lines[0].startswith("WARNING")
    assert found(data, "none") == (None, [])


def test_a_folder_that_is_no_cache_of_these_images_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no image cache of train"):
        found(data, str(tmp_path / "nothing"))
    build(data)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    with pytest.raises(DataError, match="is a cache of"):
        found(moved, str(default_cache_folder(data)))
    shutil.copytree(default_cache_folder(data), default_cache_folder(moved))
    assert found(moved) == (None, [])  # found by itself, it is passed over


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, settings=np.ones(3), source=np.zeros(1), **arrays)
    return file.getvalue()


WITHOUT_SIDES = npz(name_bytes=np.zeros(1), name_offsets=np.array(2), entries=np.zeros((1, 6)))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off", WITHOUT_SIDES])
def test_a_damaged_manifest_is_an_error_where_named_and_made_anew(data: Path, content: bytes) -> None:
    folder = build(data).folder
    (folder / "train.manifest.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.manifest\.npz is damaged"):
        read_manifest(folder, "train")
    assert found(data) == (None, [])
    with pytest.raises(UsageError, match="is no part of a cache and in its way"):
        build(data)  # nothing shows any more that its files are a cache's
    shutil.rmtree(folder)
    build(data)
    assert found(data)[0] is not None


def test_a_copy_that_links_out_of_the_cache_is_not_read(data: Path, tmp_path: Path) -> None:
    build(data)
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (150, 100), (0, 255, 0)).save(secret)
    copy = default_cache_folder(data) / "train" / "large.jpg"
    copy.unlink()
    copy.symlink_to(secret)
    dataset = CocoDataset(index_of(data), data / "train2017", None, cache=found(data)[0])
    assert dataset.read_sample(LARGE)[0].shape == (3, 400, 600)


def run(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(cache_command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_command_ends_with_what_it_brought_and_where_it_lies(data: Path) -> None:
    code, output = run(data, "--size", SHORT, "--workers", 1)
    assert code == 0, output
    assert "times as fast" in output
    assert f"Written to {default_cache_folder(data)}" in output
    assert found(data)[0] is not None
    code, output = run(data, "--size", SHORT, "--out", data.parent / "there", "--json")
    assert code == 0, output
    content = json.loads(output)
    assert (content["resized"], content["linked"]) == (4, 1)
    assert content["folder"] == str(data.parent / "there")


def test_what_a_stopped_run_left_is_not_taken_for_other_settings_or_a_changed_source(data: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(data, progress=stop)
    picture(400, 600, 9).save(data / "train2017" / "large.jpg")
    damaged = default_cache_folder(data) / "train" / "sub" / "odd.jpg"
    stamp = damaged.stat().st_mtime_ns
    damaged.write_bytes(b"")  # as a power cut leaves it
    os.utime(damaged, ns=(stamp, stamp))
    assert build(data).kept == 3
    with pytest.raises(KeyboardInterrupt):
        build(data, progress=stop, quality=50)
    assert build(data).kept == 0
