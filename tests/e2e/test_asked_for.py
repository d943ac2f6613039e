"""What commands are asked for is done, or refused in words that can be followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detrkit.api.common import with_arguments
from detrkit.errors import UsageError
from detrkit.ops.sources import list_sources
from tests.e2e.conftest import Trained, run_here, run_well


@pytest.mark.parametrize(
    "words",
    [
        "data cache ANN --size 32 --out OUT",
        "data split ANN --split train --out OUT",
        "data sample ANN --count 4 --out OUT",
        "data stats ANN --model detr-tiny",
        "thresholds RUN --data ANN --out OUT.json",
        "compare RUN RUN --data ANN --latency 0 --resamples 20 --out OUT",
    ],
)
def test_image_folder_that_the_error_advises_helps(
    words: str, tiny_data: Path, tiny_run: Trained, tmp_path: Path
) -> None:
    annotations, pictures = tmp_path / "ann", tmp_path / "photos"
    shutil.copytree(tiny_data, pictures, ignore=shutil.ignore_patterns("annotations"))
    shutil.copytree(tiny_data / "annotations", annotations)
    filled = {"ANN": annotations, "RUN": tiny_run.run, "OUT": tmp_path / "out", "OUT.json": tmp_path / "out.json"}
    command = [str(filled.get(word, word)) for word in words.split()]
    refused = run_here(*command)
    assert refused.exit_code == 1
    assert "--image-folder DIR" in refused.stderr
    run_well(*command, "--image-folder", pictures)


def test_value_asked_for_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.lr .* 0\.2 and as 0\.1"):
        with_arguments({"train.lr": 0.2}, {"train.lr": 0.1})
    assert with_arguments({"train.lr": 0.1}, {"train.lr": 0.1}) == {"train.lr": 0.1}


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("", "empty path"),
        ("file:///tmp/a.jpg", "give /tmp/a.jpg"),
        (Path("https://x.org/a.jpg"), "curl -O https://x.org/a.jpg"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg is a URL; only files are read: fetch it and"),
    ],
)
def test_addresses_are_refused_with_advice_that_works(source: str | Path, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        list_sources(source)


def test_check_counts_files_that_no_walk_reads(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(tiny_data, data)
    picture = next(data.rglob("*.[jp][pn]g"))
    for name in ("a.heic", "b.heic", "c.psd", f".hidden{picture.suffix}"):
        (picture.parent / name).write_bytes(picture.read_bytes())
    result = run_here("data", "check", data, "--json")
    found = next(entry for entry in json.loads(result.stdout)["findings"] if entry["kind"] == "files_not_read")
    assert sum(found["counts"].values()) == 4
