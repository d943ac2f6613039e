"""Several processes evaluate one data set, each image on exactly one of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from detrkit.errors import DataError, DetrkitError
from detrkit.evaluation.coco import BoxEvaluator, ImageResults
from detrkit.types import ImageDetections

if TYPE_CHECKING:
    from detrkit.distributed import ProcessGroup


def collect_together(
    processes: ProcessGroup,
    evaluator: BoxEvaluator,
    share: Iterator[tuple[int, ImageDetections | ImageResults]],
    num_images: int,
    batch_size: int,
) -> None:
    """Take this process's detections; the first process then gets those of all.

    After each batch the processes tell each other of errors, so that none of them waits for one that failed.

    Args:
        processes: Processes.
        evaluator: Empty; on the first process it holds all images afterwards, elsewhere this process's.
        share: Image id and detections of this process's images, from batches dealt out in turn.
        num_images: Images of all processes.
        batch_size: Images that become known at once.

    Raises:
        DataError: One of the processes failed (raised on all of them), or an image is missing or there twice.
    """
    turns = math.ceil(math.ceil(num_images / batch_size) / processes.world_size)
    problem = ""
    for _ in range(turns):
        try:
            for image_id, detections in itertools.islice(share, batch_size):
                evaluator.add(image_id, detections)
        except DetrkitError as error:
            problem = str(error)
        if processes.any(bool(problem)):
            raise DataError(next(found for found in processes.all_gather(problem) if found))
    parts = processes.gather(evaluator.packed() if processes.rank else None)[1:]
    taken = len(evaluator) + sum(map(len, parts))
    for part in parts:
        evaluator.add_packed(part)
    if processes.rank == 0 and not len(evaluator) == taken == num_images:
        raise DataError(
            f"the processes evaluated {taken} images, {len(evaluator)} different ones of {num_images}; expected "
            "every image once"
        )
