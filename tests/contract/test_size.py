"""The house is held to counted limits (lines of code: no blank lines, comments, docstrings). Prints its table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.size import closure_of, lines_of_code, module_files, rooms_table, size_table

TESTS = Path(__file__).parents[1]
LIMITS = {
    "everything that `detrkit train` imports": ("train", 17_510),
    "everything that `detrkit.load` imports": ("load", 9_850),
    "all of src": ("src", 43_960),
    "tests, all lines": ("tests", 42_890),
    "real-time DETRs and what they added": ("real-time", 2_000),
}
# Lines of the rooms that real-time DETRs built on, before them: what these have more by now counts as theirs.
BEFORE = {"families/two_stage": 288, "nn": 839, "losses": 338}


def test_the_house_keeps_its_limits(capsys: pytest.CaptureFixture[str]):
    table = size_table()
    table["tests"] = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py"))
    rooms = rooms_table()
    since = Counter({room: -count for room, count in BEFORE.items()})
    for room, count in rooms.items():
        since[next((start for start in BEFORE if f"{room}/".startswith(f"{start}/")), room)] += count
    table["real-time"] = sum(since[room] for room in ("families/rtdetr", "families/dfine", *BEFORE))
    lines = [f"{what:42} {table[key]:7,} of {limit:7,}" for what, (key, limit) in LIMITS.items()]
    lines += [f"  {room:40} {count:7,}" for room, count in sorted(rooms.items())]
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert not [line for line, (key, limit) in zip(lines, LIMITS.values(), strict=False) if table[key] > limit]


def test_only_code_is_counted_and_what_is_imported_late_is_followed(tmp_path: Path):
    text = "\n".join(
        [
            '"""Doc."""',
            "",
            "# comment",
            "x = 1",
            '"""Of x."""',
            "def f():",
            '    """Doc',
            '    of two lines."""',
            "    return (",
            "        x",
            "    )",
            "",
        ]
    )
    assert lines_of_code(text) == 5  # x, def, and the three of return
    first, last = tmp_path / "first.py", tmp_path / "last.py"
    first.write_text("def late():\n    from detrkit.last import name\n", encoding="utf-8")
    last.write_text("", encoding="utf-8")
    files = {"detrkit.first": first, "detrkit.last": last, "detrkit.other": last}
    assert closure_of("detrkit.first", files) == {"detrkit.first", "detrkit.last"}
    assert "detrkit.losses.criterion" in closure_of("detrkit.training.run", module_files())
