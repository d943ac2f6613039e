"""``detrkit.predict``: detect objects in images, draw and write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.api.common import Source
from detrkit.api.load import load
from detrkit.detectors.detector import Detector, ErrorReport
from detrkit.detectors.results import write_predictions
from detrkit.files import make_folder
from detrkit.threshold_file import Thresholds
from detrkit.visual.drawing import save_drawing

if TYPE_CHECKING:
    import supervision as sv

    from detrkit.detectors.sources import ImageSource


def predict(
    model: Source | Detector,
    images: ImageSource | list[ImageSource],
    *,
    threshold: float | Thresholds | None = None,
    out: Source | None = None,
    batch_size: int = 4,
    on_error: ErrorReport | None = None,
) -> list[sv.Detections]:
    """Return the detections of images, files or folders, drawn and written if ``out`` is given.

    Args:
        model: Anything that :func:`load` takes, or a detector.
        images: See :meth:`detrkit.detectors.detector.Detector.predict`.
        threshold: Least score, or thresholds by class; None: the model's own if it has any, otherwise 0.5.
        out: Folder for one drawn picture per image and ``predictions.json`` in COCO format.
        batch_size: Images at once.
        on_error: Called with name and error of each image that cannot be read, which is then left out.

    Returns:
        One ``supervision.Detections`` per image that could be read.
    """
    detector = model if isinstance(model, Detector) else load(model)
    found: list[sv.Detections] = []
    folder = None if out is None else make_folder(out)
    taken: set[str] = set()
    for item in detector.stream(images, threshold, batch_size, on_error, keep_images=folder is not None):
        found.append(item.detections)
        if folder is not None and item.image is not None:
            save_drawing(folder / _drawing_name(item.source, taken), item.image, item.detections)
    if folder is not None:
        write_predictions(folder / "predictions.json", ((None, detections) for detections in found))
    return found


def _drawing_name(source: str, taken: set[str]) -> str:
    """Return a file name for the drawing of a source; images of the same name in two folders both get one."""
    stem = Path(source).stem or "image"
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    return name
