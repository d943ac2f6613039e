"""A model with masks, measured, written, and measured again from what was written."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hotcoco import mask as rle_masks
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from detrkit.api.compare import compare
from detrkit.api.evaluate import evaluate, panoptic_quality
from detrkit.api.thresholds import PANOPTIC_SCORES, choose_thresholds
from detrkit.classes import ClassMap
from detrkit.cli import app
from detrkit.config import Config, update_config
from detrkit.data import segmentation
from detrkit.data.segmentation import read_id_map
from detrkit.data.split import read_split
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import collect, read_split_for
from detrkit.detectors.results import ResultsFile
from detrkit.detectors.split_evaluator import SplitEvaluator
from detrkit.detectors.stages import model_stages
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.coco import METRIC_NAMES
from detrkit.evaluation.panoptic import PanopticMetrics
from detrkit.families.build import build_model
from detrkit.families.family import BuiltModel
from detrkit.families.recipes import preset_config
from detrkit.masks import encode_mask

CLASSES = ClassMap(("cat", "dog", "sky", "sea"), (1, 7, 20, 30), stuff=(2, 3))
SIZES = [(60, 80), (96, 64), (48, 48), (70, 90), (64, 64), (90, 50), (80, 80), (56, 72)]


def write_set(root: Path) -> Path:
    """A data set with panoptic pictures and, of the same things, polygons, RLE and a crowd region."""
    random = np.random.default_rng(0)
    for name in ("val2017", "annotations/panoptic_val2017"):
        (root / name).mkdir(parents=True)
    images, panoptic, instances = [], [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        pixels = np.kron(random.integers(0, 256, (12, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels[:height, :width]).save(root / "val2017" / f"{number:04}.png")
        images.append({"id": number, "file_name": f"{number:04}.png", "height": height, "width": width})
        ids = np.zeros((height, width), dtype=np.int64)
        ids[: height // 2], ids[height // 2 : -6] = 1, 2  # the last rows are of nothing
        kinds = {1: 20, 2: 30}
        for segment in (3, 4, 5):
            left, top = random.integers(0, width - 20), random.integers(0, height - 20)
            ids[top : top + 18, left : left + 14] = segment
            kinds[segment] = (1, 7, 7)[segment - 3]
        infos = []
        for segment, kind in kinds.items():
            mask = ids == segment
            if not mask.any():
                continue
            encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            box, crowd = coco_masks.toBbox(encoded).tolist(), int(segment == 5)
            info = {"category_id": kind, "iscrowd": crowd, "area": int(mask.sum()), "bbox": box}
            infos.append({"id": segment, **info})
            if kind < 20:
                x, y, w, h = box
                polygon = [[x, y, x + w, y, x + w, y + h - 3.5, x + w / 3, y + h]]
                shape = encode_mask(mask) if crowd else polygon
                instances.append({"id": len(instances) + 1, "image_id": number, **info, "segmentation": shape})
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1).astype(np.uint8)).save(
            root / "annotations/panoptic_val2017" / f"{number:04}.png"
        )
        panoptic.append({"image_id": number, "file_name": f"{number:04}.png", "segments_info": infos})
    categories = [
        {"id": number, "name": name, "isthing": int(number < 20)}
        for number, name in zip(CLASSES.category_ids, CLASSES.names, strict=True)
    ]
    for name, entries, kinds in (("panoptic", panoptic, categories), ("instances", instances, categories[:2])):
        content = {"images": images, "annotations": entries, "categories": kinds}
        (root / "annotations" / f"{name}_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def build(preset: str = "detr-tiny-panoptic") -> BuiltModel:
    torch.manual_seed(0)
    changes = {"masks.panoptic_score": 0.0, "transforms.eval_size": 64, "transforms.max_size": 96}
    config = update_config(preset_config(preset), changes)
    built = build_model(config, CLASSES)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():  # untrained, all queries say the same
            if "query_embed" in name:
                parameter.normal_(std=3.0)
            if "class_embed.weight" in name or "out_lay.weight" in name:
                parameter.normal_(std=1.0)
    return built


def detector_of(built: BuiltModel) -> Detector:
    return Detector(model_stages(built, torch.device("cpu")), CLASSES, name="tiny", config=built.config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("panoptic"))


def panoptic_json(data: Path) -> Path:
    return data / "annotations" / "panoptic_val2017.json"


def instances_json(data: Path) -> Path:
    return data / "annotations" / "instances_val2017.json"


def numbers(content: dict[str, Any]) -> list[float]:
    return [content[name] for name in METRIC_NAMES]


def test_all_numbers_are_measured_written_and_the_same_from_the_files(data: Path, tmp_path: Path):
    detector = detector_of(build())
    found = evaluate(detector, panoptic_json(data), out=tmp_path / "a", resamples=20, latency_images=0)
    assert found.masks is not None
    assert found.panoptic is not None
    assert found.masks["AP50"] >= 0
    assert found.panoptic.metrics.values["PQ"] >= 0
    assert [entry.is_thing for entry in found.panoptic.metrics.per_class] == [True, True, False, False]
    assert found.per_class[2].objects == 0  # AP is that of things
    assert len(found.panoptic.pictures) == 8
    content = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert content["panoptic"]["PQ"] == pytest.approx(1 - sum(content["panoptic"]["losses"].values()))
    # the files again
    again = evaluate(tmp_path / "a" / "detections.json", panoptic_json(data), explain=False, resamples=0)
    assert again.masks is not None
    assert numbers(dict(again.values)) == numbers(dict(found.values))
    assert numbers(dict(again.masks.values)) == numbers(dict(found.masks.values))
    pictures = evaluate(tmp_path / "a" / "panoptic.json", panoptic_json(data), explain=False, resamples=0)
    assert pictures.panoptic is not None
    assert pictures.panoptic.metrics == found.panoptic.metrics
    # training measures the same
    built = build()
    part = read_split(built.config, "val", panoptic_json(data), masks=True, stuff=True)
    values = SplitEvaluator(built, part, torch.device("cpu")).measure(built.model)
    assert values["mask_AP"] == found.masks["AP"]
    assert values["PQ"] == found.panoptic.metrics.values["PQ"]


@pytest.mark.parametrize(("classes", "kind"), [(CLASSES, "panoptic"), (ClassMap(("cat", "dog"), (1, 7)), "coco")])
def test_a_model_without_stuff_is_measured_on_the_objects(classes: ClassMap, kind: str, data: Path):
    built = build()
    config = update_config(built.config, {"data.root": str(data)})
    detector = Detector(model_stages(built, torch.device("cpu")), classes, config=config)
    for place in (data, None):
        assert read_split_for([detector], "val", place, masks=True)[0].files.format == kind


def test_mask_ap_is_pycocotools_to_the_last_digit(data: Path, tmp_path: Path):
    evaluation = evaluate(
        detector_of(build()), instances_json(data), out=tmp_path / "a", resamples=20, latency_images=0
    )
    assert evaluation.masks is not None
    assert evaluation.panoptic is None
    entries = json.loads((tmp_path / "a" / "detections.json").read_text(encoding="utf-8"))
    # make some of them right: the numbers shall be more than 0
    truth = COCO(str(instances_json(data)))
    for entry, annotation in zip(entries[::9], truth.dataset["annotations"], strict=False):
        changed = {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
        mask = encode_mask(rle_masks.decode(truth.annToRLE(annotation)) > 0)
        entry.update({**changed, "segmentation": mask, "score": entry["score"] + 0.2})
    for entry in entries:
        del entry["bbox"]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    ours = collect(ResultsFile(path), read_split(Config(), "val", instances_json(data), masks=True))
    theirs = COCOeval(truth, truth.loadRes(str(path)), "segm")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    found = ours.finish(masks=True)
    assert 0.05 < found["AP"] < 1
    assert numbers(dict(found.values)) == theirs.stats.tolist()
    # and so is what explanations are made from
    matches = ours.matches(masks=True)
    right = [int(row.sum()) for row in matches.correct]
    counted = [entry for entry in theirs.evalImgs if entry and entry["aRng"] == [0, 1e10]]
    flags = [(entry["dtMatches"] > 0) & ~entry["dtIgnore"].astype(bool) for entry in counted]
    assert right == np.sum([flag.sum(axis=1) for flag in flags], axis=0).tolist()


def test_pictures_alone_and_in_batches_of_mixed_sizes_are_the_same(data: Path):
    detector = detector_of(build())
    pictures = {
        size: [
            item.panoptic.colors().tobytes()
            for item in detector.stream(str(data / "val2017"), batch_size=size, panoptic=True)
            if item.panoptic is not None
        ]
        for size in (1, 2, 4, 8)
    }
    assert len(set(pictures[1])) == len(SIZES)
    for size in (2, 4, 8):
        assert pictures[size] == pictures[1], size


def test_the_score_of_panoptic_pictures_is_chosen_by_pq(data: Path, tmp_path: Path):
    detector = detector_of(build())
    choice = choose_thresholds(detector, panoptic_json(data), out=tmp_path / "thresholds.json", least_objects=1)
    assert list(choice.panoptic) == list(PANOPTIC_SCORES)
    best = choice.thresholds.panoptic_score
    assert best is not None
    assert choice.panoptic[best] == max(choice.panoptic.values())
    # the very numbers of eval with that score
    detector.masks = detector.masks.model_copy(update={"panoptic_score": 0.4})
    found = evaluate(detector, panoptic_json(data), explain=False, resamples=0)
    assert found.panoptic is not None
    assert found.panoptic.metrics.values["PQ"] == choice.panoptic[0.4]
    assert choose_thresholds(detector, instances_json(data), least_objects=1).panoptic == {}


def test_compare_sets_masks_and_panoptic_quality_side_by_side(data: Path, tmp_path: Path):
    found = evaluate(detector_of(build()), panoptic_json(data), out=tmp_path / "a", resamples=0, latency_images=0)
    files = [tmp_path / "a" / name for name in ("detections.json", "panoptic.json")]
    compared = compare(files, panoptic_json(data), out=tmp_path / "compare", resamples=20, latency_images=0)
    assert found.masks is not None
    assert compared.models[0].masks is not None
    assert compared.models[0].masks.values == found.masks.values
    assert compared.models[0].panoptic == {}
    assert found.panoptic is not None
    assert compared.models[1].panoptic == found.panoptic.metrics.values
    assert "PQ" in (tmp_path / "compare" / "compare.md").read_text(encoding="utf-8")


def test_annotations_without_masks_are_said_and_boxes_measured(data: Path, tmp_path: Path):
    content = json.loads(instances_json(data).read_text(encoding="utf-8"))
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    found = evaluate(detector_of(build()), path, image_folder=data / "val2017", explain=False, resamples=0)
    assert found.masks is None
    assert "holds no masks" in found.notes[-1]


def copy_as_results(data: Path, folder: Path) -> dict[str, Any]:
    """The annotated pictures as found ones, their PNG files in ``folder/found``."""
    (folder / "found").mkdir()
    for file in (data / "annotations" / "panoptic_val2017").iterdir():
        (folder / "found" / file.name).write_bytes(file.read_bytes())
    content: dict[str, Any] = json.loads(panoptic_json(data).read_text(encoding="utf-8"))
    return content


def test_pictures_of_any_program_are_measured_and_images_without_one_are_said(data: Path, tmp_path: Path):
    content = copy_as_results(data, tmp_path)
    path = tmp_path / "found.json"
    values = []
    for change in ("none", "classes", "an image"):
        if change == "classes":
            for entry in content["annotations"][::2]:
                entry["segments_info"][0]["category_id"] = 30
        if change == "an image":
            del content["annotations"][3]
        path.write_text(json.dumps({"annotations": content["annotations"]}), encoding="utf-8")
        found = evaluate(path, panoptic_json(data), explain=False, resamples=20, out=tmp_path / "again")
        assert found.panoptic is not None
        assert_same(panoptic_quality(path, panoptic_json(data), say=not_slowly), found.panoptic.metrics)
        values.append(found.panoptic.metrics.values["PQ"])
        again = evaluate(tmp_path / "again" / "panoptic.json", panoptic_json(data), explain=False, resamples=0)
        assert again.panoptic is not None
        assert again.panoptic.metrics == found.panoptic.metrics
    assert values[0] == 1
    assert 1 > values[1] > values[2] > 0
    assert found.panoptic.interval is not None
    assert found.panoptic.interval.low < values[2] < found.panoptic.interval.high
    assert "1 image of 8 without a picture" in " ".join(found.notes)


def not_slowly(line: str) -> None:
    assert "mask by mask" not in line, line


def assert_same(one: PanopticMetrics, other: PanopticMetrics) -> None:
    """The same but for the order of sums."""
    assert dict(one.values) == pytest.approx(dict(other.values), abs=1e-12)
    for mine, yours in zip(one.per_class, other.per_class, strict=True):
        assert vars(mine) == pytest.approx(vars(yours), abs=1e-12)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often Pillow decodes each panoptic PNG file."""
    counts: Counter[str] = Counter()

    def read(path: Path) -> np.ndarray:
        counts[f"{path.parent.name}/{path.name}"] += 1
        return read_id_map(path)

    monkeypatch.setattr(segmentation, "read_id_map", read)
    return counts


def test_pictures_are_decoded_once_and_for_pq_alone_by_hotcoco(data: Path, tmp_path: Path, decoded: Counter[str]):
    content = copy_as_results(data, tmp_path)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert panoptic_quality(path, panoptic_json(data)).values["PQ"] == 1
    assert not decoded
    # all that eval says, with reasons, intervals and pictures
    evaluate(path, panoptic_json(data), resamples=20, out=tmp_path / "report")
    assert len(decoded) == 2 * len(SIZES)
    assert set(decoded.values()) == {1}
    decoded.clear()
    # every epoch of a training
    built = build()
    part = read_split(built.config, "val", panoptic_json(data), masks=True, stuff=True)
    evaluator = SplitEvaluator(built, part, torch.device("cpu"))
    assert evaluator.measure(built.model) == evaluator.measure(built.model)
    assert len(decoded) == len(SIZES)
    assert set(decoded.values()) == {1}


def spoiled(content: dict[str, Any], folder: Path, what: str) -> None:
    entry = content["annotations"][2]
    infos, picture = entry["segments_info"], folder / entry["file_name"]
    if what == "areas":
        for one in content["annotations"]:
            one["segments_info"][0]["area"] = 7
    elif what == "unlisted":
        infos.pop()
    elif what == "absent":
        infos.append({"id": 77, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0})
    elif what == "unknown class":
        infos[0]["category_id"] = 99
    elif what == "twice":
        infos.append({**infos[0], "category_id": 1})
    elif what == "size":
        for image in content["images"]:
            image["height"] += 1
    elif what == "file":
        picture.write_bytes(picture.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("what", "slowly", "words"),
    [
        ("areas", "", ""),
        ("unlisted", "not in segments_info", "in no list of segments"),
        ("absent", "not in the mask", ""),
        ("unknown class", "not in segments_info", "in no list of segments"),
        ("twice", "listed twice", ""),
        ("size", "ground truth is", "error"),
        ("file", "cannot decode", "error"),
    ],
)
def test_annotated_pictures_that_hotcoco_takes_unseen_are_looked_at(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, slowly: str, words: str
):
    content, folder = copy_as_results(data, tmp_path), tmp_path / "panoptic_val2017"
    found, known = tmp_path / "found.json", tmp_path / "panoptic_val2017.json"
    found.write_text(json.dumps(content), encoding="utf-8")
    shutil.copytree(tmp_path / "found", folder)
    spoiled(content, folder, what)
    known.write_text(json.dumps(content), encoding="utf-8")
    lines: list[str] = []
    if words == "error":
        with pytest.raises(DataError):
            panoptic_quality(found, known, say=lines.append)
    else:
        part = read_split(Config(), "val", known, pixels=False, masks=True, stuff=True)
        slow = collect(ResultsFile(found), part).finish_panoptic()
        caplog.clear()
        assert_same(panoptic_quality(found, known, say=lines.append), slow)
    assert slowly in lines[-1]
    assert words in ("", "error") or words in caplog.text
    assert slowly or not any("mask by mask" in line for line in lines)


def test_panoptic_quality_of_what_has_none_is_refused(data: Path, tmp_path: Path):
    copy_as_results(data, tmp_path)
    (tmp_path / "found.json").write_text(panoptic_json(data).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="COCO panoptic"):
        panoptic_quality(tmp_path / "found.json", instances_json(data))
    command = ["eval", str(tmp_path / "found.json"), "--data", str(panoptic_json(data)), "--pq"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "100.0" in result.output


def damaged(entry: dict[str, Any], folder: Path, what: str) -> None:
    picture = folder / entry["file_name"]
    if what == "unlisted":
        entry["segments_info"].pop()
    elif what == "absent":
        entry["segments_info"].append({"id": 77, "category_id": 1})
    elif what == "size":
        Image.new("RGB", (5, 5)).save(picture)
    elif what == "file":
        picture.write_bytes(b"no picture")
    elif what == "outside":
        entry["file_name"] = "../../secret.png"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unlisted", "in its pixels alone"),
        ("absent", r"\[77\] in the JSON alone"),
        ("size", r"height and width \(5, 5\)"),
        ("file", "cannot be read"),
        ("outside", "outside"),
    ],
)
def test_panoptic_files_that_contradict_themselves_are_refused(data: Path, tmp_path: Path, what: str, words: str):
    content, folder = copy_as_results(data, tmp_path), tmp_path / "found"
    damaged(content["annotations"][2], folder, what)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    for measure in (partial(evaluate, explain=False, resamples=0), panoptic_quality):
        with pytest.raises(DataError, match=words):
            measure(path, panoptic_json(data))


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [60, 80], "counts": "5"}, {"size": [3, 3], "counts": [4, 5]}, [[1, 2, 3]], [[1, 2, "x", 4, 5, 6]]],
)
def test_masks_that_cannot_be_are_refused(data: Path, tmp_path: Path, segmentation: Any):
    path = tmp_path / "found.json"
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, "segmentation": segmentation}
    path.write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(DataError, match="segmentation cannot be used"):
        evaluate(path, instances_json(data), explain=False, resamples=0)
