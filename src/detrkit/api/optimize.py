"""``detrkit.optimize``: the frontier of a model's accuracy against its latency on this machine."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from detrkit.api.common import Say, Source
from detrkit.api.export import export_bundle
from detrkit.data.split import Split
from detrkit.detectors.accuracy import AccuracyData
from detrkit.detectors.detector import Detector
from detrkit.detectors.journal import Journal, study_of
from detrkit.detectors.load import make_detector
from detrkit.detectors.on_split import read_split_for
from detrkit.errors import DataError, UsageError
from detrkit.export.quantize import CALIBRATION_IMAGES, Int8Options
from detrkit.families.build import load_model
from detrkit.files import make_folder, write_json
from detrkit.machine import this_machine, usable_cpus
from detrkit.optimizing.bench import BATCH_SIZES, INT8, REFERENCE, Bench
from detrkit.optimizing.page import write_frontier
from detrkit.optimizing.result import KNEE, Optimization
from detrkit.optimizing.search import search_frontier

GATE = 0.5
JOURNAL = "optimize.jsonl"
RESULTS = ("results.json", "optimize.html", "optimize.png")
BUNDLE = "bundle"
CALIBRATION = "train"
"""Split that INT8 takes its scales from."""


def optimize(
    model: Source,
    data: Source | None = None,
    *,
    split: str = "val",
    target: str = "cpu",
    out: Source = "optimize",
    pick: str | None = None,
    gate: float = GATE,
    preset: str | None = None,
    image_folder: Source | None = None,
    say: Say = lambda _line: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Optimization:
    """Measure variants of a trained model, accuracy against latency, and recommend the fastest that is as good.

    Called again with the same ``out`` after it was stopped, it goes on with what is not measured yet.

    Args:
        model: One of detrkit's own models, as :func:`detrkit.load` takes it, trained.
        data: Folder of the data set, or a COCO JSON file; a run's own if not given.
        split: Name of the split.
        target: Where the model shall run; ``cpu``, this machine's.
        out: Folder for ``results.json``, ``optimize.html``, ``optimize.png``, and ``optimize.jsonl`` that each
            result is written to as it comes.
        pick: Point to write as a bundle into the folder ``bundle`` of ``out``: its name in the table, or ``knee``
            for the recommended one.
        gate: AP points that the recommended point may lose, at the worse end of the 95 % interval.
        preset: Preset of the weights, where the file cannot tell.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Raises:
        UsageError: Something is asked wrongly, or ``out`` holds results of another model, data or machine.
        DataError: The data cannot be read, or the model finds nothing in it.
    """
    # what is asked for, before the long work
    if target != "cpu":
        raise UsageError(f"target is {target!r}, expected cpu; other devices are not measured yet")
    if not 0 < gate < 100:
        raise UsageError(f"gate is {gate}, expected AP points above 0 and below 100, such as {GATE}")
    built = load_model(model, preset)
    if built.config.model.masks:
        raise UsageError(
            f"{os.fspath(model)} has masks, which optimize does not measure: it would choose by AP of boxes alone"
        )
    whole = make_detector(built, device="cpu", name=os.fspath(model))
    part, _ = read_split_for([whole], split, data, image_folder=image_folder, pixels=True)
    folder = make_folder(out, *RESULTS)
    for line in part.lines():
        say(line)
    calibration = _calibration(whole, data, split, image_folder, say)
    # measured, each result written down
    machine = f"{this_machine()}, {usable_cpus()} threads"
    calibrated = 0 if calibration is None else len(calibration.index)
    study = {**study_of(whole, part), "machine": machine, "calibration images": calibrated}
    journal = Journal(folder / JOURNAL, study)
    if journal.results:
        say(f"{journal.path} holds {len(journal.results)} results; going on")
    with tempfile.TemporaryDirectory(prefix="detrkit-") as scratch:
        tell = progress or (lambda *_step: None)
        bench = Bench(built, part, journal, folder, Path(scratch), calibration, say, tell)
        _check_finds(bench, gate, split)
        points, refused = search_frontier(bench, gate)
        about = (os.fspath(model), str(part.files.annotations), split, len(part.index), machine, gate)
        found = Optimization(*about, points, refused)
        named = [found.whole, *([found.knee] if found.knee is not None else [])]
        rates = {
            point.name: {size: bench.throughput(point.variant, point.runtime, size) for size in BATCH_SIZES}
            for point in named
        }
    found = dataclasses.replace(found, throughput=rates)
    # written, the bundle last: what was measured is not lost with it
    write_json(folder / "results.json", found.to_dict())
    write_frontier(folder, found)
    if pick is not None:
        found = dataclasses.replace(
            found, picked=_write_picked(found, pick, model, preset, data or built.config.data.root, folder)
        )
        write_json(folder / "results.json", found.to_dict())
    return found


def _check_finds(bench: Bench, gate: float, split: str) -> None:
    """Raise DataError if the whole model finds so little that one which finds nothing would pass the gate."""
    ap = bench.accuracy(bench.whole)["AP"]
    if ap is None:
        raise DataError(f"no object in {split} is of a class that the model knows; choose another split (--split)")
    if 100 * ap <= gate:
        raise DataError(
            f"the whole model has AP {100 * ap:.2f} % on {split}: a model that finds nothing would pass a gate of "
            f"{gate:g} points; train the model first, or measure on data that it was trained for"
        )


def _write_picked(
    found: Optimization, pick: str, model: Source, preset: str | None, data: Source | None, folder: Path
) -> str:
    """Write a point as a bundle, proved on pictures of the split too; return its name for other commands.

    Raises:
        UsageError: There is no such point.
    """
    point = found.find(pick)
    if point is None:
        if pick == KNEE:
            raise UsageError(f"no bundle was written: {'; '.join(found.verdict())}; --pick NAME takes another")
        names = ", ".join(one.name for one in found.front)
        raise UsageError(f"no point is called {pick!r}; expected {KNEE}, or one of the table such as {names}")
    path, runtime = folder / BUNDLE, point.runtime.removesuffix(INT8)
    measured, int8 = None, None
    if runtime != point.runtime:
        assert data is not None  # INT8 was calibrated on it
        measured, int8 = AccuracyData(data, found.split), Int8Options(CALIBRATION, found.gate)
    export_bundle(model, path, preset=preset, variant=point.variant, accuracy=measured, int8=int8)
    return str(path) if runtime == REFERENCE else f"{path}@{runtime}"


def _calibration(
    whole: Detector, data: Source | None, split: str, image_folder: Source | None, say: Say
) -> Split | None:
    """Return some images to calibrate INT8 with, none of which is measured on; None if there are none."""
    try:
        if split == CALIBRATION or image_folder is not None:
            raise DataError(f"it is calibrated on {CALIBRATION}, in the data set's own folder")
        part, _ = read_split_for([whole], CALIBRATION, data, pixels=True)
    except (DataError, UsageError) as error:
        say(f"INT8 is left out: {error}")
        return None
    count = min(CALIBRATION_IMAGES, len(part.index))
    rows = np.unique(np.linspace(0, len(part.index) - 1, count).round().astype(int))
    return dataclasses.replace(part, index=part.index.select(rows))
