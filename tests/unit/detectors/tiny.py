"""Detectors of other toolkits, small and with random weights, and what they say when run as documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import collect
from detrkit.evaluation.coco import METRIC_NAMES, CocoMetrics
from tests.unit.detectors.splits import split_of

LABELS = {0: "cat", 1: "bird", 2: "dog"}  # not in the data set's order, and one that it lacks

Found = Mapping[str, Tensor]
"""``boxes`` XYXY, ``scores``, ``labels`` of one image, as both toolkits give them."""


def torchvision_state(name: str, **sizes: Any) -> dict[str, Tensor]:
    """Random weights whose heads are sure of something: an untrained softmax is above no threshold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)
        for key, parameter in network.named_parameters():
            if "cls_score.weight" in key:
                nn.init.normal_(parameter, std=5.0)
            if "cls_logits.weight" in key:
                nn.init.normal_(parameter, std=0.5 if name.startswith("fcos") else 0.15)
            if "regression_head.bbox_reg.bias" in key and name.startswith("fcos"):  # else boxes of a pixel
                nn.init.constant_(parameter, 4.0)
    return dict(network.state_dict())


def save_transformers(kind: str, folder: Path) -> None:
    """A tiny model and its image processor, as ``save_pretrained`` writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network, processor = _MAKERS[kind]()
        for key, parameter in network.named_parameters():  # else all queries say the same
            if "query_position_embeddings" in key or "detection_tokens" in key:
                nn.init.normal_(parameter, std=3.0)
            if "class_labels_classifier.weight" in key:
                nn.init.normal_(parameter, std=0.3)
            if "bbox_predictor" in key:
                nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def run_transformers(folder: Path, image: Path) -> Found:
    """As the documentation of transformers says."""
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
    picture = Image.open(image).convert("RGB")
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    sizes = torch.tensor([(picture.height, picture.width)])
    found: Found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)[0]
    return found


def results_by_hand(
    images: Mapping[int, Path], run: Callable[[Path], Found], categories: Mapping[int, int]
) -> list[dict[str, Any]]:
    """COCO results of a detector; ``categories`` gives the category id of each label."""
    results = []
    for image_id, path in images.items():
        found = run(path)
        boxes = found["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes, found["scores"], found["labels"], strict=True):
            if int(label) in categories:
                category_id = categories[int(label)]
                results.append(
                    {"image_id": image_id, "category_id": category_id, "bbox": box.tolist(), "score": score.item()}
                )
    return results


def annotations_from(results: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """Annotations close to some of the detections, so that their AP is not 0."""
    annotations: list[dict[str, Any]] = []
    for number, result in enumerate(results[::every]):
        x, y, width, height = result["bbox"]
        shift = 0.04 * (number % 5)
        if width > 4 and height > 4:
            box = [max(x + shift * width, 0), max(y, 0), width, height * (1 - shift)]
            annotation = {"image_id": result["image_id"], "category_id": result["category_id"], "bbox": box}
            annotations.append(annotation)
    return annotations


def annotate(file: Path, annotations: list[dict[str, Any]]) -> None:
    """Write annotations into a COCO file that has none yet, each cut to its image."""
    content = json.loads(file.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    content["annotations"] = []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        most_x, most_y = sizes[annotation["image_id"]]
        width, height = min(width, most_x - x), min(height, most_y - y)
        if width > 2 and height > 2:
            number = len(content["annotations"]) + 1
            entry = {**annotation, "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            content["annotations"].append({**entry, "id": number})
    file.write_text(json.dumps(content), encoding="utf-8")


def pycocotools_numbers(annotations: Path, results: Path | list[dict[str, Any]]) -> list[float]:
    """The twelve."""
    truth = COCO(str(annotations))
    found = truth.loadRes(str(results) if isinstance(results, Path) else results)
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers: list[float] = evaluation.stats.tolist()
    return numbers


def check_parity(
    source: str, run: Callable[[Path], Found], categories: Mapping[int, int], file: Path, every: int
) -> CocoMetrics:
    """Compare detections and metrics of a source with those of ``run``; annotations are made from its results."""
    root = file.parents[1]
    listed = json.loads(file.read_text(encoding="utf-8"))["images"]
    images = {image["id"]: root / "val2017" / image["file_name"] for image in listed}
    results = results_by_hand(images, run, categories)
    annotate(file, annotations_from(results, every))
    evaluator = collect(find_target(source, device="cpu"), split_of(root), batch_size=1)
    evaluator.write_results_json(root / "found.json")
    found = json.loads((root / "found.json").read_text(encoding="utf-8"))
    assert sorted(map(str, found)) == sorted(map(str, results))
    metrics = evaluator.finish()
    assert [metrics[name] for name in METRIC_NAMES] == pycocotools_numbers(file, results)
    assert metrics["AP"] > 0.02
    return metrics


SMALL: dict[str, int] = {
    "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "decoder_layers": 2, "num_queries": 12,
}  # fmt: skip


def _labels() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {name: label for label, name in LABELS.items()}}


def _yolos() -> tuple[Any, Any]:
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[96, 128],
        num_detection_tokens=12,
        initializer_range=0.5,
        **_labels(),
    )
    processor = transformers.YolosImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return transformers.YolosForObjectDetection(config), processor


def _detr() -> tuple[Any, Any]:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    backbone.out_features = ["stage4"]
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        encoder_layers=1,
        init_std=0.5,
        **SMALL,
        **_labels(),
    )
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return transformers.DetrForObjectDetection(config), processor


def _rt_detr_v2() -> tuple[Any, Any]:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    backbone.out_features = ["stage2", "stage3", "stage4"]
    config = transformers.RTDetrV2Config(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        **SMALL,
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        feat_strides=[8, 16, 32],
        num_denoising=0,
        **_labels(),
    )
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 96})
    return transformers.RTDetrV2ForObjectDetection(config), processor


_MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {"detr": _detr, "yolos": _yolos, "rt_detr_v2": _rt_detr_v2}
KINDS = tuple(_MAKERS)
