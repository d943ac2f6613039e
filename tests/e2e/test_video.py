"""Videos from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Trained, run_here, run_well
from tests.support.videos import read_video, write_video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 6)


def test_predict_on_a_video_writes_it_drawn_and_a_line_for_each_frame(
    tiny_run: Trained, clip: Path, tmp_path: Path
):
    out = tmp_path / "out"
    said = run_well("predict", tiny_run.run, clip, "--out", out, "--threshold", "0", "--track", "--every", "2")
    assert "in 3 frames" in said
    assert str(out / "clip.mp4") in said
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 2, 4]
    assert len(lines[0]["detections"]) > 0
    assert len(list(read_video(out / "clip.mp4"))) == 3
    as_json = run_here("predict", tiny_run.run, clip, "--out", out, "--threshold", "0", "--json")
    assert [json.loads(line)["frame"] for line in as_json.stdout.splitlines()] == [0, 1, 2, 3, 4, 5]


def test_what_is_lost_of_a_video_is_said_and_the_exit_code_tells(tiny_run: Trained, tmp_path: Path):
    clip = write_video(tmp_path / "clip.mp4", 40, movflags="faststart")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    ended = run_here("predict", tiny_run.run, clip, "--out", tmp_path / "out", "--every", "8")
    assert ended.exit_code == 1
    assert "could not be decoded and are lost" in ended.stderr
    assert "cut off" in ended.stderr
    assert (tmp_path / "out" / "clip.mp4").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["97"], 2, "97: there is no such video; cameras here"),
        (["gone.mp4"], 2, "gone.mp4: there is no such video"),
        (["{clip}", "photo.jpg"], 2, "one kind at a time"),
        (["{clip}", "elsewhere/clip.mp4"], 2, "under one name"),
        (["photo.jpg", "--track"], 2, "--track and --every are of videos"),
        (["rtsp://me:secret@127.0.0.1:9/1"], 1, "rtsp://127.0.0.1:9/1: cannot be opened as a video"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tiny_run: Trained, clip: Path, tmp_path: Path, words: list[str], code: int, said: str
):
    words = [word.replace("{clip}", str(clip)) for word in words]
    ended = run_here("predict", tiny_run.run, *words, "--out", tmp_path / "out")
    assert ended.exit_code == code, ended.output
    assert said in ended.stderr
    assert "secret" not in ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_stream_with_a_video_that_plays(tiny_run: Trained, tmp_path: Path):
    content = write_video(tmp_path / "a.ts", 2000).read_bytes()
    pipe, out = tmp_path / "pipe.ts", tmp_path / "out"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "detrkit", "predict", tiny_run.run, pipe, "--out", out]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        pipe.open("wb") as file,
    ):
        file.write(content[: len(content) // 4])
        file.flush()  # and no more: it waits for frames
        deadline = time.monotonic() + 120
        while not (out / "pipe.jsonl").exists() or (out / "pipe.jsonl").stat().st_size < 1000:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    lines = (out / "pipe.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))
    assert len(list(read_video(out / "pipe.mp4"))) == len(lines) > 0
