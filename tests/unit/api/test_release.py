"""``detrkit.release``: what the gate lets through is published whole, and nothing else changes the link."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import detrkit
from detrkit.classes import ClassMap
from detrkit.cli import app
from detrkit.deployment import release as releases
from detrkit.errors import DataError, UsageError
from tests.support.bundles import BOXES, CLASSES, bundle_files, noise, write_files

SIZE_HW = (40, 60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with the very objects that the bundle of the tests finds in every picture."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "val"
    folder.mkdir()
    images, annotations = [], []
    for number in range(1, 13):
        Image.fromarray(noise(SIZE_HW, number)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE_HW[0], "width": SIZE_HW[1]})
        for category, (x1, y1, x2, y2) in zip((18, 17), BOXES.tolist(), strict=True):
            box = [x1 * 60, y1 * 40, (x2 - x1) * 60, (y2 - y1) * 40]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category})
            annotations[-1] |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    confused = ClassMap(("dog", "cat"), CLASSES.category_ids).to_dict()
    return {
        "good": write_files(root / "good", bundle_files()),
        "confused": write_files(root / "confused", bundle_files(classes=confused)),
    }


def publish(bundles: dict[str, Path], name: str, to: Path, data: Path, **options: object) -> bool:
    return detrkit.release(bundles[name], to, data, max_slowdown=None, **options).passed


def test_a_road_of_releases(bundles, data, tmp_path):
    to = tmp_path / "road"
    assert publish(bundles, "good", to, data, min_ap=90.0)
    assert (to / "current" / "bundle" / "bundle.json").is_file()
    card = (to / "current" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| cat | 12 | 100.0 |" in card
    # one that is worse is stopped, and nothing of it is left among the releases
    assert not publish(bundles, "confused", to, data)
    assert sorted(path.name for path in (to / "releases").iterdir() if path.is_dir()) == ["v1"]
    assert os.readlink(to / "current") == "releases/v1"  # noqa: PTH115
    # an equal one follows, and the way back leads to the first
    assert publish(bundles, "good", to, data)
    assert releases.current_version(to) == "v2"
    assert detrkit.rollback(to) == ("v2", "v1")
    assert releases.current_version(to) == "v1"
    with pytest.raises(UsageError, match="first release"):
        detrkit.rollback(to)
    # the hash list is one that other tools read
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=to / "current", capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_a_release_is_never_changed_and_a_damaged_one_is_not_gone_back_to(bundles, data, tmp_path):
    assert publish(bundles, "good", tmp_path, data, version="1.0", min_ap=90.0)
    with pytest.raises(UsageError, match="never changed"):
        publish(bundles, "good", tmp_path, data, version="1.0")
    with pytest.raises(UsageError, match="version is"):
        publish(bundles, "good", tmp_path, data, version="../1.1")
    assert publish(bundles, "good", tmp_path, data, version="1.1")
    with (tmp_path / "releases" / "1.0" / "bundle" / "graph.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="changed"):
        detrkit.rollback(tmp_path)
    assert releases.current_version(tmp_path) == "1.1"


def test_a_folder_of_somebody_elses_is_not_taken(bundles, data, tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(UsageError, match="no link to a release"):
        publish(bundles, "good", tmp_path, data, min_ap=1.0)


KILLED = """
import os, signal, sys
from pathlib import Path
from detrkit.deployment import release
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def dying(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "symlink_to"), (release, "sync_folder"),
                    (release, "_write"), (release, "_sha256")):
    setattr(owner, name, dying(getattr(owner, name)))
with release.staged_release(folder) as staging:
    (staging / "bundle").mkdir()
    (staging / "bundle" / "bundle.json").write_text("new")
    release.publish(folder, staging, release.Record("v2", "", "v1", "", {}))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_old_release_or_the_new_one_is_in_use(tmp_path):
    base = tmp_path / "base"
    with releases.staged_release(base) as staging:
        releases.publish(base, staging, releases.Record("v1", "", "", "", {}))
    ended: list[str] = []
    for moment in range(1, 30):
        folder = tmp_path / str(moment)
        shutil.copytree(base, folder, symlinks=True)
        command = [sys.executable, "-c", KILLED, str(folder), str(moment)]
        code = subprocess.run(command, check=False).returncode
        version = releases.current_version(folder)
        assert version in ("v1", "v2")
        releases.check_sums(folder / "releases" / version)
        ended.append(version)
        # the next one clears up what was left, and is not hindered by it
        with releases.staged_release(folder) as staging:
            assert [path.name for path in (folder / "releases").glob(".staging-*")] == [staging.name]
        if code == 0:
            break
    assert code == 0
    assert {"v1", "v2"} == set(ended)


def test_the_command(bundles, data, tmp_path):
    options = ["--to", str(tmp_path / "to"), "--data", str(data), "--max-slowdown", "-1", "--json"]
    runner = CliRunner()
    first = runner.invoke(app, ["release", str(bundles["good"]), *options, "--min-ap", "50"])
    assert (first.exit_code, json.loads(first.stdout)["released"]) == (0, True), first.output
    report = tmp_path / "gate.md"
    stopped = runner.invoke(app, ["release", str(bundles["confused"]), *options, "--markdown", str(report)])
    assert stopped.exit_code == 1
    assert "stopped" in report.read_text(encoding="utf-8")
    assert runner.invoke(app, ["release", "--to", str(tmp_path / "to"), "--rollback"]).exit_code == 2
    assert runner.invoke(app, ["release", "--to", str(tmp_path / "to")]).exit_code == 2
