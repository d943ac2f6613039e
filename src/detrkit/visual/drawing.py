"""Drawing of detections and annotations into their image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from detrkit.errors import UsageError
from detrkit.files import atomic_bytes
from detrkit.visual.colors import class_colors, tint_masks
from detrkit.visual.text import printable

with warnings.catch_warnings():
    # On import supervision warns that OpenCV is missing; nothing here draws through OpenCV.
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["beside", "class_palette", "draw", "draw_objects", "label_texts", "save_drawing", "sv"]

LEAST_SIDE = 480  # pixels; a smaller image is enlarged before drawing, else labels would cover it


def draw(image: np.ndarray, detections: sv.Detections, labels: bool = True) -> np.ndarray:
    """Return a copy of the image with box, mask if any and, unless turned off, class and score of each detection.

    Best detections are drawn last, on top. Each class keeps its colour in every image. Lines and text grow
    with the image, and an image whose longer side is under ``LEAST_SIDE`` is enlarged by a whole factor.

    Args:
        image: pixels, uint8 ``[H, W, 3]`` RGB, in whose pixels the boxes are; not changed.
        detections: detections as :meth:`Detector.predict` returns them.
        labels: write class names and scores.

    Raises:
        UsageError: The image is not uint8 ``[H, W, 3]``.
    """
    scores = np.zeros(len(detections)) if detections.confidence is None else detections.confidence
    order = np.argsort(scores, kind="stable")
    texts = label_texts(detections)
    class_ids = _class_ids(detections)[order]
    if detections.mask is not None:
        image = tint_masks(image, np.asarray(detections.mask)[order], class_ids)
    return draw_objects(image, detections.xyxy[order], class_ids, [texts[i] for i in order] if labels else None)


def draw_objects(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    texts: Sequence[str] | None = None,
    crowd: np.ndarray | None = None,
    labels_only: np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of the image with boxes, the last on top; lines and text grow with the image.

    Args:
        image: pixels, uint8 ``[H, W, 3]`` RGB, in whose pixels the boxes are; not changed.
        boxes_xyxy: boxes in pixels, ``[n, 4]``.
        class_ids: class ids, which choose the colour, int64 ``[n]``.
        texts: a label for each box, or none at all.
        crowd: boxes that are regions of many objects, bool ``[n]``; hatched, their outline broken.
        labels_only: boxes that are not drawn, bool ``[n]``.

    Raises:
        UsageError: The image is not uint8 ``[H, W, 3]``.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        got = f"dtype {image.dtype} and shape {list(image.shape)}"
        raise UsageError(f"draw got an array of {got}, expected uint8 [H, W, 3] RGB")
    # enlarge a small image
    factor = -(-LEAST_SIDE // max(image.shape[:2]))
    canvas = image.copy()
    if factor > 1:
        size = (image.shape[1] * factor, image.shape[0] * factor)
        canvas = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    if len(boxes_xyxy) == 0:
        return canvas
    boxes = boxes_xyxy * factor
    # boxes; regions of many objects are hatched under them
    palette = class_palette()
    longest = max(canvas.shape[:2])
    thickness = max(2, round(longest / 400))
    whole = np.ones(len(boxes), dtype=bool) if crowd is None else ~crowd
    if labels_only is not None:
        whole = whole & ~labels_only
    hatched = np.zeros(len(boxes), dtype=bool) if crowd is None else crowd
    canvas = _hatch(canvas, boxes[hatched], class_ids[hatched], thickness)
    bgr = np.ascontiguousarray(canvas[:, :, ::-1])  # supervision draws in BGR
    if whole.any():
        box_annotator = sv.BoxAnnotator(color=palette, thickness=thickness)
        bgr = box_annotator.annotate(bgr, sv.Detections(xyxy=boxes[whole], class_id=class_ids[whole]))
    # labels, moved inside the image
    if texts is not None:
        texts = [printable(text) for text in texts]
        font_size = max(12, round(longest / 55))
        anchors = _label_anchors(boxes, texts, canvas.shape[1], font_size)
        label_annotator = sv.RichLabelAnnotator(
            color=palette, font_size=font_size, text_padding=max(2, font_size // 5)
        )
        bgr = label_annotator.annotate(bgr, sv.Detections(xyxy=anchors, class_id=class_ids), texts)
    return np.ascontiguousarray(bgr[:, :, ::-1])


def beside(images: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Return images in a row, level in the middle, with a grey gap between them, uint8 ``[H, W, 3]``."""
    height = max(image.shape[0] for image in images)
    above = [(height - image.shape[0]) // 2 for image in images]
    padded = [
        np.pad(image, ((top, height - image.shape[0] - top), (0, gap), (0, 0)), constant_values=128)
        for image, top in zip(images, above, strict=True)
    ]
    return np.concatenate(padded, axis=1)[:, :-gap]


def save_drawing(path: str | Path, image: np.ndarray, detections: sv.Detections) -> Path:
    """Draw and write an image file, its kind by the suffix; folders are made as needed."""
    path = Path(path)
    save_png(path, draw(image, detections))
    return path


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, uint8 ``[H, W, 3]``, as a PNG file, whole or not at all."""
    with atomic_bytes(path, durable=False) as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # a fifth of the usual time


def label_texts(detections: sv.Detections) -> list[str]:
    """Return ``dog 0.93`` for each detection; the class id where there is no name, nothing where no score.

    An object that is followed has its number behind, as ``dog 0.93 #7``.
    """
    texts = [str(name) for name in detections.data.get("class_name", _class_ids(detections))]
    if detections.confidence is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, detections.confidence, strict=True)]
    if detections.tracker_id is not None:
        numbers = detections.tracker_id
        texts = [f"{text} #{id}" if id > 0 else text for text, id in zip(texts, numbers, strict=True)]
    return texts


def class_palette() -> sv.ColorPalette:
    """Return the colours by class id as supervision has them."""
    return sv.ColorPalette([sv.Color(*color) for color in class_colors()])


def _class_ids(detections: sv.Detections) -> np.ndarray:
    return np.zeros(len(detections), np.int64) if detections.class_id is None else detections.class_id


def _hatch(image: np.ndarray, boxes_xyxy: np.ndarray, class_ids: np.ndarray, thickness: int) -> np.ndarray:
    """Return the image with slanted lines, half transparent, in each box, and a broken outline around it."""
    height, width = image.shape[:2]
    canvas = Image.fromarray(image)
    inside = np.clip(boxes_xyxy, 0, (width, height, width, height)).round().astype(int)
    for (left, top, right, bottom), class_id in zip(inside.tolist(), class_ids, strict=True):
        if right - left < 2 or bottom - top < 2:
            continue
        color = class_palette().by_idx(int(class_id))
        tile = Image.new("RGBA", (right - left, bottom - top))
        pen = ImageDraw.Draw(tile)
        for start in range(-tile.height, tile.width, 8 * thickness):
            pen.line((start, tile.height, start + tile.height, 0), fill=(*color.as_rgb(), 120), width=thickness)
        dash, edge = 5 * thickness, thickness - 1
        for at in range(0, max(tile.size), 2 * dash):
            for top_left in ((at, 0), (at, tile.height - thickness)):
                pen.rectangle((*top_left, top_left[0] + dash, top_left[1] + edge), fill=color.as_rgb())
            for top_left in ((0, at), (tile.width - thickness, at)):
                pen.rectangle((*top_left, top_left[0] + edge, top_left[1] + dash), fill=color.as_rgb())
        canvas.paste(tile, (left, top), tile)
    return np.array(canvas)


def _label_anchors(boxes_xyxy: np.ndarray, texts: Sequence[str], width: int, font_size: int) -> np.ndarray:
    """Return boxes to hang labels on, moved at the edges so that the label stays inside."""
    text_widths = np.array([0.6 * font_size * len(text) for text in texts])
    anchors = boxes_xyxy.copy()
    anchors[:, 0] = np.maximum(np.minimum(anchors[:, 0], width - text_widths), 0)
    anchors[:, 1] = np.maximum(anchors[:, 1], font_size * 1.6)
    return anchors
