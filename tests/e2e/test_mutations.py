"""Damaged files of every kind that detrkit reads: one clear error or a result, within 10 s and 1 GiB, and nothing
is written outside the target.

Other seeds: ``DETRKIT_MUTATION_SEED=7 pytest -m slow tests/e2e/test_mutations.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.config import Config, TransformConfig
from detrkit.data.formats import find_splits
from detrkit.data.read import read_split_files
from detrkit.families.detr.export import write_hub
from detrkit.families.weights import Weights
from tests.e2e.conftest import made_once, run_here, run_well, train_arguments
from tests.support.mutations import mutate_file
from tests.unit.families.conftest import build, small_config

SECONDS, BYTES = 10, 1 << 30
NETWORK = {
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_queries": 5,
    "transforms.scales": [32],
    "transforms.max_size": 48,
    "transforms.eval_size": 32,
    "train.batch_size": 2,
    "train.device": "cpu",
    "data.workers": 0,
}
SET = " ".join(f"--set {key}={str(value).replace(' ', '')}" for key, value in NETWORK.items())
FIXED = f"--epochs 1 --init none {SET}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: what is copied for a case, which of it is damaged, and the commands that read it.

    Args:
        needs: Folders and files of the materials.
        damaged: Patterns below the copy.
        commands: Words, with IN for the copy and OUT for the folder to write to.
        target: What in IN the commands may write.
        first: A command that makes what is damaged.
    """

    needs: Sequence[str]
    damaged: Sequence[str]
    commands: Sequence[str]
    target: str = ""
    first: str = ""


DATA_VERBS = (
    "data check IN/{0} --json",
    "data check IN/{0} --fix OUT",
    "data check IN/{0} --html OUT/x.html --no-duplicates",
    "data convert IN/{0} --to coco --out OUT",
    "data convert IN/{0} --to yolo --out OUT --json",
    "data convert IN/{0} --to voc --out OUT",
    "data stats IN/{0} --json",
    "data split IN/{0} --split train --out OUT",
    "data sample IN/{0} --count 2 --out OUT",
    "data cache IN/{0} --size 32 --out OUT",
)
PREDICT = "predict IN/{0} IN/coco/val --device cpu --out OUT --threshold 0"
EVAL = "eval IN/{0} --data IN/coco --latency 0 --resamples 10 --out OUT --device cpu"


def verbs(words: Sequence[str], *names: str) -> list[str]:
    return [word.format(*names) for word in words]


KINDS = {
    "coco": Kind(["coco"], ["coco/annotations/*.json"], verbs(DATA_VERBS, "coco")),
    "yolo": Kind(["yolo"], ["yolo/labels/*/*.txt", "yolo/data.yaml"], verbs(DATA_VERBS, "yolo")),
    "voc": Kind(["voc"], ["voc/Annotations/*/*.xml", "voc/ImageSets/Main/*.txt"], verbs(DATA_VERBS, "voc")),
    "panoptic": Kind(["panoptic"], ["panoptic/annotations/*.json"], verbs(DATA_VERBS, "panoptic")),
    "pictures": Kind(
        ["coco"],
        ["coco/train/*.*"],
        [*verbs(DATA_VERBS, "coco"), "data preview IN/coco --count 2 --draws 1 --out OUT"],
    ),
    "results": Kind(
        ["coco", "results.json"],
        ["results.json"],
        [
            EVAL.format("results.json"),
            "compare IN/results.json IN/results.json --data IN/coco --resamples 10 --latency 0 --out OUT",
            "thresholds IN/results.json --data IN/coco --out OUT/x.json",
        ],
    ),
    "config": Kind(
        ["coco", "run"],
        ["run/config.yaml"],
        [f"train --model detr-tiny --config IN/run/config.yaml --data IN/coco --run OUT {FIXED}"],
    ),
    "run": Kind(
        ["coco", "run"],
        ["run/config.yaml", "run/checkpoints/*.pt", "run/checkpoints/*.pt", "run/metrics.jsonl"],
        [
            PREDICT.format("run"),
            EVAL.format("run"),
            PREDICT.format("run/checkpoints/last.pt"),
            "resume IN/run --data IN/coco --epochs 2 --set train.device=cpu --set data.workers=0",
            "plot IN/run --out OUT/x.html",
            "export IN/run --format published --out OUT/x.pth",
        ],
        "run",
    ),
    "published": Kind(
        ["coco", "model.pth"],
        ["model.pth"],
        [
            PREDICT.format("model.pth").replace("/val ", "/val/002.png "),
            "export IN/model.pth --format hub --out OUT",
        ],
    ),
    "hub": Kind(
        ["coco", "hub"],
        ["hub/*.json", "hub/*.safetensors"],
        [PREDICT.format("hub"), "export IN/hub --format published --out OUT/x.pth"],
    ),
    "thresholds": Kind(
        ["coco", "run", "thresholds.json"],
        ["thresholds.json"],
        [f"{PREDICT.format('run').replace('--threshold 0', '')} --thresholds IN/thresholds.json"],
    ),
    "cache": Kind(
        ["coco"],
        ["coco-cache/*.npz"],
        [
            "data cache IN/coco --size 32 --out IN/coco-cache",
            f"train --model detr-tiny --data IN/coco --run OUT --set data.cache=IN/coco-cache {FIXED}",
        ],
        "coco-cache",
        "data cache IN/coco --size 32 --out IN/coco-cache",
    ),
}


def make_data(root: Path) -> None:
    """Write a small data set in every layout, and detections of it."""
    rng = np.random.default_rng(0)
    categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog & <owner>"}]
    (root / "coco" / "annotations").mkdir(parents=True)
    for split, count in (("train", 3), ("val", 2)):
        (root / "coco" / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            name = f"{number:03d}.{'jpg' if number % 2 else 'png'}"
            pixels = rng.integers(0, 255, (32 + number, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "coco" / split / name)
            images.append({"id": number, "file_name": name, "height": 32 + number, "width": 48})
            for class_id, x in ((3, 2), (7, 20)):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": class_id}
                box = [x + number, 5, 14, 12.5]
                corners = [x + number, 5, x + number + 14, 5, x + number + 14, 17.5, x + number, 17.5]
                entry |= {"bbox": box, "area": 175.0, "iscrowd": 0, "segmentation": [corners]}
                annotations.append(entry)
        annotations[0]["attributes"] = {"rotation": 0.0}
        annotations[1].pop("bbox")
        content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        (root / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for name in ("yolo", "voc"):
        run_well("data", "convert", root / "coco", "--to", name, "--out", root / name, "--copy")
    _write_panoptic(root / "panoptic", root / "coco")
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [3, 5, 14, 12], "score": 0.9}]
    boxes += [{"image_id": 2, "category_id": 7, "bbox": [22, 5, 14, 12.5], "score": 0.4}] * 2
    (root / "results.json").write_text(json.dumps(boxes))


def make_materials(root: Path) -> None:
    """Write small data and models, and what is measured with these."""
    make_data(root)
    network = {key.replace(".", "__"): value for key, value in NETWORK.items()}
    run_well(*train_arguments(root / "coco", root / "run", 1, **network))
    _write_weights(root)
    run_well("thresholds", root / "run", "--data", root / "coco", "--out", root / "thresholds.json")


def _write_weights(root: Path) -> None:
    """Write weights as the original code and transformers do, of a model with ResNet-18."""
    config = small_config()
    weights = Weights(build(config, 2).state_dict(), config, ClassMap(("cat", "dog"), (0, 1)), "x")
    sizes = TransformConfig(scales=(32,), max_size=48, eval_size=32)
    write_hub(root / "hub", weights, Config(transforms=sizes))
    args = argparse.Namespace(nheads=4, dilation=False, hidden_dim=32, num_queries=10, dataset_file="own")
    torch.save({"model": dict(weights.state), "args": args}, root / "model.pth")


def _write_panoptic(root: Path, coco: Path) -> None:
    shutil.copytree(coco / "train", root / "train")
    segments = root / "annotations" / "panoptic_train"
    segments.mkdir(parents=True)
    images, annotations = [], []
    for number, file in enumerate(sorted((root / "train").iterdir()), start=1):
        with Image.open(file) as image:
            width, height = image.size
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[4:20, 2:18, 0], pixels[5:20, 20:40, 0] = 1, 2
        Image.fromarray(pixels).save(segments / f"{file.stem}.png")
        images.append({"id": number, "file_name": file.name, "height": height, "width": width})
        info = [{"id": 1, "category_id": 1, "iscrowd": 0, "area": 256, "bbox": [2, 4, 16, 16]}]
        info.append({"id": 2, "category_id": 2, "iscrowd": 0, "area": 300, "bbox": [20, 5, 20, 15]})
        annotations.append({"image_id": number, "file_name": f"{file.stem}.png", "segments_info": info})
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("mutation-materials", make_materials, tmp_path_factory)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("mutation-data", make_data, tmp_path_factory)


class Hang(BaseException):
    """A command took too long."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """End what runs too long or takes memory without end."""

    def stop(_signal: int, _frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def memory(which: str) -> int:
    """Return resident bytes: VmRSS now, VmHWM at the most since it was set back."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024


def snapshot(folder: Path, targets: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Return size and time of change of all files and folders but the targets."""
    found = {}
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(where, name) not in targets]
        for name in [*files, *folders]:
            path = Path(where, name)
            status = path.lstat()
            if path not in targets:
                found[str(path)] = (status.st_size, status.st_mtime_ns) if name in files else (0, 0)
    return found


def fault_of(result: Result | None, seconds: float, grown: int, before: object, after: object) -> str:
    """Return what a command did that none may do; empty if it did well."""
    if result is None:
        return "hang"
    shown = result.exception is not None and not isinstance(result.exception, SystemExit)
    if shown or result.exit_code not in (0, 1, 2):
        return "".join(traceback.format_exception(*result.exc_info)[-14:]) if result.exc_info else "exit code"
    if "Traceback" in result.output:
        return "a traceback is printed"
    if result.exit_code and not result.output.strip():
        return "it fails without a word"
    if len(result.stderr) > 20_000:
        return f"{len(result.stderr)} bytes of error messages: {result.stderr[:200]}"
    if grown > BYTES:
        return f"{grown >> 20} MiB of memory"
    if before != after:
        return f"writes outside: {set(before.items()) ^ set(after.items())}"
    return "" if seconds < SECONDS else "slow"


@dataclasses.dataclass(frozen=True)
class Case:
    """A damaged file, the command that read it, and what came out."""

    name: str
    damage: str
    file: str
    words: Sequence[str]
    result: Result | None
    fault: str


def run_case(kind: str, seed: int, materials: Path, folder: Path, sound: str = "") -> Case:
    """Damage a copy of a file and let a command read it; or let ``sound`` read it as it is."""
    rng = random.Random(f"{kind} {seed}")
    row = KINDS[kind]
    source, out = folder / "in", folder / "out"
    for name in row.needs:
        copy = shutil.copytree if (materials / name).is_dir() else shutil.copy
        source.mkdir(parents=True, exist_ok=True)
        copy(materials / name, source / name)
    (folder / "outside").mkdir()
    (folder / "outside" / "1.png").write_bytes((materials / "coco" / "val" / "002.png").read_bytes())
    if row.first:
        run_well(*row.first.replace("IN", str(source)).split())
    path = rng.choice(sorted(source.glob(rng.choice(row.damaged))))
    damage = "nothing" if sound else mutate_file(path, rng)
    command = sound or rng.choice(row.commands)
    words = [word.replace("IN", str(source)).replace("OUT", str(out)) for word in command.split()]
    if str(out / "x") in " ".join(words):
        out.mkdir()
    targets = [out, *([source / row.target] if row.target else [])]
    before, rss = snapshot(folder, targets), memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result, start = None, time.perf_counter()
    with contextlib.chdir(folder), limits(), warnings.catch_warnings(), contextlib.suppress(Hang):
        warnings.simplefilter("ignore")
        result = run_here(*words)
    seconds, grown = time.perf_counter() - start, memory("VmHWM") - rss
    fault = fault_of(result, seconds, grown, before, snapshot(folder, targets))
    return Case(f"{kind} {seed}", damage, str(path.relative_to(source)), words, result, fault)


def run_cases(kind: str, seeds: Sequence[int], materials: Path, folder: Path) -> list[str]:
    """Return what went wrong in some cases, in words."""
    faults = []
    for seed in seeds:
        case = run_case(kind, seed, materials, folder / f"{kind}-{seed}")
        if case.fault:
            faults.append(f"{case.name} ({case.damage} of {case.file}): {' '.join(case.words)}\n{case.fault}")
        else:
            shutil.rmtree(folder / f"{kind}-{seed}")
    return faults


QUICK = {"coco": 20, "yolo": 20, "voc": 20, "panoptic": 15, "results": 15}


@pytest.mark.parametrize("kind", QUICK)
def test_damaged_files_give_one_clear_error_or_a_result(kind, small_data, tmp_path):
    faults = run_cases(kind, range(QUICK[kind]), small_data, tmp_path)
    assert not faults, "\n\n".join(faults)


def written_objects(folder: Path) -> int:
    """Count what looks like an object in the files of a data set, by signs that no reader of detrkit goes by."""
    count = 0
    for path in folder.rglob("*"):
        if path.suffix == ".xml":
            count += path.read_bytes().count(b"<xmin>")
        elif path.suffix == ".txt" and "labels" in path.parts:
            count += sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        elif path.suffix == ".json":
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                count += len(json.loads(path.read_bytes())["annotations"])
    return count


def checked(folder: Path) -> tuple[dict[str, int], int] | None:
    """Return the findings of ``data check`` and the objects that are read; None where it refuses the data."""
    result = run_here("data", "check", folder, "--json", "--no-images")
    if result.exit_code:
        return None
    objects = [len(read_split_files(files, may_lose=True)[0].labels) for files in find_splits(folder).values()]
    return {found["kind"]: found["count"] for found in json.loads(result.stdout)["findings"]}, sum(objects)


@pytest.mark.parametrize(("kind", "count"), [("coco", 10), ("yolo", 10), ("voc", 25)])
def test_an_object_that_damage_destroys_is_said(kind, count, small_data, tmp_path):
    """What a damaged file still shows of objects is read, or the check says more than of the sound files."""
    sound, silent = checked(small_data / kind), []
    assert sound is not None
    first = 1000 * int(os.environ.get("DETRKIT_MUTATION_SEED", 0))
    for seed in range(first, first + count):
        rng, folder = random.Random(f"{kind} {seed}"), tmp_path / str(seed) / kind
        shutil.copytree(small_data / kind, folder)
        path = rng.choice(sorted(folder.parent.glob(rng.choice(KINDS[kind].damaged))))
        mutate_file(path, rng)
        found = checked(folder)
        if found is not None and found[0] == sound[0] and found[1] < written_objects(folder):
            silent.append(f"{seed}: {path}: {found[1]} objects read, {written_objects(folder)} written")
    assert not silent, "\n".join(silent)


def test_bytes_that_are_no_text_in_the_name_of_an_image_are_one_clear_error(small_data, copy_of):
    file = copy_of(small_data / "panoptic") / "annotations" / "panoptic_train.json"
    file.write_bytes(file.read_bytes().replace(b"001.jpg", b"0\xff\xfe1.jpg"))
    result = run_here("data", "stats", file.parent.parent)
    assert result.exit_code == 1
    assert "byte" in result.stderr


def test_a_value_of_a_megabyte_does_not_fill_the_screen():
    result = run_here("train", "--set", f"train.epochs={'x' * 10**6}")
    assert result.exit_code == 2
    assert "train.epochs" in result.stderr
    assert len(result.stderr) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_command_does_its_work_on_sound_files(kind, materials, tmp_path):
    for number, command in enumerate(KINDS[kind].commands):
        case = run_case(kind, 0, materials, tmp_path / str(number), sound=command)
        assert not case.fault
        assert case.result.exit_code == 0, f"{command}: {case.result.output}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_damaged_files_of_each_kind(kind, materials, tmp_path):
    first = 1000 * int(os.environ.get("DETRKIT_MUTATION_SEED", 1))
    faults = run_cases(kind, range(first, first + 200), materials, tmp_path)
    assert not faults, "\n\n".join(faults)
