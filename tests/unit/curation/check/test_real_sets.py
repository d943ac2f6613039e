"""What is found in real sets: nothing in clean ones, every known defect in the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.curation.check import CheckResult, check_data, examine
from detrkit.curation.fix import fix_data
from detrkit.errors import DataError

CLEAN = ("coco_mini", "coco_panoptic_yolo", "bad_inputs/12_yolo_data_yaml_wrong_paths")
FAULTS = {
    "bccd_voc": {"box_empty": 2, "near_duplicate_in_two_splits": 1},
    "bad_inputs/02_voc_truncated_jpeg": {"image_truncated": 1, "exif_broken": 1},
    "bad_inputs/03_voc_no_extension_zero_box": {
        "box_empty": 2,
        "image_without_label_file": 4,
        "file_name_in_xml": 6,
    },
    "bad_inputs/04_yolo_mixed_polygons_bad_classes": {
        "label_file_without_image": 34,
        "polygons_in_labels": 112,
        "unknown_category_id": 150,
    },
    "bad_inputs/05_coco_boxes_outside_image": {
        "box_outside": 1,
        "box_over_edge": 17,
        "box_below_pixel": 1,
        "images_without_annotations": 3,
    },
    "bad_inputs/06_coco_exif_rotated_string_boxes": {
        "number_is_text": 4,
        "exif_orientation": 3,
        "category_ids_from_0": 1,
        "super_category_0": 1,
    },
    "bad_inputs/07_coco_missing_file_and_empty": {
        "missing_image": 1,
        "box_over_edge": 4,
        "images_without_annotations": 2,
        "super_category_0": 1,
    },
    "bad_inputs/08_voc_png_named_jpg_rgba": {"image_mislabelled": 3, "image_transparent": 3},
    "bad_inputs/10_coco_unknown_category_ids": {"unknown_category_id": 20},
    "bad_inputs/11_coco_string_image_id": {"id_is_text": 2},
}
ALARMS_BESIDES = {
    "bad_inputs/04_yolo_mixed_polygons_bad_classes": {"box_leaves_image", "objects_lost"},
    "bad_inputs/10_coco_unknown_category_ids": {"objects_lost"},
}


def alarms(result: CheckResult) -> set[str]:
    return {finding.kind for finding in result.findings if finding.severity != "note"}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_sets_raise_no_alarm(name, shared_data):
    result = check_data(shared_data / name)
    assert result.is_clean, result.lines()
    assert result.images_checked > 0


@pytest.mark.parametrize("name", FAULTS)
def test_known_defects_are_found_and_repaired(name, shared_data, tmp_path):
    checked = examine(shared_data / name)
    expected = FAULTS[name]
    assert {kind: checked.result.count(kind) for kind in expected} == expected
    assert alarms(checked.result) <= set(expected) | ALARMS_BESIDES.get(name, set())
    fixed = fix_data(checked, tmp_path / "fixed")
    left = {"split_without_annotations"} if name == "bad_inputs/10_coco_unknown_category_ids" else set()
    assert alarms(fixed.after) == left, fixed.after.lines()


def test_frames_of_one_film_in_two_splits_are_found(shared_data, tmp_path):
    checked = examine(shared_data / "cones_yolo")
    assert alarms(checked.result) == {"near_duplicate_in_two_splits"}
    assert fix_data(checked, tmp_path / "fixed").after.is_clean


def test_positions_on_one_chess_board_are_a_scene_rather_than_copies(shared_data):
    result = check_data(shared_data / "chess_roboflow_coco")
    assert result.count("same_scene_in_two_splits") > 5 * result.count("near_duplicate_in_two_splits")
    rare = next(finding for finding in result.findings if finding.kind == "rare_class")
    assert rare.examples == ("train: 'bishop': 1",)


def test_a_cut_off_file_says_at_which_byte(shared_data, tmp_path):
    checked = examine(shared_data / "bad_inputs" / "01_json_truncated")
    (finding,) = checked.result.findings
    assert finding.kind == "annotations_unreadable"
    assert "byte 1769472" in finding.examples[0]
    with pytest.raises(DataError, match="nothing can be read"):
        fix_data(checked, tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_odd_images_are_named_for_what_they_are(shared_data, tmp_path: Path):
    folder = shared_data / "bad_inputs" / "09_images_only" / "pillow"
    names = sorted(path.name for path in folder.iterdir())
    (tmp_path / "train").symlink_to(folder, target_is_directory=True)
    images = [{"id": at, "file_name": name, "width": 8, "height": 8} for at, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    result = check_data(tmp_path)
    told = {finding.kind: " ".join(finding.examples) for finding in result.findings}
    assert "decompression_bomb.gif" in told["image_too_large"]
    for kind in ("image_truncated", "image_deep", "image_cmyk", "image_animated", "image_transparent"):
        assert kind in told, (kind, sorted(told))
