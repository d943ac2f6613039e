"""Every fault that a data set can have, in one catalogue, and how often which were found.

Reading a split, ``detrkit data check`` and its ``--fix`` all name faults by the codes of :data:`FAULTS`.

An error makes training fail or learn the wrong thing; a warning is probably a fault; a note is worth knowing and
may be meant. What no machine can put right, such as a class with three examples, is a note.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

MAX_EXAMPLES = 5
_SHOWN = 3


class Severity(enum.StrEnum):
    """How bad a fault is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Fault(NamedTuple):
    """One kind of fault.

    Args:
        kind: Stable code.
        severity: How bad it is.
        title: Meaning, in one line.
        advice: Harm that it does, and what to do.
        fix: What ``--fix`` does about it; empty if a person has to decide.
        reading: What reading for training does about it, where that differs from ``fix``.
    """

    kind: str
    severity: Severity
    title: str
    advice: str
    fix: str = ""
    reading: str = ""


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

# fmt: off
_ROWS: tuple[tuple[str, ...], ...] = (
    # ---- files
    ("annotations_unreadable", _E, "annotations cannot be read",
     "Nothing of this split can be used. Download or export the file again.", "the split is left out"),
    ("data_set_unreadable", _E, "the data set cannot be read", "See the message; nothing could be checked."),
    ("absolute_file_name", _E, "absolute file names",
     "A path of somebody's machine; no file outside the image folder is opened. Name files relative to it.",
     "cut to the part that exists in the image folder, else the image is left out"),
    ("escaping_file_name", _E, "file names that lead out of the image folder",
     "By .. or by a link; no file outside the image folder is opened. Correct the names.",
     "cut to the part that exists in the image folder, else the image is left out"),
    ("missing_image", _E, "listed image files do not exist",
     "detrkit leaves them out; other tools stop. Restore the files or remove their entries.",
     "left out, or the name is corrected where a single file fits", "left out"),
    ("file_name_case", _E, "file names that differ from the file in upper and lower case",
     "Works on Windows and macOS only; on Linux the image is missing.", "the name is corrected"),
    # ---- image files
    ("image_empty", _E, "image files without content", "A copy was cut off. Fetch them again.", "left out"),
    ("image_truncated", _E, "truncated image files",
     "The file stops too early, so the image cannot be decoded. Fetch it again.", "left out"),
    ("image_unreadable", _E, "unreadable image files",
     "They are no images, or corrupt. Convert, fetch again or remove them.", "left out",
     "kept until they are to be decoded"),
    ("image_too_large", _E, "images of an unreasonable size",
     "More pixels than Pillow decodes (decompression bomb). Make them smaller.", "left out"),
    ("image_mislabelled", _W, "mislabelled images: the file extension names another format than the content",
     "detrkit goes by the content; tools that go by the name fail.",
     "the file gets the extension of its content"),
    ("size_mismatch", _E, "image size in the annotations differs from the file",
     "Files resized after annotation, or wrong numbers. Boxes are scaled by the ratio, but for exchanged sides.",
     "the size of the file is written, boxes are scaled with it, masks of the image are left out"),
    ("exif_rotated_size", _W, "image size in the annotations is the one before the EXIF rotation",
     "Images are turned upright, and boxes taken for drawn on the upright image, as labelling tools show it.",
     "the size of the upright image is written", "turned"),
    ("missing_size", _W, "images without width and height in the annotations",
     "detrkit reads them from the files; evaluation tools need them written.",
     "the size of the file is written", "read from the files"),
    # ---- ids and references
    ("duplicate_image_ids", _E, "duplicate image ids",
     "Annotations could belong to either image. Give every image its own id.", "the later image is left out"),
    ("duplicate_annotation_ids", _E, "duplicate annotation ids",
     "detrkit keeps both, but pycocotools keeps only the last one, so evaluation loses objects.",
     "the later annotation gets a new id", "kept"),
    ("duplicate_category_ids", _E, "duplicate category ids",
     "One id means two classes. Correct the categories.", "the later category gets a new id"),
    ("image_listed_twice", _W, "images that are listed twice",
     "The same file under two entries: part of the objects are unlabelled in each, or all count double.",
     "the entries are merged", "kept"),
    ("unknown_image_id", _E, "annotations of an image that is not listed", "They are lost. Correct image_id.",
     "left out"),
    ("unknown_category_id", _E, "annotations of a category that is not listed",
     "They are lost. List the category or correct category_id; many mean the categories of another data set.",
     "left out"),
    ("id_is_text", _W, "ids written as text or as a fraction",
     "detrkit converts them; other tools find no image for these annotations.", "written as integers",
     "converted"),
    ("number_is_text", _W, "box numbers written as text",
     "detrkit converts them; other tools fail or compare texts.", "written as numbers", "converted"),
    # ---- label files
    ("label_file_unreadable", _E, "label files that cannot be read",
     "Left out with their images. Write them again.", "left out with their images"),
    ("label_line_unreadable", _E, "lines of label files that are not a class and a box",
     "Left out. Correct them.", "left out"),
    ("label_file_without_image", _W, "label files without an image",
     "Objects that are lost. Restore the images.", "left out"),
    ("class_count_differs", _W, "number of classes (nc) differs from the number of class names",
     "The names count here; other tools fail.", "the names count"),
    ("split_without_label_files", _W, "images of a split without any label file",
     "Read as images that show nothing of interest. Label them, or leave the split out.",
     "read as images without objects"),
    # ---- boxes
    ("box_xyxy", _E, "boxes written as corners (x1 y1 x2 y2, xyxy) where the format has something else",
     "The numbers fit the images only as corners; read as the format has it, boxes reach far out.", "converted"),
    ("box_xywh", _E,
     "boxes written as corner and size (x y width height, xywh) where the format has something else",
     "The numbers fit the images only as upper left corner and size.", "converted"),
    ("box_cxcywh", _E, "boxes written as centre and size (cxcywh) where the format has a corner",
     "All boxes lie half their size too far to the right and down.", "converted"),
    ("box_normalised", _E, "boxes normalised to 0..1 where the format has pixels",
     "Every box is a speck in the upper left corner.", "multiplied by the image size"),
    ("box_in_pixels", _E, "boxes in pixels where the format has 0..1",
     "Every box is many times as large as its image.", "divided by the image size"),
    ("box_missing", _E, "annotations without a box", "Expected four numbers in bbox.", "left out"),
    ("box_not_finite", _E, "boxes with NaN, infinity or something else than a number",
     "Training would get NaN.", "left out"),
    ("box_empty", _E, "boxes without width or height",
     "detrkit leaves them out; elsewhere they end as NaN loss.", "left out"),
    ("box_negative", _E, "boxes with negative width or height",
     "The corners were exchanged. detrkit leaves them out.",
     "the corners are put in order; left out where nothing of it is in the image"),
    ("box_outside", _E, "boxes fully outside their image", "detrkit leaves them out.", "left out"),
    ("box_larger_than_image", _E, "boxes larger than their image",
     "Clipped. The box is of another image, or was made on a larger copy of it.", "clipped"),
    ("box_leaves_image", _W, "boxes that leave their image", "detrkit clips them.",
     "clipped"),
    ("duplicate_boxes", _W, "exact duplicate boxes: same image, class and box",
     "A second query is taught to find the same object again.", "the later ones are left out"),
    ("area_wrong", _W, "areas that are negative or greater than the box",
     "Evaluation sorts objects into small, medium and large by it.", "computed from the box"),
    # ---- masks
    ("mask_box_mismatch", _W, "masks that do not fill their box",
     "The bounds of the mask and the box differ: one of them was moved, or belongs to another object.",
     "the mask is left out"),
    ("mask_area_mismatch", _W, "areas far from the area of the mask",
     "Evaluation sorts objects into small, medium and large by it.", "computed from the mask"),
    ("mask_polygon_short", _W, "polygons of fewer than three points", "They enclose nothing.",
     "the mask is left out"),
    ("mask_outside_image", _W, "masks that leave their image", "They fit another image.", "the mask is left out"),
    ("mask_unreadable", _W, "masks that cannot be decoded", "Neither polygons nor an RLE of the image's size.",
     "the mask is left out"),
    # ---- classes
    ("duplicate_class_names", _W, "duplicate class names",
     "Two categories have the same name, so the model learns one class as two.", "merged into the first", "kept"),
    ("class_names_differ_by_case", _W, "class names that differ only by upper and lower case or by spaces",
     "One class under two spellings is learnt as two.", "merged into the spelling that is used most"),
    ("class_name_spaces", _W, "class names with spaces at an end, or without any text",
     "Names will not match elsewhere.", "trimmed"),
    ("class_ids_differ", _E, "category ids that mean other names in another split",
     "Evaluation would compare different classes. Number the classes alike in all splits.",
     "renumbered as in the first split, by name"),
    ("class_lists_differ", _W, "splits that list different classes",
     "A class that training does not list is never learnt.", "every split lists all classes"),
    # ---- between splits
    ("image_in_two_splits", _E, "the same image in two splits",
     "Evaluation on images that were trained on tells nothing.",
     "kept in the split that measures (test, then val), left out of the other"),
    ("near_duplicate_in_two_splits", _W, "near-duplicate images in two splits",
     "Frames of a film, or copies: scores come out too good. `detrkit data split` keeps such images together.",
     "kept in the split that measures (test, then val), left out of the other"),
    # ---- panoptic; the copy of --fix has no panoptic masks
    ("panoptic_png_missing", _E, "panoptic masks (PNG) that are missing or unreadable",
     "Their images cannot be used."),
    ("panoptic_size_mismatch", _E, "panoptic masks of another size than their image",
     "Segments lie on the wrong pixels."),
    ("panoptic_segment_missing", _E, "panoptic segments without a pixel in the PNG",
     "The id is in segments_info only."),
    ("panoptic_segment_unlisted", _E, "panoptic segment ids in the PNG that segments_info does not list",
     "Pixels of an unknown class."),
    ("panoptic_duplicate_segment", _E, "panoptic segment ids that are listed twice in an image",
     "One id means two segments."),
    ("panoptic_unknown_category", _E, "panoptic segments of a category that is not listed", "They are lost."),
    ("panoptic_area_mismatch", _W, "panoptic areas that differ from the pixels counted",
     "Written by another mask."),
    ("panoptic_box_mismatch", _W, "panoptic boxes that do not fit the pixels", "Written by another mask."),
    # ---- notes
    ("polygons_in_labels", _N, "objects marked by polygons", "The box around each is taken.", "",
     "the box around each is taken"),
    ("extra_numbers", _N, "lines with numbers after the box", "Confidences or key points; they are not read.",
     "", "not read"),
    ("difficult_objects", _N, "objects marked difficult",
     "Taken as crowd: not trained on, not counted in evaluation.", "",
     "as crowd: not trained on, not counted in evaluation"),
    ("file_name_in_xml", _N, "XML files that name another image file",
     "The image with the name of the XML file is taken.", "", "the image with the name of the XML file is taken"),
    ("image_without_label_file", _N, "images without an annotation file",
     "They are left out. Label them, or give them an empty annotation file if they show nothing.", "",
     "left out"),
    ("box_over_edge", _N, "boxes that leave their image by a pixel or two", "Rounding; detrkit clips them.",
     "clipped"),
    ("box_below_pixel", _N, "boxes of less than one pixel", "Nothing can be learnt from them."),
    ("boxes_with_two_classes", _N, "the same box under two classes",
     "Right if an object may be both; else one label is wrong, and a person has to say which."),
    ("area_zero", _N, "areas of zero", "Counts as small in evaluation.", "computed from the box"),
    ("exif_orientation", _N, "images that EXIF turns or mirrors",
     "detrkit turns them upright; tools that ignore EXIF do not."),
    ("exif_broken", _N, "images with an EXIF orientation that means nothing", "It is ignored."),
    ("image_animated", _N, "animated images", "The first frame is used."),
    ("image_deep", _N, "images of 16 or 32 bits", "Scaled to 8 bits."),
    ("image_cmyk", _N, "CMYK images", "Converted to RGB."),
    ("image_transparent", _N, "images with transparency", "Dropped, not blended."),
    ("unlisted_image", _N, "image files that no split lists",
     "They are not used. Forgotten, or left out on purpose."),
    ("images_without_annotations", _N, "images without annotations",
     "Trained on as images that show nothing of interest. Right if that is so."),
    ("split_without_annotations", _N, "splits without annotations", "Such a split cannot be measured on."),
    ("duplicate_images", _N, "the same image several times in a split", "It counts several times."),
    ("near_duplicate_images", _N, "near-duplicate images in a split", "They add little; keep them together."),
    ("same_scene_in_two_splits", _N, "pictures of the same scene in two splits",
     "Nearly the same hash, but other things in them: a fixed camera. Scores say little of other places."),
    ("category_ids_from_0", _N, "category ids start at 0", "Legal here; some tools take 0 for the background."),
    ("category_ids_from_1", _N, "category ids start at 1", "Legal, as in COCO; class ids inside start at 0."),
    ("category_ids_from_other", _N, "category ids start at another number than 0 or 1", "Legal here."),
    ("category_ids_with_gaps", _N, "category ids with gaps",
     "Legal, as in COCO, whose 80 classes have ids up to 90."),
    ("super_category_0", _N, "category 0 is not used",
     "Roboflow lists the project's name as category 0; it takes one class of the model and does no harm."),
    ("unused_category", _N, "categories without annotations", "The model has a class that it never sees."),
    ("rare_class", _N, "rare classes", "Too few examples in training to learn from; collect more."),
    ("class_in_one_split", _N, "classes that occur only in one split",
     "Cannot be measured, or cannot be learnt. Split again, stratified."),
    ("class_names_alike", _N, "class names that differ only by spaces, hyphens or underscores", "One class?"),
    ("more_objects_than_queries", _N, "images with more objects than the model has queries",
     "The objects beyond that number can never be found. Take a model with more queries, or tile the images."),
)
# fmt: on

FAULTS: Mapping[str, Fault] = {kind: Fault(kind, Severity(severity), *words) for kind, severity, *words in _ROWS}
"""Every kind of fault by its code."""
_ORDER = {kind: (list(Severity).index(FAULTS[kind].severity), row) for row, kind in enumerate(FAULTS)}


class Location(NamedTuple):
    """Where a fault is.

    Args:
        split: Name of the split; empty while one split is read.
        image: Row in the table's images, -1 if none is concerned.
        annotation: Row in the table's annotations, -1 if none is concerned.
    """

    split: str = ""
    image: int = -1
    annotation: int = -1


@dataclasses.dataclass(frozen=True)
class Finding:
    """Every case of one kind of fault that was found.

    Args:
        kind: Key of :data:`FAULTS`.
        counts: How often it was found, by split; a fault between splits counts for the split named first.
        examples: The first few cases, in words.
        locations: Images and annotations concerned.
        groups: Images that belong together, where the fault lies between images.
    """

    kind: str
    counts: Mapping[str, int]
    examples: tuple[str, ...]
    locations: tuple[Location, ...] = ()
    groups: tuple[tuple[Location, ...], ...] = ()

    @property
    def fault(self) -> Fault:
        """Its entry in the catalogue."""
        return FAULTS[self.kind]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.fault.severity

    @property
    def count(self) -> int:
        """How often it was found."""
        return sum(self.counts.values())

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it was found in."""
        return tuple(dict.fromkeys([*self.counts, *(location.split for location in self.locations)]))

    @property
    def shown(self) -> str:
        """The first examples on one line."""
        return "; ".join(self.examples[:_SHOWN]) + ("; ..." if self.count > _SHOWN else "")

    def __str__(self) -> str:
        return f"{self.severity}: {self.fault.title}: {self.count} ({', '.join(self.splits)}): {self.shown}"


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Every fault that was met while one split was read; empty if it is sound.

    Args:
        source: Its annotation file or folder.
        findings: One per kind, the worst first.
    """

    source: str
    findings: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, kind: str) -> int:
        """Return how often a kind was found."""
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def lines(self) -> list[str]:
        """Describe each finding, and what reading did about it, in one line."""
        return [
            f"{self.source}: {found.count} {found.fault.title} ({found.fault.reading or found.fault.fix}): "
            f"{found.shown}"
            for found in self.findings
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines()) or f"{self.source}: no faults"


class Findings:
    """Collects findings while a data set is read or checked.

    Args:
        source: File or folder that is read, for the report.
        findings: Findings to go on from.
    """

    def __init__(self, source: str = "", findings: Sequence[Finding] = ()) -> None:
        self.source = source
        self._counts = {finding.kind: dict(finding.counts) for finding in findings}
        self._examples = {finding.kind: list(finding.examples) for finding in findings}
        self._locations: dict[str, list[Location]] = {}
        self._groups: dict[str, list[tuple[Location, ...]]] = {}

    def add(self, kind: str, example: str, location: Location | None = None, count: int = 1) -> None:
        """Count one case, or some alike; the first few examples are kept."""
        split = location.split if location else ""
        self._count(kind, f"{split}: {example}" if split and example else example, split, count)
        if location:
            self._locations.setdefault(kind, []).append(location)

    def add_rows(
        self, kind: str, split: str, rows: Iterable[tuple[int, int]], describe: Callable[[int], str]
    ) -> None:
        """Count many cases of a split.

        Args:
            kind: Their kind.
            split: Name of the split.
            rows: Image row and annotation row of each.
            describe: Gives the example of the case at a position; called for the first few only.
        """
        for position, (image, annotation) in enumerate(rows):
            example = describe(position) if position < MAX_EXAMPLES else ""
            self.add(kind, example, Location(split, image, annotation))

    def add_group(self, kind: str, group: Sequence[Location], example: str) -> None:
        """Count one case that lies between images."""
        self._count(kind, example, group[0].split, 1)
        self._locations.setdefault(kind, []).extend(group)
        self._groups.setdefault(kind, []).append(tuple(group))

    def build(self) -> tuple[Finding, ...]:
        """Return the findings so far, the worst first."""
        return tuple(
            Finding(
                kind=kind,
                counts=dict(self._counts[kind]),
                examples=tuple(self._examples[kind]),
                locations=tuple(self._locations.get(kind, ())),
                groups=tuple(self._groups.get(kind, ())),
            )
            for kind in sorted(self._counts, key=_ORDER.__getitem__)
        )

    def report(self) -> ReadReport:
        """Return the findings so far as the report of one split."""
        return ReadReport(self.source, self.build())

    def _count(self, kind: str, example: str, split: str, count: int) -> None:
        counts = self._counts.setdefault(kind, {})
        counts[split] = counts.get(split, 0) + count
        examples = self._examples.setdefault(kind, [])
        if example and len(examples) < MAX_EXAMPLES:
            examples.append(example)
