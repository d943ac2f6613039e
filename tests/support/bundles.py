"""Bundles around a graph that is small enough to be checked by hand: scores are the mean of an image's pixels."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.masks import ImageMasks, encode_mask
from detrkit.preprocess import Preprocessing
from detrkit.runtimes.bundle import (
    KIND,
    VERSION,
    FileRecord,
    GoldenPicture,
    GraphRecord,
    Manifest,
    MasksRecord,
    PreprocessingRecord,
    Provenance,
    seal_manifest,
)
from detrkit.runtimes.report import BundleReport
from detrkit.runtimes.resize import resize_pixels

CLASSES = ClassMap(("cat", "dog"), (17, 18))
SIZE, LONGEST = 64, 96
BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]], dtype=np.float32)


def mean_graph(shape: Sequence[int | str] = ("batch", "height", "width", 3)) -> onnx.ModelProto:
    """Two detections an image: class 1 with its mean as score, class 0 with half of it."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    sizes, originals = (
        helper.make_tensor_value_info(name, TensorProto.INT64, [shape[0], 2])
        for name in ("sizes", "original_sizes")
    )
    constants = {
        "axes": np.array([1, 2, 3]),
        "one": np.array([1]),
        "two": np.array([2]),
        "most": np.array([[255 * 3]], dtype=np.float32),
        "halves": np.array([[1.0, 0.5]], dtype=np.float32),
        "ids": np.array([[1, 0]]),
        "shares": BOXES[None],
        "sides": np.array([1, 0, 1, 0]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["pixels", "axes"], ["sum"], keepdims=0),
        helper.make_node("Unsqueeze", ["sum", "one"], ["sums"]),
        helper.make_node("Cast", ["sizes"], ["lengths"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["lengths", "one"], ["area"], keepdims=1),
        helper.make_node("Mul", ["area", "most"], ["whole"]),
        helper.make_node("Div", ["sums", "whole"], ["mean"]),
        helper.make_node("Mul", ["mean", "halves"], ["scores"]),
        helper.make_node("Sub", ["sizes", "sizes"], ["zeros"]),
        helper.make_node("Add", ["zeros", "ids"], ["labels"]),
        helper.make_node("Cast", ["original_sizes"], ["whole_sizes"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["whole_sizes", "sides"], ["scale"], axis=1),
        helper.make_node("Unsqueeze", ["scale", "one"], ["scales"]),
        helper.make_node("Mul", ["shares", "scales"], ["boxes"]),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 2]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [shape[0], 2]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [shape[0], 2, 4]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "mean", [images, sizes, originals], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def expected_scores(image: np.ndarray) -> np.ndarray:
    """What the graph gives for a picture, resized by the rule."""
    size = Preprocessing(SIZE, LONGEST, (), ()).resized_size_hw(image.shape[:2])
    return resize_pixels(image, size).mean(dtype=np.float64) / 255 * np.array([1, 0.5])


def noise(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (*size_hw, 3)).astype(np.uint8)


def bundle_files(graph: bytes | None = None, **changes: Any) -> dict[str, bytes]:
    """The files of a bundle, sealed; ``changes`` are of its manifest."""
    image = noise((40, 60))
    scores = expected_scores(image).astype(np.float32).tolist()
    boxes = (BOXES * np.array([60, 40, 60, 40], np.float32)).tolist()
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, format="PNG")
    files = {"graph.onnx": graph or mean_graph().SerializeToString(), "golden/0.png": picture.getvalue()}
    manifest = Manifest(
        kind=KIND,
        version=VERSION,
        written_by="test",
        name="mean",
        classes=CLASSES.to_dict(),
        max_detections=100,
        thresholds=None,
        licence="",
        provenance=Provenance(),
        graphs=(GraphRecord("graph.onnx", 20),),
        preprocessing=PreprocessingRecord(SIZE, LONGEST, (0.0,) * 3, (1.0,) * 3),
        golden=(GoldenPicture("golden/0.png", tuple(map(tuple, boxes)), tuple(scores), (1, 0)),),
        report=BundleReport.here(),
        files={
            name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()
        },
    )
    return {**files, "bundle.json": seal_manifest(msgspec.structs.replace(manifest, **changes))}


def resealed(manifest: bytes, change: Callable[[dict[str, Any]], object] | bytes) -> bytes:
    """A manifest with a change, or other text in the place of its end, and a seal that is right again."""
    content = json.loads(manifest)
    if callable(change):
        change(content)
    content["seal"] = ""
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    if isinstance(change, bytes):
        text = text.replace(b'"licence": ""', change)
    digest = hashlib.sha256(text).hexdigest()
    return text.replace(b'"seal": ""', f'"seal": "{digest}"'.encode())


def write_files(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files as a folder, or as a zip file where the path says so."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def masked_files(**changes: Any) -> dict[str, bytes]:
    """The files of a bundle with masks: of the first query what is bright, of the second what is dark.

    Query 0 is that of class 1; maps are the image itself, so that cells are pixels of the resized picture.
    """
    main = mean_graph()
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["map_0"], perm=[0, 3, 1, 2]),
        helper.make_node("Identity", ["map_0"], ["map_1"]),
        helper.make_node("Unsqueeze", ["sizes", "one"], ["cell"]),
        helper.make_node("Concat", ["cell", "cell", "cell"], ["cells"], axis=1),
        helper.make_node("Add", ["zeros", "order"], ["query_numbers"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["nought"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["nought", "vectors"], ["queries"]),
    ]
    constants = {
        "order": np.array([[0, 1]]),
        "last": np.array([2]),
        "vectors": np.array([[[1.0], [-1.0]]], dtype=np.float32),
    }
    shapes: dict[str, Any] = {
        "query_numbers": (TensorProto.INT64, ["batch", 2]),
        "cells": (TensorProto.INT64, ["batch", 3, 2]),
        "queries": (TensorProto.FLOAT, ["batch", 2, 1]),
        "map_0": (TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        "map_1": (TensorProto.FLOAT, ["batch", 3, "height", "width"]),
    }
    main.graph.node.extend(nodes)
    main.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    main.graph.output.extend(helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items())
    # mask logits of queries: how much brighter than half gray, times the query
    middle = {"half": np.array(127.5, np.float32), "channels": np.array([1]), "ends": np.array([1])}
    inputs = [helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["count", 1])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in ("map_0", "map_1")
    ]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["map_1", "channels"], ["gray"], keepdims=0),
            helper.make_node("Sub", ["gray", "half"], ["bright"]),
            helper.make_node("Unsqueeze", ["queries", "ends"], ["factors"]),
            helper.make_node("Mul", ["factors", "bright"], ["masks"]),
        ],
        "masks",
        inputs,
        [helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["count", "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in middle.items()],
    )
    second = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # the golden picture's masks, in the order of its detections
    masks = tuple(encode_mask(mask)["counts"] for mask in bright_and_dark(noise((40, 60))))
    files = bundle_files(main.SerializeToString())
    [golden] = msgspec.json.decode(files.pop("bundle.json"), type=Manifest).golden
    files["masks.onnx"] = second.SerializeToString()
    records = {
        name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()
    }
    changes = {
        "graphs": (GraphRecord("graph.onnx", 20), GraphRecord("masks.onnx", 20, outputs="masks")),
        "masks": MasksRecord(0.5, 0.25, 4, "published"),
        "golden": (msgspec.structs.replace(golden, masks=masks),),
        "files": records,
        "classes": {**CLASSES.to_dict(), "stuff": [0]},
        **changes,
    }
    return {**files, "bundle.json": bundle_files(main.SerializeToString(), **changes)["bundle.json"]}


def bright_and_dark(image: np.ndarray) -> np.ndarray:
    """The masks that such a bundle gives for a picture, bool ``[2, H, W]``."""
    size_hw = (image.shape[0], image.shape[1])
    resized_hw = Preprocessing(SIZE, LONGEST, (), ()).resized_size_hw(size_hw)
    gray = resize_pixels(image, resized_hw).astype(np.float32).mean(axis=2) - np.float32(127.5)
    logits = np.stack([gray, -gray])
    masks = ImageMasks(lambda rows: logits[rows], np.arange(2), resized_hw, resized_hw, resized_hw, size_hw)
    return masks.pixels()
