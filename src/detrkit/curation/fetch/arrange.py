"""Turning what an archive holds into a layout that detrkit reads; each function works on an unpacked folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.curation.fetch.coco_names import COCO_NAMES
from detrkit.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
EVERY_FIFTH = 5
"""Where a data set has no split of its own, every fifth image in the order of the names is for validation."""

_FUDAN_IMAGE = re.compile(r'^Image filename : "([^"]+)"', re.M)
_FUDAN_SIZE = re.compile(r"^Image size \(X x Y x C\) : (\d+) x (\d+) x", re.M)
_FUDAN_BOX = re.compile(
    r"^Bounding box for object (\d+) \"[^\"]*\" \(Xmin, Ymin\) - \(Xmax, Ymax\) : "
    r"\((\d+), (\d+)\) - \((\d+), (\d+)\)",
    re.M,
)


def bccd(root: Path) -> None:
    """The repository's ``BCCD`` folder is in Pascal VOC layout already; scripts and examples go."""
    keep = _only(root, "BCCD", "LICENSE")
    _lift(keep / "BCCD")


def raccoon(root: Path) -> None:
    """Images and XML into Pascal VOC folders, split as in ``data/train_labels.csv`` and ``test_labels.csv``."""
    lists = {}
    for split, name in (("train", "train_labels.csv"), ("val", "test_labels.csv")):
        with _there(root / "data" / name).open(encoding="utf-8", newline="") as file:
            lists[split] = sorted({Path(row["filename"]).stem for row in csv.DictReader(file)})
    _only(root, "images", "annotations", "LICENSE")
    _voc_folders(root, lists, [(root / "images", root / "annotations")])


def license_plates(root: Path) -> None:
    """The folders ``dataset/<split>/images`` and ``annots`` into one Pascal VOC layout with lists."""
    _only(root, "dataset", "LICENSE")
    splits = sorted(folder.parent for folder in (root / "dataset").glob("*/annots"))
    if not splits:
        raise DataError(f"{root / 'dataset'}: no split folder with annots, so not the data set expected")
    lists = {
        "train" if folder.name == "train" else "val": sorted(path.stem for path in folder.glob("annots/*.xml"))
        for folder in splits
    }
    _voc_folders(root, lists, [(folder / "images", folder / "annots") for folder in splits])
    shutil.rmtree(root / "dataset")


def oxford_pets(root: Path) -> None:
    """Images that have a head box into Pascal VOC folders; masks, and images without a box, go."""
    xmls = _there(root / "annotations" / "xmls")
    readme = root / "annotations" / "README"
    if readme.is_file():
        readme.rename(root / "README.txt")
    names = sorted(path.stem for path in xmls.glob("*.xml"))
    boxed = set(names)
    for image in sorted((root / "images").iterdir()):
        if image.stem not in boxed:
            image.unlink()
    _voc_folders(root, _by_fifths(names), [(root / "images", xmls)])
    shutil.rmtree(root / "annotations")


def penn_fudan(root: Path) -> None:
    """COCO JSON from the PASCAL text files and the mask images; the images move into ``images/``.

    The text counts pixels from 1 and includes the last one: a box (160, 182) - (302, 431) covers the 143 columns
    from 159 on. The mask of object n holds the value n.
    """
    entries = [_fudan_entry(path, root) for path in sorted(_there(root / "Annotation").glob("*.txt"))]
    if not entries:
        raise DataError(f"{root / 'Annotation'}: no annotation files, so not the data set expected")
    names = [Path(entry["file_name"]).stem for entry, _boxes in entries]
    (root / "PNGImages").rename(root / "images")
    _write_coco(root / "annotations", entries, _by_fifths(names), "pedestrian")
    (root / "PedMasks").rename(root / "masks")
    shutil.rmtree(root / "Annotation")
    _only(root, "images", "annotations", "masks", "readme.txt")


def balloon(root: Path) -> None:
    """COCO JSON with polygons from the files of the VGG Image Annotator."""
    _only(root, "train", "val")
    for split in ("train", "val"):
        source = _there(root / split / "via_region_data.json")
        content = json.loads(source.read_text(encoding="utf-8"))
        listed = sorted(content.values(), key=lambda value: str(value["filename"]))
        entries = [_via_entry(value, root / split) for value in listed if value["regions"]]
        names = [Path(entry["file_name"]).stem for entry, _boxes in entries]
        _write_coco(root / "annotations", entries, {split: names}, "balloon")
        source.unlink()


def coco8(root: Path) -> None:
    """A ``data.yaml`` beside ``images/`` and ``labels/``, as the archive has none."""
    _write_yaml(root, "images/train", "images/val")


def coco128(root: Path) -> None:
    """A ``data.yaml`` beside ``images/`` and ``labels/``; there is one set of images, used for both splits."""
    _write_yaml(root, "images/train2017", "images/train2017")


def _write_yaml(root: Path, train: str, val: str) -> None:
    _there(root / train)
    _there(root / val)
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(COCO_NAMES))
    text = f"path: .\ntrain: {train}\nval: {val}\nnames:\n{names}\n"
    (root / "data.yaml").write_text(text, encoding="utf-8")


def _fudan_entry(path: Path, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = path.read_text(encoding="latin-1")
    image, size = _FUDAN_IMAGE.search(text), _FUDAN_SIZE.search(text)
    if image is None or size is None:
        raise DataError(f"{path}: no image name or size, expected the PASCAL text of Penn-Fudan")
    name = image[1].rpartition("/")[2]
    if not (root / "PNGImages" / name).is_file():
        raise DataError(f"{path}: names the image {name!r}, which is not in PNGImages")
    boxes = []
    for match in _FUDAN_BOX.finditer(text):
        left, top, right, bottom = (int(match[group]) for group in range(2, 6))
        width, height = right - left + 1, bottom - top + 1
        boxes.append({"bbox": [left - 1, top - 1, width, height], "area": width * height})
    return {"file_name": name, "width": int(size[1]), "height": int(size[2])}, boxes


def _via_entry(value: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from PIL import Image

    name = Path(str(value["filename"])).name
    with Image.open(_there(folder / name)) as image:
        width, height = image.size
    regions = value["regions"]
    boxes = []
    for region in regions.values() if isinstance(regions, dict) else regions:
        shape = region["shape_attributes"]
        points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
        xs, ys = [float(x) for x, _y in points], [float(y) for _x, y in points]
        boxes.append(
            {
                "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                "area": _polygon_area(xs, ys),
                "segmentation": [[float(number) for point in points for number in point]],
            }
        )
    return {"file_name": name, "width": width, "height": height}, boxes


def _polygon_area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Area inside a polygon (shoelace formula)."""
    total = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
    return abs(total) / 2


def _write_coco(
    folder: Path,
    entries: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]],
    lists: Mapping[str, Iterable[str]],
    category: str,
) -> None:
    """Write ``instances_<split>.json`` for every split; ids count from 1 in the order of the entries."""
    folder.mkdir(exist_ok=True)
    for split, names in lists.items():
        wanted = set(names)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for entry, boxes in entries:
            if Path(entry["file_name"]).stem not in wanted:
                continue
            images.append({"id": len(images) + 1, **entry})
            for box in boxes:
                common = {"image_id": len(images), "category_id": 1, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **common, **box})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": category, "supercategory": category}],
        }
        (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _voc_folders(root: Path, lists: Mapping[str, Sequence[str]], folders: Sequence[tuple[Path, Path]]) -> None:
    """Move images and XML files into ``JPEGImages`` and ``Annotations`` and write the lists of the splits."""
    for index, (target, endings) in enumerate(
        ((root / "JPEGImages", IMAGE_ENDINGS), (root / "Annotations", (".xml",)))
    ):
        target.mkdir(exist_ok=True)
        for pair in folders:
            for path in sorted(_there(pair[index]).iterdir()):
                if path.suffix.lower() not in endings:
                    continue
                if (target / path.name).exists():
                    raise DataError(f"{path}: another folder of the archive has a file of this name too")
                path.rename(target / path.name)
    _write_lists(root, lists)
    for pair in folders:
        for folder in pair:
            shutil.rmtree(folder, ignore_errors=True)


def _write_lists(root: Path, lists: Mapping[str, Sequence[str]]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _by_fifths(names: Sequence[str]) -> dict[str, list[str]]:
    ordered = sorted(names)
    return {
        "train": [name for number, name in enumerate(ordered) if number % EVERY_FIFTH],
        "val": ordered[::EVERY_FIFTH],
    }


def _only(root: Path, *names: str) -> Path:
    """Remove everything else from the top of the folder."""
    for path in sorted(root.iterdir()):
        if path.name not in names:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return root


def _lift(folder: Path) -> None:
    """Move what a folder holds one level up."""
    for path in sorted(_there(folder).iterdir()):
        path.rename(folder.parent / path.name)
    folder.rmdir()


def _there(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path.name} is not in the archive, expected {path.parent.name}/{path.name}: "
            "the data set at this address has changed"
        )
    return path
