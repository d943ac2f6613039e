"""``detrkit.drift``: are the pictures that a model is sent like those that it was made for?"""

from __future__ import annotations

import os
from pathlib import Path

from detrkit.api.common import Say, Source
from detrkit.api.compare import Progress
from detrkit.api.load import load
from detrkit.data.formats.output import check_new_folder
from detrkit.detectors.on_split import read_split_for
from detrkit.errors import UsageError, counted
from detrkit.files import make_folder, write_json, write_text
from detrkit.monitoring.drift import Drift, find_drift
from detrkit.monitoring.observations import (
    Observed,
    Reference,
    choose,
    model_key,
    observe,
    read_reference,
    read_samples,
    write_reference,
)
from detrkit.monitoring.proposals import write_proposals

REFERENCE = "reference.json"
FILES = ("drift.json", "drift.md", REFERENCE)
IMAGES = 1000


def drift(
    samples: Source,
    model: Source,
    data: Source | None = None,
    *,
    split: str = "val",
    reference: Source | None = None,
    out: Source = "drift",
    images: int = IMAGES,
    label: int = 0,
    device: str = "auto",
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> Drift:
    """Compare the pictures that a server kept with those that its model was made for, and detections in both.

    The model detects anew in the pictures, at its own thresholds, whatever threshold a client asked for.

    Args:
        samples: Folder that ``detrkit serve --sample-dir`` wrote, or any folder of pictures.
        model: The model that is served; see :func:`detrkit.load`.
        data: Data set that the model was made for; a run's own if neither this nor ``reference`` is given.
        split: Its split; one that the model was not trained on, since scores in training are higher.
        reference: ``reference.json`` of an earlier call with the same model, in the place of data.
        out: Folder for ``drift.json``, ``drift.md``, and ``reference.json``.
        images: Greatest number of pictures of each side, drawn at random.
        label: Number of the least sure pictures to write to ``label`` in ``out``, as a COCO data set whose
            annotations are the model's detections.
        device: Device, as in :func:`detrkit.load`.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Raises:
        UsageError: Data and reference are both given, or the reference is another model's.
        DataError: The samples or the data cannot be read, or are too few.
    """
    if reference is not None and data is not None:
        raise UsageError("both data and a reference are given; give one of them")
    pictures, notes = read_samples(Path(samples))
    folder = make_folder(out, *FILES)
    if label:
        check_new_folder(folder / "label")
    detector = load(model, device=device)

    def look(files: list[Path], what: str) -> list[Observed]:
        """Detect in pictures, and note which cannot be read."""
        broken: list[str] = []
        tell = None if progress is None else lambda done, count: progress(f"detecting in {what}", done, count)
        found = list(
            observe(detector, choose(files, images), on_error=lambda name, _: broken.append(name), progress=tell)
        )
        if len(files) > images:
            notes.append(f"{images:,} of {len(files):,} {what} were drawn")
        if broken:
            notes.append(f"{counted(len(broken), 'picture')} of the {what} cannot be read, such as {broken[0]}")
        return found

    # what the model was made for
    if reference is not None:
        before = read_reference(Path(reference), detector)
    else:
        part, where = read_split_for([detector], split, data)
        for line in part.lines():
            say(line)
        files = [Path(part.files.images) / part.index.file_name(row) for row in range(len(part.index))]
        seen = look(files, f"pictures of {split}")
        name = f"{Path(where).resolve().name or where}, {split}"
        before = Reference(name, model_key(detector), tuple(one.observation for one in seen))
        if split == "train":
            notes.append(
                "the reference is what the model was trained on, where its scores are higher than elsewhere"
            )
    # what it is sent
    observed = look(pictures, "samples")
    found = find_drift(
        before.pictures,
        [one.observation for one in observed],
        data=before.data,
        class_names=detector.class_map.names,
        notes=notes,
    )
    if label:
        write_proposals(folder / "label", observed, detector.class_map, os.fspath(model), label)
    write_reference(folder / REFERENCE, before)
    write_json(folder / "drift.json", found.to_dict())
    write_text(folder / "drift.md", found.markdown() + "\n")
    return found
