"""Names of images that are wrong by one rule lead to the files; never out of the folder, never by chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.curation.check import check_data
from detrkit.data.formats import find_split
from detrkit.data.names import find_names
from detrkit.data.read import read_coco, read_split_files
from detrkit.errors import AnnotationError, DataError

from .factory import annotation, coco, image_entry, write_noise

BY_ONE_RULE = {  # listed, file, a word of the rule
    "case of the suffix": ("IMG_{}.jpg", "IMG_{}.JPG", "case"),
    "case of the whole": ("a/img_{}.jpg", "A/IMG_{}.JPG", "case"),
    "backslashes": ("a\\{}.png", "a/{}.png", "backslashes"),
    "backslashes in the files": ("a/{}.png", "a\\{}.png", "backslashes"),
    "backslashes and the folder": ("images\\a\\{}.png", "a/{}.png", "backslashes"),
    "suffix": ("{}.png", "{}.jpg", "suffix"),
    "no suffix": ("a/{}", "a/{}.jpg", "suffix"),
    "suffix and case": ("B{}.PNG", "b{}.jpg", "suffix"),
    "composed": ("for\u00eat_{}.jpg", "fore\u0302t_{}.jpg", "Unicode"),
    "decomposed": ("fore\u0302t_{}.jpg", "for\u00eat_{}.jpg", "Unicode"),
    "percent": ("my%20shots/{}%20(1).jpg", "my shots/{} (1).jpg", "percent"),
    "file URL": ("file:///home/ann/set/a/{}.jpg", "a/{}.jpg", "end of the path"),
    "URL": ("http://images.example.org/val/{}.jpg", "{}.jpg", "end of the path"),
    "folder repeated": ("images/{}.jpg", "{}.jpg", "end of the path"),
    "absolute": ("/data/proj/images/{}.jpg", "{}.jpg", "end of the path"),
    "drive": ("C:\\Users\\ann\\images\\a\\{}.jpg", "a/{}.jpg", "backslashes"),
    "up and down": ("../images/{}.jpg", "{}.jpg", "end of the path"),
    "no folder": ("{0}.jpg", "cam{0}/{0}.jpg", "another folder"),
    "another folder": ("old/{0}.jpg", "new/deep/{0}.jpg", "another folder"),
    "folder and suffix": ("{}.bmp", "a/{}.jpg", "another folder, another suffix"),
}


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(("listed", "file", "word"), BY_ONE_RULE.values(), ids=BY_ONE_RULE)
def test_names_that_one_rule_explains_find_their_files(listed: str, file: str, word: str, tmp_path: Path) -> None:
    make(tmp_path / "images", *(file.format(number) for number in range(10)))
    names = [listed.format(number) for number in (*range(10), 77)]
    found = find_names(names, tmp_path / "images")
    assert found.files == [*(file.format(number) for number in range(10)), None]
    assert all(word in rule for rule in found.rules[:-1])
    assert all(found.files[row] in found.words(row, names[row]) for row in range(10))


def test_plain_spellings_of_a_path_are_no_fault(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "2.jpg")
    found = find_names(["./a/1.jpg", "a//1.jpg", "a/../2.jpg"], tmp_path)
    assert found.files == ["a/1.jpg", "a/1.jpg", "2.jpg"]
    assert not any(found.rules)


def test_a_few_names_are_not_led_to_another_picture_by_chance(tmp_path: Path) -> None:
    make(tmp_path, *(f"a/{number}.jpg" for number in range(9)), "b/9.jpg", "a/8.png")
    names = [*(f"a/{number}.jpg" for number in range(8)), "a/9.jpg", "a/8.JPG", "a/7.png"]
    found = find_names(names, tmp_path)
    assert found.files == [*names[:8], None, "a/8.jpg", None]
    assert found.guesses == {}, "9.jpg of another folder is another picture, and 7.jpg is listed as itself"


def test_one_name_alone_is_left_out_in_reading_and_repaired_by_fix(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}.jpg" for number in range(9)))
    names = [*(f"{number}.jpg" for number in range(7)), "7.png", "images/8.jpg"]
    found = find_names(names, tmp_path)
    assert found.files[7:] == [None, None]
    assert found.guesses == {7: "7.jpg", 8: "8.jpg"}


def test_a_rule_that_gives_two_files_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "IMG_1.JPG", "Img_1.jpg", "IMG_2.JPG")
    found = find_names(["img_1.jpg", "img_2.jpg"], tmp_path)
    assert found.files == [None, "IMG_2.JPG"]
    assert "may be IMG_1.JPG or Img_1.jpg" in found.words(0, "img_1.jpg")
    # and two names for one file: either of them would be another picture
    assert find_names(["a.jpg", "A.jpg"], make(tmp_path / "one", "A.JPG")).files == [None, None]


@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "%2e%2e/secret.png", "/etc/passwd"])
def test_no_rule_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    make(tmp_path, "secret.png", "images/1.png")
    assert find_names([name, name], tmp_path / "images").files == [None, None]
    make(tmp_path / "images", "secret.png")
    assert find_names(["../secret.png"], tmp_path / "images").files == ["secret.png"]


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    assert find_names(["a\0b/1.gif", "x" * 300 + "/2.png", "", ".", "\udcff.png"], tmp_path).files == [None] * 5


def data_set(root: Path, listed: str, file: str, count: int = 4) -> Path:
    make(root / "images", *(file.format(number) for number in range(count)))
    for number in range(count):
        write_noise(root / "images" / file.format(number), 40, 60)
    images = [image_entry(number, listed.format(number)) for number in range(count)]
    content = coco(images, [annotation(number, number) for number in range(count)])
    (root / "train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("listed", "file", "kind"),
    [
        ("{}.png", "{}.PNG", "file_name_case"),
        ("images\\{}.png", "{}.png", "file_name_rule"),
        ("{0}.png", "cam{0}/{0}.png", "file_name_rule"),
        ("/data/proj/images/{}.png", "{}.png", "absolute_file_name"),
        ("../images/{}.png", "{}.png", "escaping_file_name"),
    ],
)
def test_training_and_check_read_such_sets_and_say_so(listed: str, file: str, kind: str, tmp_path: Path) -> None:
    root = data_set(tmp_path, listed, file)
    index, report = read_split_files(find_split(root, "train"))
    assert [index.file_name(row) for row in range(4)] == [file.format(row) for row in range(4)]
    assert len(index.labels) == 4
    assert report.count(kind) == 4
    assert file.format(0) in str(report)
    assert check_data(root).count(kind) == 4


def test_an_absolute_path_alone_is_refused_as_before(tmp_path: Path) -> None:
    root = data_set(tmp_path, "{}.png", "{}.png")
    content = json.loads((root / "train.json").read_text())
    content["images"][3]["file_name"] = "/data/images/3.png"
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="outside the image folder"):
        read_coco(root / "train.json", root / "images")


def test_an_ambiguous_rule_is_named_where_nothing_is_found(tmp_path: Path) -> None:
    root = data_set(tmp_path, "{}.png", "cam1/{}.png")
    data_set(tmp_path, "{}.png", "cam2/{}.png")
    with pytest.raises(DataError, match=r"0\.png: may be cam1/0\.png or cam2/0\.png"):
        find_split(root, "train")


def test_a_broken_link_is_said_to_be_one(tmp_path: Path) -> None:
    root = data_set(tmp_path, "{}.png", "{}.png")
    (root / "images" / "3.png").unlink()
    (root / "images" / "3.png").symlink_to(tmp_path / "store" / "gone.png")
    _, report = read_coco(root / "train.json", root / "images")
    assert "3.png: a link to a file that is not there" in str(report)
