"""Every kind of fault that ``detrkit data check`` knows: how bad it is, what it means, what ``--fix`` does.

An error makes training fail or learn the wrong thing; a warning is probably a fault; a note is worth knowing and
may be meant. What no machine can put right, such as a class with three examples, is a note: a copy made by
``--fix`` has neither errors nor warnings.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Severity(enum.StrEnum):
    """How bad a finding is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Kind(NamedTuple):
    """A kind of fault: its severity, its name in words, what it does and what to do, and what ``--fix`` does."""

    severity: Severity
    title: str
    advice: str
    repair: str = ""


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

KINDS: Mapping[str, Kind] = {
    # ---- files
    "annotations_unreadable": Kind(
        _E,
        "annotations cannot be read",
        "Nothing of this split can be used. Download or export the file again.",
        "the split is left out",
    ),
    "data_set_unreadable": Kind(_E, "the data set cannot be read", "See the message; nothing could be checked."),
    "absolute_file_name": Kind(
        _E,
        "absolute file names",
        "A path of somebody's machine: detrkit opens no file outside the image folder. Name files relative to it.",
        "the name is cut to the part that exists in the image folder, or the image is left out",
    ),
    "escaping_file_name": Kind(
        _E,
        "file names that lead out of the image folder",
        "By .. or by a link. detrkit opens no file outside the image folder.",
        "the name is cut to the part that exists in the image folder, or the image is left out",
    ),
    "missing_image": Kind(
        _E,
        "listed image files do not exist",
        "detrkit leaves them out; other tools stop. Restore the files or remove their entries.",
        "the image and its annotations are left out, or the name is corrected where a single file fits",
    ),
    "file_name_case": Kind(
        _E,
        "file names that differ from the file in upper and lower case",
        "Works on Windows and macOS only; on Linux the image is missing.",
        "the name is corrected",
    ),
    # ---- images
    "image_empty": Kind(_E, "image files without content", "A copy was cut off. Fetch them again.", "left out"),
    "image_truncated": Kind(
        _E,
        "truncated image files",
        "The file stops too early, so the image cannot be decoded. Fetch it again.",
        "left out",
    ),
    "image_unreadable": Kind(
        _E,
        "unreadable image files",
        "They are no images, or corrupt. Convert, fetch again or remove them.",
        "left out",
    ),
    "image_too_large": Kind(
        _E,
        "images of an unreasonable size",
        "More pixels than Pillow decodes (decompression bomb). Make them smaller.",
        "left out",
    ),
    "image_mislabelled": Kind(
        _W,
        "mislabelled images: the file extension names another format than the content",
        "detrkit goes by the content; tools that go by the name fail.",
        "the file gets the extension of its content",
    ),
    "size_mismatch": Kind(
        _E,
        "image size in the annotations differs from the file",
        "The files were resized after annotation, or the numbers are wrong. detrkit scales the boxes by the "
        "ratio of the sizes, except where height and width are exchanged.",
        "the size is read from the file; boxes are scaled with it where they fit only the annotated size, or "
        "where the shape is the same",
    ),
    "exif_rotated_size": Kind(
        _W,
        "image size in the annotations is the one before the EXIF rotation",
        "The camera stored the image lying on its side. detrkit turns images upright and takes boxes for drawn on "
        "the upright image, as labelling tools show it; tools that ignore EXIF see other boxes. Look at a few.",
        "the size of the upright image is written",
    ),
    "missing_size": Kind(
        _W,
        "images without width and height in the annotations",
        "detrkit reads them from the files; evaluation tools need them written.",
        "the size of the file is written",
    ),
    # ---- ids and references
    "duplicate_image_ids": Kind(
        _E,
        "duplicate image ids",
        "Annotations could belong to either image. Give every image its own id.",
        "the later image gets a new id; annotations stay with the first, unless its file name is the number that "
        "annotations without an image ask for",
    ),
    "duplicate_annotation_ids": Kind(
        _E,
        "duplicate annotation ids",
        "detrkit keeps both, but pycocotools keeps only the last one, so evaluation loses objects.",
        "the later annotation gets a new id",
    ),
    "duplicate_category_ids": Kind(
        _E,
        "duplicate category ids",
        "One id means two classes. Correct the categories.",
        "the first category keeps the id, later ones are removed, or get a new id if the name differs",
    ),
    "image_listed_twice": Kind(
        _W,
        "images that are listed twice",
        "The same file under two entries: part of the objects are unlabelled in each, or all count double.",
        "the entries are merged, annotations and all",
    ),
    "unknown_image_id": Kind(
        _E, "annotations of an image that is not listed", "They are lost. Correct image_id.", "left out"
    ),
    "unknown_category_id": Kind(
        _E,
        "annotations of a category that is not listed",
        "They are lost. List the category or correct category_id; many of them mean that the categories are "
        "those of another data set.",
        "left out",
    ),
    "id_is_text": Kind(
        _W,
        "ids written as text or as a fraction",
        "detrkit converts them; other tools find no image for these annotations.",
        "written as integers",
    ),
    "number_is_text": Kind(
        _W,
        "box numbers written as text",
        "detrkit converts them; other tools fail or compare texts.",
        "written as numbers",
    ),
    # ---- label files
    "label_file_unreadable": Kind(
        _E, "label files that cannot be read", "Left out with their images. Write them again.", "left out"
    ),
    "label_line_unreadable": Kind(
        _E, "lines of label files that are not a class and a box", "Left out. Correct them.", "left out"
    ),
    "label_file_without_image": Kind(
        _W, "label files without an image", "Objects that are lost. Restore the images.", "left out"
    ),
    "class_count_differs": Kind(
        _W,
        "number of classes (nc) differs from the number of class names",
        "The names count here; other tools fail.",
        "the names count",
    ),
    "reading_problem": Kind(
        _W,
        "entries that could not be read as the format has it",
        "They are left out or converted, as said.",
        "written as detrkit read them",
    ),
    # ---- boxes
    "box_xyxy": Kind(
        _E,
        "boxes written as corners (x1 y1 x2 y2, xyxy) where the format has something else",
        "The numbers fit the images only as corners; read as the format has it, boxes reach far out.",
        "converted",
    ),
    "box_xywh": Kind(
        _E,
        "boxes written as corner and size (x y width height, xywh) where the format has something else",
        "The numbers fit the images only as upper left corner and size.",
        "converted",
    ),
    "box_cxcywh": Kind(
        _E,
        "boxes written as centre and size (cxcywh) where the format has a corner",
        "All boxes lie half their size too far to the right and down.",
        "converted",
    ),
    "box_normalised": Kind(
        _E,
        "boxes normalised to 0..1 where the format has pixels",
        "Every box is a speck in the upper left corner.",
        "multiplied by the image size",
    ),
    "box_in_pixels": Kind(
        _E,
        "boxes in pixels where the format has 0..1",
        "Every box is many times as large as its image.",
        "divided by the image size",
    ),
    "box_missing": Kind(_E, "annotations without a box", "Expected four numbers in bbox.", "left out"),
    "box_not_finite": Kind(
        _E, "boxes with NaN, infinity or something else than a number", "Training would get NaN.", "left out"
    ),
    "box_empty": Kind(
        _E,
        "empty boxes: no width or no height",
        "detrkit leaves them out; elsewhere they end as NaN loss.",
        "left out",
    ),
    "box_negative": Kind(
        _E,
        "boxes with negative width or height",
        "The corners were exchanged. detrkit leaves them out.",
        "the corners are put in order where the box then lies in the image, else left out",
    ),
    "box_outside": Kind(_E, "boxes fully outside their image", "detrkit leaves them out.", "left out"),
    "box_larger_than_image": Kind(
        _E,
        "boxes larger than their image",
        "detrkit clips them. The box is of another image, or was made on a larger copy of it.",
        "clipped",
    ),
    "box_leaves_image": Kind(
        _W,
        "boxes that reach out of their image by more than rounding does",
        "detrkit clips them.",
        "clipped",
    ),
    "duplicate_boxes": Kind(
        _W,
        "exact duplicate boxes: same image, class and box",
        "A second query is taught to find the same object again.",
        "the later ones are left out",
    ),
    "area_wrong": Kind(
        _W,
        "areas that are negative or greater than the box",
        "Evaluation sorts objects into small, medium and large by it.",
        "computed from the box",
    ),
    # ---- masks
    "mask_box_mismatch": Kind(
        _W,
        "masks that do not fill their box",
        "The bounds of the mask and the box differ: one of them was moved, scaled or belongs to another object.",
        "the box is set to the bounds of the mask where that lies in the image, else the mask is removed",
    ),
    "mask_area_mismatch": Kind(
        _W,
        "areas far from the area of the mask",
        "Evaluation sorts objects into small, medium and large by it.",
        "computed from the mask",
    ),
    "mask_polygon_short": Kind(_W, "polygons of fewer than three points", "They enclose nothing.", "removed"),
    "mask_outside_image": Kind(
        _W, "masks that leave their image", "They fit another image.", "clipped or removed"
    ),
    "mask_unreadable": Kind(
        _W,
        "masks that cannot be decoded",
        "Neither polygons nor an RLE of the image's size.",
        "the mask is removed",
    ),
    # ---- classes
    "duplicate_class_names": Kind(
        _W,
        "duplicate class names",
        "Two categories have the same name, so the model learns one class as two.",
        "merged into the first",
    ),
    "class_names_differ_by_case": Kind(
        _W,
        "class names that differ only by upper and lower case or by spaces",
        "One class under two spellings is learnt as two.",
        "merged into the spelling that is used most",
    ),
    "class_name_spaces": Kind(
        _W, "class names with spaces at an end, or without any text", "Names will not match elsewhere.", "trimmed"
    ),
    "class_ids_differ": Kind(
        _E,
        "category ids that mean other names in another split",
        "Evaluation would compare different classes. Number the classes alike in all splits.",
        "renumbered as in the first split, by name",
    ),
    "class_lists_differ": Kind(
        _W,
        "splits that list different classes",
        "A class that training does not list is never learnt.",
        "every split lists all classes",
    ),
    # ---- between splits
    "image_in_two_splits": Kind(
        _E,
        "the same image in two splits",
        "Evaluation on images that were trained on tells nothing.",
        "kept in the split that measures (test, then val), left out of the other",
    ),
    "near_duplicate_in_two_splits": Kind(
        _W,
        "near-duplicate images in two splits",
        "Frames of a film, or copies that were resized or compressed again: scores come out too good. "
        "`detrkit data split` keeps such images together.",
        "kept in the split that measures (test, then val), left out of the other",
    ),
    # ---- panoptic
    "panoptic_png_missing": Kind(
        _E, "panoptic masks (PNG) that are missing or unreadable", "Their images cannot be used.", "left out"
    ),
    "panoptic_size_mismatch": Kind(
        _E, "panoptic masks of another size than their image", "Segments lie on the wrong pixels.", "left out"
    ),
    "panoptic_segment_missing": Kind(
        _E, "panoptic segments without a pixel in the PNG", "The id is in segments_info only.", "left out"
    ),
    "panoptic_segment_unlisted": Kind(
        _E,
        "panoptic segment ids in the PNG that segments_info does not list",
        "Pixels of an unknown class.",
        "the pixels become unlabelled (0)",
    ),
    "panoptic_duplicate_segment": Kind(
        _E, "panoptic segment ids that are listed twice in an image", "One id means two segments.", "left out"
    ),
    "panoptic_unknown_category": Kind(
        _E,
        "panoptic segments of a category that is not listed",
        "They are lost.",
        "left out, their pixels become 0",
    ),
    "panoptic_area_mismatch": Kind(
        _W, "panoptic areas that differ from the pixels counted", "Written by another mask.", "counted again"
    ),
    "panoptic_box_mismatch": Kind(
        _W, "panoptic boxes that do not fit the pixels", "Written by another mask.", "measured again"
    ),
    # ---- notes
    "polygons_in_labels": Kind(_N, "objects marked by polygons", "The box around each is taken."),
    "extra_numbers": Kind(_N, "lines with numbers after the box", "Confidences or key points; they are not read."),
    "difficult_objects": Kind(
        _N, "objects marked difficult", "Taken as crowd: not trained on, not counted in evaluation."
    ),
    "file_name_in_xml": Kind(
        _N, "XML files that name another image file", "The image with the name of the XML file is taken."
    ),
    "image_without_label_file": Kind(
        _N,
        "images without an annotation file",
        "They are left out. Label them, or give them an empty annotation file if they show nothing.",
    ),
    "box_over_edge": Kind(
        _N, "boxes that leave their image by a pixel or two", "Rounding; detrkit clips them.", "clipped"
    ),
    "box_below_pixel": Kind(_N, "boxes of less than one pixel", "Nothing can be learnt from them."),
    "boxes_with_two_classes": Kind(
        _N,
        "the same box under two classes",
        "Right if an object may be both; else one label is wrong, and a person has to say which.",
    ),
    "area_zero": Kind(_N, "areas of zero", "Counts as small in evaluation.", "computed from the box"),
    "exif_orientation": Kind(
        _N, "images that EXIF turns or mirrors", "detrkit turns them upright; tools that ignore EXIF do not."
    ),
    "exif_broken": Kind(_N, "images with an EXIF orientation that means nothing", "It is ignored."),
    "image_animated": Kind(_N, "animated images", "The first frame is used."),
    "image_deep": Kind(_N, "images of 16 or 32 bits", "Scaled to 8 bits."),
    "image_cmyk": Kind(_N, "CMYK images", "Converted to RGB."),
    "image_transparent": Kind(_N, "images with transparency", "Dropped, not blended."),
    "unlisted_image": Kind(
        _N, "image files that no split lists", "They are not used. Forgotten, or left out on purpose."
    ),
    "images_without_annotations": Kind(
        _N,
        "images without annotations",
        "Trained on as images that show nothing of interest. Right if that is so.",
    ),
    "split_without_annotations": Kind(_N, "splits without annotations", "Such a split cannot be measured on."),
    "duplicate_images": Kind(_N, "the same image several times in a split", "It counts several times."),
    "near_duplicate_images": Kind(_N, "near-duplicate images in a split", "They add little; keep them together."),
    "same_scene_in_two_splits": Kind(
        _N,
        "pictures of the same scene in two splits",
        "Nearly the same hash, but other things in them: a fixed camera. Scores say little of other places.",
    ),
    "category_ids_from_0": Kind(
        _N, "category ids start at 0", "Legal here; some tools take 0 for the background."
    ),
    "category_ids_from_1": Kind(_N, "category ids start at 1", "Legal, as in COCO; class ids inside start at 0."),
    "category_ids_from_other": Kind(_N, "category ids start at another number than 0 or 1", "Legal here."),
    "category_ids_with_gaps": Kind(
        _N, "category ids with gaps", "Legal, as in COCO, whose 80 classes have ids up to 90."
    ),
    "super_category_0": Kind(
        _N,
        "category 0 is not used",
        "Roboflow lists the project's name as category 0; it takes one class of the model and does no harm.",
    ),
    "unused_category": Kind(_N, "categories without annotations", "The model has a class that it never sees."),
    "rare_class": Kind(_N, "rare classes", "Too few examples in training to learn from; collect more."),
    "class_in_one_split": Kind(
        _N,
        "classes that occur only in one split",
        "Cannot be measured, or cannot be learnt. Split again, stratified.",
    ),
    "class_names_alike": Kind(_N, "class names that differ only by spaces, hyphens or underscores", "One class?"),
    "more_objects_than_queries": Kind(
        _N,
        "images with more objects than the model has queries",
        "The objects beyond that number can never be found. Take a model with more queries, or tile the images.",
    ),
}
