"""``detrkit.predict``: detect objects in images, draw and write them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.api.common import Source
from detrkit.api.load import load
from detrkit.detectors.detector import Detector, ErrorReport
from detrkit.detectors.results import write_predictions
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import UsageError, listed
from detrkit.files import free_name, results_folder
from detrkit.ops.sources import NamedSource, list_sources
from detrkit.threshold_file import Thresholds
from detrkit.visual.drawing import save_drawing

if TYPE_CHECKING:
    import supervision as sv

    from detrkit.detectors.detector import ImageSource


def predict(
    model: Source | Detector,
    images: ImageSource | list[ImageSource],
    *,
    threshold: float | Thresholds | None = None,
    out: Source | None = None,
    batch_size: int = 4,
    tiles: str | int | None = None,
    on_error: ErrorReport | None = None,
) -> list[sv.Detections]:
    """Return the detections of images, files or folders, drawn and written if ``out`` is given.

    Args:
        model: Anything that :func:`load` takes, or a detector.
        images: See :meth:`detrkit.detectors.detector.Detector.predict`.
        threshold: Least score, or thresholds by class; None: the model's own if it has any, otherwise 0.5.
        out: Folder for one drawn picture per image and ``predictions.json`` in COCO format.
        batch_size: Images, or tiles of them, at once.
        tiles: Cut images into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        on_error: Called with name and error of each image that cannot be read, which is then left out.

    Returns:
        One ``supervision.Detections`` per image that could be read.
    """
    detector = in_tiles(model if isinstance(model, Detector) else load(model), tiles, batch_size)
    if out is None:
        return [item.detections for item in detector.stream(images, threshold, batch_size, on_error)]
    found: list[sv.Detections] = []
    sources = list_sources(images)[0]
    drawings = _drawing_names([source.name for source in sources])
    with results_folder(out, "predictions.json", *drawings.values()) as folder:
        _check_sources(sources, drawings, folder)
        for item in detector.stream(images, threshold, batch_size, on_error, keep_images=True):
            found.append(item.detections)
            assert item.image is not None
            save_drawing(folder / drawings[item.source], item.image, item.detections)
        if found:  # where every image failed there is nothing to write
            write_predictions(folder / "predictions.json", ((None, detections) for detections in found))
    return found


def _drawing_names(sources: Sequence[str]) -> dict[str, str]:
    """Return a file name for the drawing of each source; images of the same name in two folders both get one.

    Names differ even where case does not count.
    """
    taken: set[str] = set()
    found = {}
    for source in dict.fromkeys(sources):
        stem = Path(source).stem or "image"
        number = free_name(stem.lower(), taken).removeprefix(stem.lower())
        taken.add(stem.lower() + number)
        found[source] = f"{stem}{number}.png"
    return found


def _check_sources(sources: Sequence[NamedSource], drawings: Mapping[str, str], folder: Path) -> None:
    """Refuse to draw over an image that is to be read, be it an earlier drawing, and into its folder."""
    outputs = {os.path.realpath(folder / name) for name in drawings.values()}
    replaced = [source for source in drawings if os.path.realpath(source) in outputs]
    if replaced:
        raise UsageError(f"drawings in {folder} would replace {listed(replaced)}; give another folder")
    if any(source.skippable and folder.samefile(Path(source.name).parent) for source in sources):
        raise UsageError(f"{folder} is read: drawings there would be taken for its images; give another folder")
