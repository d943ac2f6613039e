"""``detrkit.export``: write a model for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from detrkit.api.common import Source
from detrkit.errors import UsageError
from detrkit.families.build import CLASSES_SUFFIX, get_family, read_weights
from detrkit.families.writers import HUB_FILES, get_writers
from detrkit.files import atomic_file, check_free
from detrkit.threshold_file import find_threshold_file, read_thresholds, threshold_path, write_thresholds


def export(model: Source, out: Source, *, layout: Literal["published", "hub"], preset: str | None = None) -> Path:
    """Write a model's weights in another layout; the tensors stay bit-equal, its thresholds go with them.

    Args:
        model: Anything that :func:`load` takes.
        out: A ``.pth`` file for ``published``, a folder for ``hub``.
        layout: ``published``: as the DETR authors published theirs. ``hub``: safetensors and config for Hugging
            Face transformers.
        preset: Preset the weights are for, where the file cannot tell.

    Returns:
        The file or folder written.
    """
    weights, config = read_weights(model, preset)
    path = Path(out)
    writers = get_writers(get_family(config.model), f"{path} cannot be written")
    thresholds = find_threshold_file(model)
    outputs = [path, path.with_suffix(CLASSES_SUFFIX)]
    if layout == "hub":
        outputs = [path / name for name in HUB_FILES]
    check_free(*outputs, *([] if thresholds is None else [threshold_path(path)]))
    if layout == "published":
        if path.suffix not in (".pth", ".pt"):
            raise UsageError(f"{path} should be a .pth file, since the published layout is one file")
        writers.published(path, weights.state, config)
        with atomic_file(path.with_suffix(CLASSES_SUFFIX)) as file:
            file.write(json.dumps(weights.class_map.to_dict(), indent=1) + "\n")
    else:
        writers.hub(path, weights, config)
    if thresholds is not None:
        write_thresholds(threshold_path(path), read_thresholds(thresholds, weights.class_map))
    return path
