"""Frames of videos, streams and cameras: which, when, and what is lost."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from detrkit.errors import DataError, UsageError
from detrkit.ops.video import VideoReader, is_video, shown_name
from tests.support.videos import SIZE_WH, square_frame, turn, write_video


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        *((name, True) for name in ("clip.mp4", "A.MOV", "rtsp://u:p@camera/1", "0", "/dev/video3", "tcp://h:1")),
        *((name, True) for name in ("http://host/live.m3u8", "https://host/clip.mp4")),
        *((name, False) for name in ("photo.jpg", "folder", "https://host/a.JPG", "ftp://host/a.mp4", ".mp4", 3)),
    ],
)
def test_what_is_taken_for_a_video(source, expected):
    assert is_video(source) == expected


def test_a_folder_named_by_a_number_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("0").mkdir()
    assert not is_video("0")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "a:b %d.mp4"])
def test_all_frames_of_a_file_come_in_order_with_their_seconds(tmp_path, name):
    write_video(f"file:{tmp_path / name}")
    reader = VideoReader(tmp_path / name)
    found = list(reader.frames())
    assert [frame.number for frame in found] == list(range(20))
    assert [frame.time_s for frame in found] == pytest.approx([0.1 * i for i in range(20)], abs=0.002)
    assert np.abs(found[7].pixels.astype(int) - square_frame(7)).mean() < 4
    assert (reader.decoded, reader.faults(), reader.notes()) == (20, [], [])
    assert (reader.fps, reader.is_live) == (10, False)


def test_every_third_frame(tmp_path):
    reader = VideoReader(write_video(tmp_path / "a.mp4"), every=3)
    assert [frame.number for frame in reader.frames()] == list(range(0, 20, 3))
    assert reader.decoded == reader.total == 20


def test_a_variable_frame_rate_keeps_its_seconds(tmp_path):
    times = [0.0, 0.1, 0.5, 0.52, 2.0]
    reader = VideoReader(write_video(tmp_path / "a.mp4", 5, times_s=times))
    assert [frame.time_s for frame in reader.frames()] == pytest.approx(times, abs=0.002)
    assert reader.faults() == []


def test_a_turned_video_is_read_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2)
    turn(path)
    frame = next(VideoReader(path).frames())
    assert frame.pixels.shape == (*SIZE_WH, 3)
    assert np.abs(frame.pixels.astype(int) - np.rot90(square_frame(0), -1)).mean() < 4


def test_a_truncated_video_says_what_is_lacking(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    reader = VideoReader(path)
    found = sum(1 for _ in reader.frames())
    assert 20 < found < 95
    assert reader.lost == 100 - found
    assert "of 10.0 s: the file is cut off" in " ".join(reader.faults())


def test_a_damaged_video_says_how_many_frames_are_lost_or_have_faults(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, movflags="faststart", codec="libx264", size_wh=(160, 120))
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 1500
    for place in np.random.default_rng(0).integers(start, len(content), 100):
        content[place] ^= 0xFF
    path.write_bytes(content)
    reader = VideoReader(path)
    found = sum(1 for _ in reader.frames())
    assert found > 0
    assert reader.lost + reader.damaged > 0
    assert found + reader.lost >= 100
    assert str(reader.lost or reader.damaged) in reader.faults()[0]


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.mp4: there is no such video"):
        VideoReader(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("hello" * 100)
    with pytest.raises(DataError, match=r"text\.mp4: cannot be opened as a video: Invalid data"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(UsageError, match="every is 0"):
        VideoReader(tmp_path / "gone.mp4", every=0)


def test_a_camera_that_is_not_there_is_said():
    with pytest.raises(UsageError, match=r"97: there is no such video; cameras here: "):
        VideoReader("97")


def test_no_password_is_shown():
    assert shown_name("rtsp://me:secret@host/1") == "rtsp://host/1"
    with pytest.raises(DataError) as caught:
        VideoReader("rtsp://me:secret@127.0.0.1:9/1")
    assert "secret" not in str(caught.value)
    assert "refused" in str(caught.value)


def test_a_pipe_is_read_to_its_end(tmp_path):
    content = write_video(tmp_path / "a.ts").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    assert is_video(tmp_path / "pipe")
    assert sum(1 for _ in VideoReader(tmp_path / "pipe").frames()) == 20
    writer.join()


def serve(listener, content, times, pace_s=0.0):
    """Send a video to each who connects, so many times, piece by piece."""
    for _ in range(times):
        connection, _ = listener.accept()
        with connection:
            for start in range(0, len(content), 188 * 4):
                connection.sendall(content[start : start + 188 * 4])
                time.sleep(pace_s)
    listener.close()


@pytest.fixture
def stream(tmp_path):
    """The address of a live stream of 60 frames, that breaks after each of two times."""
    content = write_video(tmp_path / "a.ts", 60, fps=30).read_bytes()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener, content, 2, 0.002), daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(5)


def test_of_a_live_stream_the_newest_frame_is_next_and_a_broken_one_is_connected_to_again(stream):
    said = []
    reader = VideoReader(stream, say=said.append, retries_s=(0.05, 0.05))
    found = []
    for frame in reader.frames():
        found.append(frame)
        time.sleep(0.02)  # slower than they come
    assert reader.is_live
    assert reader.dropped > 0
    assert len(found) + reader.dropped == reader.decoded >= 100
    times = [frame.time_s for frame in found]
    assert all(one < other for one, other in itertools.pairwise(times))
    assert reader.reconnects == 1
    assert "the stream ended; connecting again in 0.05 s" in said[0]
    assert "given up after 2 tries to connect again" in reader.faults()[0]
    assert "dropped" in reader.notes()[0]


def test_who_stops_does_not_wait_for_a_frame_that_never_comes(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))
    content = write_video(tmp_path / "a.ts", 60, fps=30).read_bytes()
    connections = []

    def accept():
        connection, _ = listener.accept()
        connection.sendall(content)
        connections.append(connection)  # and is silent

    thread = threading.Thread(target=accept)
    thread.start()
    reader = VideoReader(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    deadline = time.monotonic() + 0.5
    assert len(list(reader.frames(lambda: time.monotonic() > deadline))) > 0
    assert time.monotonic() < deadline + 1.5
    thread.join()
    for one in (*connections, listener):
        one.close()
