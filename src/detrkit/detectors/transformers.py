"""Object detection models of Hugging Face transformers: DETR, RT-DETR, D-FINE, YOLOS and so on.

Images are prepared and boxes read out by the model's own image processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.classes import SizeHW
from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.labels import class_map_of_labels, labelled_detections, to_device
from detrkit.detectors.stages import autocast
from detrkit.errors import UsageError, WeightsError
from detrkit.hardware import resolve_device
from detrkit.types import ImageDetections

KIND = "transformers"


def transformers_detector(source: str, *, device: str = "auto", precision: Precision = "32") -> Detector:
    """Load an object detection model of transformers.

    Args:
        source: Its id on the hub, or a folder, which is opened without the network.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.

    Raises:
        UsageError: transformers is not installed, or the model does not detect objects.
        WeightsError: The model cannot be fetched or is damaged.
    """
    target = resolve_device(device)
    network, processor, config, version = _open(source)
    labels = {int(label): str(name) for label, name in config.id2label.items()}
    class_map, classes = class_map_of_labels(labels)
    stages = TransformersStages(network.to(target).eval(), processor, classes, target, precision)
    settings = f"{version} {config} {processor} {precision}"
    return Detector(stages, class_map, name=source, kind=KIND, settings=settings)


class TransformersStages:
    """The stages of a transformers model.

    Args:
        network: In evaluation mode, on ``device``.
        processor: The model's image processor.
        classes: Class id of each label, -1 for none.
        device: Device of the network.
        precision: Precision, as in :func:`detrkit.load`.
    """

    pads = False

    def __init__(
        self, network: nn.Module, processor: Any, classes: np.ndarray, device: torch.device, precision: Precision
    ):
        self.network = network
        self.device = device
        self._processor = processor
        self._classes = classes
        self._precision: Precision = precision

    def resize(self, image: Tensor) -> Tensor:
        """Leave the image as it is: the model's own processor does all."""
        return image

    def preprocess(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Make pixel values, and a pixel mask where the processor does; resized on the host, as documented."""
        prepared = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_first")
        names = [name for name in ("pixel_values", "pixel_mask") if name in prepared]
        moved = to_device([prepared[name] for name in names], self.device)
        return dict(zip(names, moved, strict=True))

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        """Run the network."""
        with torch.inference_mode(), autocast(self.device, self._precision):
            return self.network(**inputs)

    def postprocess(self, outputs: Any, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return all that the processor finds; some keep the best 100 or 300 of all queries and classes."""
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        with torch.inference_mode():
            found = self._processor.post_process_object_detection(
                outputs, threshold=0.0, target_sizes=torch.tensor(orig_sizes_hw, device=self.device)
            )
        return [
            labelled_detections(image["boxes"], image["scores"], image["labels"], self._classes) for image in found
        ]


def _open(source: str) -> tuple[nn.Module, Any, Any, str]:
    """Return network, image processor and config as transformers opens them, and its version."""
    # the toolkit
    try:
        import transformers
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
    except ImportError as error:
        raise UsageError(
            f"{source} is a model of transformers, which is not installed; run: pip install transformers"
        ) from error
    # config, processor and weights, from a folder without the network
    path = Path(source).expanduser()
    local = path.is_dir()
    where = str(path) if local else source
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=local)
        if type(config) not in AutoModelForObjectDetection._model_mapping:
            raise UsageError(
                f"{source} is a {config.model_type} of transformers, which is no object detection model with a "
                "fixed list of classes; give one, such as hf:PekingU/rtdetr_v2_r18vd"
            )
        processor: Any = AutoImageProcessor.from_pretrained(where, local_files_only=local)  # type: ignore[no-untyped-call]
        network, report = AutoModelForObjectDetection.from_pretrained(
            where, local_files_only=local, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise WeightsError(f"transformers cannot open {source}: {reason}") from error
    # a model that would detect at random, or whose boxes nobody reads out
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{source} lacks {len(missing)} tensors of a {config.model_type}, such as {missing[0]}; they would be "
            "random, and so would its detections"
        )
    if not hasattr(processor, "post_process_object_detection"):
        raise UsageError(f"the image processor of {source}, {type(processor).__name__}, does not read out boxes")
    return network, processor, config, transformers.__version__
