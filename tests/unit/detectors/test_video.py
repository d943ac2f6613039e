"""Detection in videos: what is drawn, written and followed, whatever ends it."""

from __future__ import annotations

import gc
import json
import signal

import numpy as np
import psutil
import pytest
from PIL import Image

from detrkit.api.predict import predict_video
from detrkit.classes import ClassMap
from detrkit.detections import ImageDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.video import Tracker
from detrkit.errors import DataError, UsageError
from tests.support.videos import read_video, square_frame, turn, write_video
from tests.unit.detectors.test_tiles import SquareStages


@pytest.fixture
def finder():
    return Detector(SquareStages(), ClassMap(("square",), (7,)))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_video_becomes_a_drawn_one_and_a_line_for_each_frame(finder, tmp_path, batch_size):
    video = write_video(tmp_path / "clip.mp4", sound=True)
    said = []
    result = predict_video(finder, video, out=tmp_path / "out", batch_size=batch_size, on_line=said.append)
    assert (result.frames, result.detections, result.tracks, result.faults) == (20, 20, None, ())
    assert result.notes == ("the drawn video has no sound",)
    lines = lines_of(result.lines)
    assert [json.loads(line) for line in said] == lines
    assert lines[3].keys() == {"frame", "time_s", "width", "height", "detections"}
    assert (lines[3]["frame"], lines[3]["time_s"], lines[3]["width"], lines[3]["height"]) == (3, 0.3, 64, 48)
    [entry] = lines[3]["detections"]
    assert (entry["image_id"], entry["category_id"]) == (3, 7)
    assert entry["bbox"] == pytest.approx([6, 10, 10, 10], abs=2)
    drawn = list(read_video(result.drawn))
    assert [second for second, _ in drawn] == pytest.approx([0.1 * i for i in range(20)], abs=1e-3)
    assert drawn[0][1].shape == (384, 512, 3)  # enlarged, as small pictures are
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".detrkit-written",
        "clip.jsonl",
        "clip.mp4",
    ]
    again = predict_video(finder, video, out=tmp_path / "out")  # over its own files
    assert lines_of(again.lines) == lines


def test_a_frame_gives_what_the_same_picture_gives(detector, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 3)
    result = predict_video(detector, video, out=tmp_path / "out", threshold=0.0)
    for line, (_, pixels) in zip(lines_of(result.lines), read_video(video), strict=True):
        Image.fromarray(pixels).save(tmp_path / "frame.png")
        found = detector.predict(tmp_path / "frame.png", threshold=0.0)
        assert [entry["score"] for entry in line["detections"]] == found.confidence.tolist()


def test_every_nth_frame_keeps_its_number_and_second(finder, tmp_path):
    result = predict_video(finder, write_video(tmp_path / "clip.mp4"), out=tmp_path / "out", every=8)
    assert [(line["frame"], line["time_s"]) for line in lines_of(result.lines)] == [(0, 0.0), (8, 0.8), (16, 1.6)]
    assert [second for second, _ in read_video(result.drawn)] == pytest.approx([0, 0.8, 1.6], abs=1e-3)


def test_boxes_of_a_turned_video_are_those_of_the_upright_picture(finder, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 2)
    turn(video)
    line = lines_of(predict_video(finder, video, out=tmp_path / "out").lines)[0]
    assert (line["width"], line["height"]) == (48, 64)
    assert line["detections"][0]["bbox"] == pytest.approx([28, 0, 10, 10], abs=2)


def test_an_object_keeps_its_number(finder, tmp_path):
    result = predict_video(finder, write_video(tmp_path / "clip.mp4"), out=tmp_path / "out", track=True)
    numbers = [line["detections"][0]["track_id"] for line in lines_of(result.lines)]
    assert numbers == [None] + [1] * 19
    assert result.tracks == 1


def test_weak_detections_keep_a_number_alive_and_classes_have_their_own():
    tracker, box = Tracker(10), np.array([[10, 10, 30, 30]], np.float32)
    numbers = []
    for step in range(30):
        class_id, score = (1, 0.9) if step >= 20 else (0, 0.3 if 5 <= step < 19 else 0.9)
        found = ImageDetections(box + step, np.array([score], np.float32), np.array([class_id]))
        numbers += tracker.update(found, found.scores >= 0.5, 0.1 * step).tolist()
    assert numbers[1:20] == [1] * 19
    assert numbers[21:] == [2] * 9
    for step in range(30, 60):
        tracker.update(ImageDetections(box[:0], np.zeros(0), np.zeros(0, np.int64)), np.zeros(0, bool), 0.1 * step)
    assert tracker._numbers == {}  # what is gone is forgotten


def test_ctrl_c_leaves_a_video_that_plays_and_whole_lines(finder, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 400)
    seen = []

    def on_line(line):
        seen.append(line)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGINT)

    result = predict_video(finder, video, out=tmp_path / "out", on_line=on_line)
    assert result.signal_number == signal.SIGINT
    assert 5 <= result.frames < 20
    assert len(lines_of(result.lines)) == len(list(read_video(result.drawn))) == result.frames


def test_no_frame_is_an_error_and_leaves_nothing(finder, tmp_path):
    video = write_video(tmp_path / "clip.mp4", movflags="faststart")
    content = video.read_bytes()
    video.write_bytes(content[: content.index(b"mdat") + 4])
    with pytest.raises(DataError, match="no frame could be decoded, and nothing was written"):
        predict_video(finder, video, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_video_itself_and_files_of_others_are_never_replaced(finder, tmp_path):
    video = write_video(tmp_path / "clip.mp4")
    before = video.read_bytes()
    with pytest.raises(UsageError, match="another"):
        predict_video(finder, video, out=tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/clip.jsonl").write_text("mine")
    with pytest.raises(UsageError, match=r"clip\.jsonl"):
        predict_video(finder, video, out=tmp_path / "out")
    assert video.read_bytes() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.jsonl"]


def test_frames_in_tiles(finder, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 2, size_wh=(192, 160))
    result = predict_video(finder, video, out=tmp_path / "out", tiles="64/16/only")
    assert lines_of(result.lines)[1]["detections"][0]["bbox"] == pytest.approx([2, 10, 10, 10], abs=2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(finder, tmp_path, monkeypatch):
    monkeypatch.setattr("detrkit.visual.drawing.LEAST_SIDE", 1)  # small frames stay small, and quick
    frames, sizes = 3000, []
    video = write_video(tmp_path / "clip.mp4", frames)

    def watch(line):
        if json.loads(line)["frame"] % 250 == 0:
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)

    result = predict_video(finder, video, out=tmp_path / "out", track=True, on_line=watch)
    assert result.frames == frames
    after = sizes[len(sizes) // 3 :]
    assert square_frame(0).nbytes * 2000 > 15e6  # what keeping the frames would cost
    assert max(after) - after[0] < 6e6, sizes
