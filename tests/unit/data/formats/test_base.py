"""What encodings of a text are read, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data.faults import Findings
from detrkit.data.formats.base import read_text
from detrkit.errors import AnnotationError

XML = '<?xml version="1.0" encoding="{}"?>\n<name>{}</name>'


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("names: [cat]", "utf-8", ""),
        ("names: [学校, 球]", "utf-8-sig", ""),
        ("names: [球]", "utf-16", "UTF-16"),
        ("names: [球]", "utf-16-le", "UTF-16-LE"),
        ("names: [球]", "utf-16-be", "UTF-16-BE"),
        ("names: [球]", "utf-32", "UTF-32"),
        ("names: [纸箱, 球, T恤]", "gbk", "GBK"),
        ("names: [Röhre, Straße]", "latin-1", "Windows-1252"),
        ("names: [créée, AÇÃO]", "cp1252", "Windows-1252"),
        (XML.format("GBK", "学校"), "gbk", "GBK"),  # its bytes are valid UTF-8, too
        (XML.format("UTF-8", "纸箱"), "gbk", "GBK"),
        (XML.format("gb2312", "纸箱"), "utf-8", ""),
        (XML.format("Shift_JIS", "猫"), "shift_jis", "Shift_JIS"),
        (XML.format("UTF-16", "猫"), "utf-8", ""),
    ],
)
def test_text_is_read_in_its_encoding(text: str, encoding: str, said: str, tmp_path: Path) -> None:
    path, found = tmp_path / "a.txt", Findings()
    path.write_bytes(text.encode(encoding))
    assert read_text(path, found=found) == text
    assert [finding.examples for finding in found.build()] == [(f"a.txt: read as {said}",)] * bool(said)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("человек", "cp1251"),
        ("사람 차", "euc_kr"),
        ("개", "euc_kr"),
        ("猫, 男", "shift_jis"),
        ("汽車, 人", "big5"),
        ("ağaç, kuş", "cp1254"),
        ("纸箱 Röhre", "gbk latin-1"),
        ("für Röhre", "utf-8 latin-1"),
    ],
)
def test_text_that_could_be_in_several_encodings_is_refused(text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    parts = zip(text.split(" "), encoding.split(), strict=True) if " " in encoding else [(text, encoding)]
    path.write_bytes(b"names: " + b" ".join(part.encode(name) for part, name in parts))
    with pytest.raises(AnnotationError, match=r"a\.txt: byte \d+ is 0x..,.*save it as UTF-8"):
        read_text(path)


def test_bytes_of_file_names_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("images/Röhre.jpg".encode("latin-1"))
    assert read_text(path, "surrogateescape") == "images/R\udcf6hre.jpg"
