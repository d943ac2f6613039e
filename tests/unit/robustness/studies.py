"""A detector that finds everything on clean images, and less the more an image is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrkit.classes import ClassMap
from detrkit.data.faults import ReadReport
from detrkit.data.formats.base import SplitFiles
from detrkit.data.index import CocoIndex
from detrkit.data.split import Split
from detrkit.robustness.corruptions import Corruption
from detrkit.types import ImageDetections
from tests.unit.detectors.fakes import FakeStages


def split_of(index: CocoIndex, where: str = "val.json") -> Split:
    return Split(SplitFiles(Path(where), Path("images"), "COCO", "given"), index, ReadReport(where))


class OracleSubject:
    """Finds the objects of its truth; of ``severity`` n only those of the first 6 - n of every six images."""

    kind, max_detections, settings = "fake", 100, "as it is"

    def __init__(self, truth: CocoIndex, class_map: ClassMap | None = None, name: str = "oracle"):
        self.name = name
        self.truth = truth
        self.class_map = class_map or truth.class_map
        self.stages: Any = FakeStages()
        torch.nn.init.ones_(self.stages.network[0].weight)
        self.asked: list[str] = []

    def bind(self, _split: Split, /) -> OracleSubject:
        return self

    def detect(
        self, split: Split, *, batch_size: int | None = None, progress: Any = None, change: Any = None
    ) -> Iterator[tuple[int, ImageDetections]]:
        assert change is None or isinstance(change, Corruption)
        self.asked.append("clean" if change is None else f"{change.name} {change.severity}")
        severity = 0 if change is None else change.severity
        by_name = self.class_map.class_id_by_name()
        for row, image_id in enumerate(split.index.image_ids.tolist()):
            part = slice(*split.index.offsets[row : row + 2])
            names = [self.truth.class_map.names[label] for label in self.truth.labels[part]]
            seen = [i for i, name in enumerate(names) if name in by_name and row % 6 < 6 - severity]
            boxes = self.truth.boxes_xyxy[part][seen].astype(np.float32)
            labels = np.array([by_name[names[i]] for i in seen], dtype=np.int64)
            yield image_id, ImageDetections(boxes, np.full(len(seen), 0.9, np.float32), labels)
            if progress is not None:
                progress(row + 1)
