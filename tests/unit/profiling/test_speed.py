from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.errors import UsageError
from detrkit.profiling.speed import Setting, all_settings, find_fast, made_up_image, measure_speed
from detrkit.profiling.speed_report import speed_lines
from tests.unit.detectors.fakes import FakeStages


class FakeSubject:
    kind = "fake"

    def __init__(self, name: str, turns: list[str] | None = None, fail: Exception | None = None):
        self.name, self.turns, self.fail = name, turns, fail
        self.threads: list[int] = []
        self.stages: Any = FakeStages(self.on_stage)

    def on_stage(self, stage: str) -> None:
        if stage == "model":
            if self.fail is not None:
                raise self.fail
            self.threads.append(torch.get_num_threads())
            if self.turns is not None:
                self.turns.append(self.name)


def test_rows_take_turns_and_none_always_follows_the_same():
    turns: list[str] = []
    subjects = {name: FakeSubject(name, turns) for name in "ABC"}
    told = []
    rows = measure_speed(
        all_settings("ABC"),
        [made_up_image(8, 8)],
        repeats=3,
        warm_up=0,
        find=lambda setting: subjects[setting.model],  # type: ignore[arg-type,return-value]
        progress=lambda done, of: told.append((done, of)),
    )
    assert turns[-9:] == ["A", "B", "C", "B", "C", "A", "C", "A", "B"]
    assert [row.latency.runs for row in rows if row.latency] == [3, 3, 3]
    assert told == [(done, 12) for done in range(1, 13)]


def test_a_setting_that_fails_is_told_and_the_others_go_on():
    subjects = {
        "good": FakeSubject("good"),
        "large": FakeSubject("large", fail=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
        "odd": FakeSubject("odd", fail=ValueError("\nno such\nkernel")),
    }
    rows = measure_speed(
        all_settings(list(subjects)),
        [made_up_image(8, 8)],
        repeats=2,
        warm_up=1,
        find=lambda setting: subjects[setting.model],  # type: ignore[arg-type,return-value]
    )
    assert [row.problem for row in rows] == [
        "",
        "out of memory: CUDA out of memory. Tried to allocate",
        "ValueError: no such",
    ]
    assert rows[0].latency is not None
    assert rows[1].latency is rows[1].cost is None


def test_batches_threads_and_sharing_of_a_subject():
    made = []

    def find(setting: Setting) -> FakeSubject:
        made.append(FakeSubject(setting.model))
        return made[-1]

    usual = torch.get_num_threads()
    settings = all_settings(["A"], batch_sizes=[1, 3], threads=[1, 2])
    rows = measure_speed(settings, [made_up_image(8, 8)], repeats=1, warm_up=0, find=find)  # type: ignore[arg-type]
    assert torch.get_num_threads() == usual
    assert len(made) == 1
    assert set(made[0].threads) == {1, 2}
    found = [(row.latency.batch_size, row.latency.threads) for row in rows if row.latency]
    assert found == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert [row.cost.input_shape[0] for row in rows if row.cost] == [1, 1, 3, 3]


def test_benchmark_writes_a_table_for_people_and_programs(tmp_path: Path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(file)
    speed = detrkit.benchmark(
        ["detr-tiny", "<b>nothing</b>"],
        batch_sizes=[1, 2],
        images=[file],
        devices=["cpu"],
        repeats=1,
        warm_up=0,
        out=tmp_path / "out",
    )
    assert [bool(row.problem) for row in speed.rows] == [False, True, False, True]
    assert speed.decode is not None
    text = "\n".join(speed_lines(speed))
    for word in ("detr-tiny, batch 1", "random weights", "no file or folder"):
        assert word in text
    written = json.loads((tmp_path / "out" / "speed.json").read_text(encoding="utf-8"))
    assert written["rows"][0]["latency"]["runs"] == 1
    assert written["rows"][1]["problem"].startswith("no file or folder")
    assert written["environment"]["torch"] == torch.__version__
    page = (tmp_path / "out" / "speed.html").read_text(encoding="utf-8")
    assert "<b>nothing" not in page
    assert "Images a second against batch size" in page


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["detr-tiny", "detr-tiny-two-stage", "rtdetr-nano", "dfine-n"])
@pytest.mark.parametrize("padded", [False, True])
def test_every_family_compiles_without_a_break(preset: str, padded: bool):
    stages = find_fast(Setting(preset, device="cpu")).stages
    assert stages is not None
    # of noise: on flat images all tokens score alike, and rounding chooses among them
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 160, width), dtype=torch.uint8) for width in (160, 130)]
    inputs = stages.preprocess(images[: 1 + padded])
    expected = stages.forward(inputs)
    torch.compiler.reset()
    stages.network.compile(fullgraph=True, backend="eager")
    found = stages.forward(inputs)
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)
    assert torch.allclose(found.boxes_cxcywh, expected.boxes_cxcywh, atol=1e-4)


def test_cuda_graphs_need_a_gpu():
    [row] = detrkit.benchmark("detr-tiny", devices=["cpu"], backends=["cuda-graphs"], repeats=1).rows
    assert "need a CUDA device, and this is cpu" in row.problem


def test_wrong_questions_are_answered(tmp_path: Path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"precisions": ["64"]}, "precision is '64'"),
        ({"backends": ["jit"]}, "backend is 'jit', expected one of eager, compile"),
        ({"batch_sizes": [0]}, "batch size is 0"),
        ({"batch_sizes": []}, "no batch size is given"),
        ({"repeats": 0}, "repeats is 0"),
        ({"streams": [0]}, "streams is 0"),
        ({"images": ["a.png"], "data": tmp_path}, "both images and data"),
    ]
    for given, message in refused:
        with pytest.raises(UsageError, match=message):
            detrkit.benchmark("detr-tiny", **given)
