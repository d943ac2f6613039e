"""No verb replaces a file that it did not write: every name that it writes is taken by something else first."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.files import LOCK
from tests.e2e.conftest import EPOCHS, Trained, run_here, run_well, train_arguments

PRECIOUS = b"precious"
SET = ("--set", "transforms.scales=[64]", "--set", "transforms.eval_size=64", "--set", "data.workers=0")
TINY = ("--model", "detr-tiny", "--init", "none", *SET, "--set", "train.batch_size=4")


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command that writes.

    Args:
        words: it, with RUN, DATA, PHOTOS and OUT to be filled in; OUT/NAME for a file.
        codes: exit codes of one that does its work.
    """

    words: str
    codes: Sequence[int] = (0,)


def words_of(verb: Verb, out: Path, run: Path, data: Path, photos: Sequence[Path]) -> list[str]:
    """The words of a verb's command, filled in."""
    filled: dict[str, Sequence[str]] = {
        "RUN": [str(run)],
        "DATA": [str(data)],
        "PHOTOS": [str(folder) for folder in photos],
        "TINY": TINY,
    }
    words = [part for word in verb.words.split(" ") for part in filled.get(word, [word])]
    return [str(out) + word[3:] if word[:3] == "OUT" else word for word in words]


FAST = {
    "predict": Verb("predict RUN PHOTOS --threshold 0 --out OUT"),
    "eval": Verb("eval RUN --latency 0 --resamples 20 --out OUT"),
    "eval of two": Verb("eval RUN --data DATA --data DATA --out OUT"),
    "eval under noise": Verb("eval RUN --corruptions gaussian_noise --severities 1 --out OUT"),
    "compare": Verb("compare RUN RUN --latency 0 --resamples 20 --out OUT"),
    "thresholds": Verb("thresholds RUN --out OUT/t.json"),
    "plot": Verb("plot RUN --out OUT/curves.png"),
    "plot a page": Verb("plot RUN --out OUT/curves.html"),
    "export": Verb("export RUN --format published --out OUT/model.pth"),
    "data check": Verb("data check DATA --html OUT/check.html", (0, 1)),
    "data check --fix": Verb("data check DATA --fix OUT", (0, 1)),
    "data stats": Verb("data stats DATA --model detr-tiny --html OUT/stats.html"),
    "data preview": Verb("data preview DATA --count 2 --draws 1 --model detr-tiny --out OUT"),
    "data convert": Verb("data convert DATA --to yolo --out OUT"),
    "data split": Verb("data split DATA --split train --out OUT"),
    "data sample": Verb("data sample DATA --count 4 --out OUT"),
    "data cache": Verb("data cache DATA --size 32 --out OUT"),
}
SLOW = {
    "train": Verb("train TINY --data DATA --epochs 1 --run OUT"),
    "tune": Verb("tune TINY --data DATA --epochs 1 --trials 1 --out OUT"),
    "lr range": Verb("tune TINY --data DATA --lr-range --steps 20 --out OUT"),
    "profile": Verb("profile TINY --data DATA --steps 1 --trace --out OUT"),
    "benchmark": Verb("benchmark detr-tiny --sizes 32 --repeats 1 --warm-up 0 --out OUT"),
    "preflight": Verb("preflight TINY --data DATA --seconds 1 --out OUT", (0, 1)),
}
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
Run = Callable[[Path], int]


@pytest.fixture
def command(tiny_run: Trained, tiny_data: Path, tmp_path: Path) -> Callable[[Verb], Run]:
    """Make of a verb a function of the folder to write to, which gives the exit code."""
    photos = tmp_path / "photos"
    for folder, name in (("a", "Shot.png"), ("b", "shot.png"), ("b", "other.jpg")):
        (photos / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), len(name), np.uint8)).save(photos / folder / name)

    def make(verb: Verb) -> Run:
        def run(out: Path) -> int:
            words = words_of(verb, out, tiny_run.run, tiny_data, [photos / "a", photos / "b"])
            return run_here(*words).exit_code

        return run

    return make


def state_of(folder: Path) -> dict[Path, object]:
    """Everything below a folder: what links lead to, what files hold."""
    return {
        path.relative_to(folder): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def plant(out: Path, names: Sequence[Path], kinds: Sequence[str], precious: Path) -> None:
    """Put something of the user's under each name, of one kind after the other."""
    for number, name in enumerate(names):
        path, kind = out / name, kinds[number % len(kinds)]
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            (path / "inside").mkdir(parents=True)
        elif kind == "link":
            path.symlink_to(precious)
        else:
            path.write_bytes(PRECIOUS)


@pytest.mark.parametrize("name", ALL)
def test_foreign_files_under_every_name_stay(name: str, command: Callable[[Verb], Run], tmp_path: Path):
    verb = {**FAST, **SLOW}[name]
    run, first = command(verb), tmp_path / "first"
    if "OUT/" in verb.words:
        first.mkdir()
    assert run(first) in verb.codes
    names = sorted(path.relative_to(first) for path in first.rglob("*") if not path.is_dir())
    written = [part for part in names if part.name != ".detrkit-written"]
    assert written
    precious = tmp_path / "outside.txt"
    precious.write_bytes(PRECIOUS)
    # all names at once, of every kind; then the last file alone
    for kinds, taken in ((["file"], names), (["link", "folder", "file"], written), (["link"], written[-1:])):
        out = tmp_path / "-".join([*kinds, str(len(taken))])
        plant(out, taken, kinds, precious)
        before = state_of(out)
        assert run(out) != 0
        assert {path: state_of(out).get(path) for path in before} == before
        assert precious.read_bytes() == PRECIOUS
    # what was changed since it was written is the user's
    for path in written:
        (first / path).unlink()
        (first / path).write_bytes(PRECIOUS)
    run(first)
    assert {(first / path).read_bytes() for path in written} == {PRECIOUS}


@pytest.mark.parametrize(
    "name",
    [
        *("predict", "eval", "plot a page", "data check", "export"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("compare", "thresholds")),
    ],
)
def test_what_a_verb_wrote_itself_it_writes_again(name: str, command: Callable[[Verb], Run], tmp_path: Path):
    run = command(FAST[name])
    assert run(tmp_path) in FAST[name].codes
    assert run(tmp_path) in FAST[name].codes


def test_the_pictures_keep_their_bytes(tiny_run: Trained, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("shot1.png", "shot2.png"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photos / name)
    before = state_of(photos)
    result = run_here("predict", tiny_run.run, photos, "--out", photos, "--threshold", "0")
    assert result.exit_code == 2
    assert str(photos / "shot1.png") in result.stderr
    assert state_of(photos) == before
    # earlier drawings, taken for pictures, are not drawn over either
    drawn = tmp_path / "drawn"
    run_well("predict", tiny_run.run, photos, "--out", drawn, "--threshold", "0")
    before = state_of(drawn)
    assert run_here("predict", tiny_run.run, drawn, "--out", drawn, "--threshold", "0").exit_code == 2
    assert state_of(drawn) == before


@pytest.mark.parametrize("is_link", [False, True])
def test_drawings_do_not_come_among_the_images_of_a_folder(is_link: bool, tiny_run: Trained, tmp_path: Path):
    photos, out = tmp_path / "photos", tmp_path / "link"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "shot.jpg")
    out.symlink_to(photos)
    result = run_here("predict", tiny_run.run, photos, "--out", out if is_link else photos)
    assert (result.exit_code, "give another folder" in result.stderr) == (2, True)
    assert [path.name for path in photos.iterdir()] == ["shot.jpg"]


def test_a_run_in_training_is_left_alone(tiny_run: Trained, tiny_data: Path, copy_of: Callable[[Path], Path]):
    run = copy_of(tiny_run.run)
    hold = "import sys; from pathlib import Path; from detrkit.files import sole_writer\n"
    hold += "with sole_writer(Path(sys.argv[1])): print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, run], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = state_of(run)
        for more in (("resume", run, "--epochs", "6"), ("train", "--run", run, "--epochs", "6", "--resume")):
            result = run_here(*more)
            assert (result.exit_code, "another process is at work in it" in result.stderr) == (2, True)
        assert run_here("train", "--data", tiny_data, "--run", run).exit_code == 2
        assert state_of(run) == before
        other.kill()  # what a killed training leaves is in nobody's way
    run_well("resume", run, "--epochs", "6")
    assert not (run / LOCK).exists()


def test_a_cache_leaves_the_folder_of_the_images(tmp_path: Path, tiny_data: Path):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    (data / "train2017").rename(data / "train")
    before = state_of(data)
    assert run_here("data", "cache", data, "--size", "32", "--out", data).exit_code == 2
    assert state_of(data) == before


def test_a_run_that_goes_on_leaves_a_picture_that_was_changed(tiny_data: Path, tmp_path: Path):
    run = tmp_path / "run"
    run_well(*train_arguments(tiny_data, run, epochs=1))
    assert (run / "curves.png").stat().st_size
    (run / "curves.png").write_bytes(PRECIOUS)
    out = run_well("resume", run, "--set", "train.epochs=2")
    assert (run / "curves.png").read_bytes() == PRECIOUS
    assert "curves.png" in out
    run_well("plot", run)
    (run / "curves.html").write_bytes(PRECIOUS)
    assert "curves-2.html" in run_well("plot", run)
    assert (run / "curves.html").read_bytes() == PRECIOUS


def foreign_weights(path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(3)}, "epoch": 3}, path)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "checkpoints/last.pt": foreign_weights,
    "checkpoints/best.pt": foreign_weights,
    "checkpoints/previous.pt": lambda path: path.write_bytes(PRECIOUS),
    "checkpoints/next.pt": lambda path: path.mkdir(),
    "metrics.jsonl": lambda path: path.write_text('{"step": 1, "loss": 0.5}\n' * 300),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_resume_leaves_what_no_run_wrote(name: str, tiny_run: Trained, copy_of: Callable[[Path], Path]):
    run = copy_of(tiny_run.run)
    (run / name).unlink(missing_ok=True)
    FOREIGN[name](run / name)
    before = state_of(run)
    for more in (("resume", run, "--epochs", "6"), ("train", "--run", run, "--epochs", "6", "--resume")):
        result = run_here(*more)
        assert result.exit_code == 2
        assert f"{run / name}: not written by a run of detrkit" in result.stderr
        assert state_of(run) == before


def test_resume_leaves_a_config_of_another_program(tiny_run: Trained, copy_of: Callable[[Path], Path]):
    run = copy_of(tiny_run.run)
    (run / "config.yaml").write_text("model: resnet\nlr: 1\n")
    assert "the config in the checkpoint counts" in run_well("resume", run, "--epochs", str(EPOCHS + 1))
    assert (run / "config.yaml").read_text() == "model: resnet\nlr: 1\n"


@pytest.mark.parametrize(
    ("kept", "planted", "named"),
    [
        ([], {"config.yaml": "data: {root: .}\n", "events.out.tfevents.1": "x"}, ["config.yaml", "events.out"]),
        (["config.yaml"], {"weights.txt": "mine"}, ["weights.txt"]),
        (["config.yaml", "classes.json"], {"metrics.jsonl": '{"kind": "mine"}\n'}, ["metrics.jsonl"]),
        (["config.yaml", "classes.json", "weights.txt"], {"metrics.jsonl": "mine"}, ["metrics.jsonl"]),
        (["config.yaml"], {"events.out.tfevents.1": "mine"}, ["events.out.tfevents.1"]),
    ],
)
def test_a_run_that_would_begin_anew_leaves_what_no_run_wrote(
    kept: list[str], planted: dict[str, str], named: list[str], tiny_run: Trained, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    for name in kept:
        shutil.copy(tiny_run.run / name, run / name)
    for name, text in planted.items():
        (run / name).write_text(text)
    before = state_of(run)
    result = run_here("resume", run)
    assert result.exit_code == 2
    assert all(name in result.stderr for name in named)
    assert state_of(run) == before


def test_the_demo_leaves_a_folder_that_holds_something(tmp_path: Path):
    for name in ("data/annotations/instances_train2017.json", "run/config.yaml", "eval/metrics.json", "a.txt"):
        out = tmp_path / name.replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(PRECIOUS)
        before = state_of(out)
        assert run_here("demo", "--out", out, "--images", "8", "--epochs", "1").exit_code == 2
        assert state_of(out) == before
