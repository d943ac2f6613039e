"""Detection on a Ray cluster: Ray Data shares parts of the list out to workers, each with the model.

Parts come back to the process that asked, which writes them: workers need pictures and model, and no shared disk
for results. A part whose worker dies is made again by another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from detrkit.detectors import parts
from detrkit.detectors.detector import DEFAULT_THRESHOLD, Detector
from detrkit.detectors.load import load_detector
from detrkit.detectors.parts import Merged, PictureResult
from detrkit.detectors.results import to_coco
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import DataError, ImageError, MissingExtraError, UsageError, counted
from detrkit.files import IMAGE_SUFFIXES, is_kind, make_folder, sole_writer
from detrkit.ops.sources import MOST_READERS, list_sources, warn_of_passed_over
from detrkit.threshold_file import Thresholds

PART_PICTURES = 256
_CPUS = 4  # of a worker, where nobody says how many workers there are

Say = Callable[[str], None]


def predict_on_ray(
    detector: Detector,
    model: str,
    source: str,
    out: Path,
    *,
    threshold: float | Thresholds | None = None,
    batch_size: int = 4,
    tiles: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    part_pictures: int = PART_PICTURES,
    say: Say = print,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Merged:
    """Detect objects in a folder, or a list, of pictures on a Ray cluster; killed, it goes on where it was.

    Joins the Ray session of this process or, by ``RAY_ADDRESS``, a running cluster; if there is neither, Ray is
    started on this machine.

    Args:
        detector: The model, loaded.
        model: What the workers load, under the same name on each machine.
        source: Folder, address of one in a bucket, or text file with a path or address a line.
        out: Folder for ``predictions.json`` and the parts.
        threshold: Least score, or thresholds by class; None: the model's own if it has any, otherwise 0.5.
        batch_size: Images, or tiles of them, that the model sees at once.
        tiles: Cut images into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        options: Further arguments of :func:`detrkit.detectors.load.load_detector`.
        workers: Processes; one for each GPU if not given, else for each four processors.
        part_pictures: Pictures of a part.
        say: Receives messages for people.
        progress: Receives parts done and in all.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: The folder holds parts of another model or list, or another process writes into it.
        DataError: There is no picture, or a worker failed more often than is tried.
    """
    ray = _import_ray()
    sources = list_pictures(source, say)
    detector = in_tiles(detector, tiles, batch_size)
    if threshold is None:
        threshold = detector.thresholds or DEFAULT_THRESHOLD
    # whole windows, so that batches are those of a run without parts
    window = detector.window(batch_size)
    plan = parts.make_plan(detector, sources, threshold, batch_size, -(-part_pictures // window) * window)
    make_folder(out, "predictions.json")
    folder = make_folder(out / parts.PARTS)
    with sole_writer(folder):
        missing = parts.begin(folder, plan)
        done = plan.parts - len(missing)
        say(f"{counted(len(sources), 'picture')} in {counted(plan.parts, 'part')}; {done} are there already")
        progress(done, plan.parts)
        if missing:
            arguments = {
                "model": str(Path(model).resolve()) if Path(model).exists() else model,
                "options": dict(options or {}),
                "threshold": threshold,
                "batch_size": batch_size,
                "tiles": tiles,
                "digest": plan.model,
            }
            rows = [{"part": part, "sources": [sources[row] for row in plan.rows(part)]} for part in missing]
            for part, results in _run(ray, rows, arguments, workers, detector.device.type != "cpu"):
                parts.write_part(folder, part, results)
                done += 1
                progress(done, plan.parts)
        return parts.merge(folder, plan, sources, out / "predictions.json")


def list_pictures(source: str, say: Say) -> list[str]:
    """Return the pictures of a folder, of one in a bucket, or of a list, each once, in order.

    Raises:
        UsageError: There is no such folder or list.
        DataError: It holds no picture.
    """
    path = Path(source)
    if "://" in source and not source.endswith(".txt"):
        found = _list_bucket(source)
    elif path.is_dir():
        listed = list_sources(source)[0]
        warn_of_passed_over(listed)
        found = [each.name for each in listed]
    elif path.suffix.lower() == ".txt" and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8; expected a path or address a line") from error
        names = [line.strip() for line in lines if line.strip()]
        found = [name if "://" in name else str(Path(name)) for name in names]
    else:
        raise UsageError(
            f"{source}: expected a folder, an address such as s3://bucket/folder, or a text file (.txt) with a "
            "path or address a line"
        )
    if not found:
        raise DataError(f"{source} holds no picture")
    unique = list(dict.fromkeys(found))
    if len(unique) < len(found):
        say(f"{source}: {counted(len(found) - len(unique), 'line')} named a picture again, which counts once")
    return unique


def detect_part(
    detector: Detector, sources: Sequence[str], threshold: float | Thresholds, batch_size: int
) -> list[PictureResult]:
    """Return what is found in each picture, or why it cannot be read, in order."""
    with tempfile.TemporaryDirectory() as place:
        local = _fetch(sources, Path(place))
        errors = {source: str(found) for source, found in local.items() if isinstance(found, ImageError)}
        paths = {str(found): source for source, found in local.items() if isinstance(found, Path)}

        def failed(name: str, error: ImageError) -> None:
            errors[paths[name]] = str(error).replace(name, paths[name])

        found = {}
        for item in detector.stream(list(paths), threshold, batch_size, failed):
            entries = to_coco(item.detections)
            found[paths[item.source]] = [{**entry, "file_name": paths[item.source]} for entry in entries]
    return [PictureResult(source, found.get(source, []), errors.get(source, "")) for source in sources]


def _fetch(sources: Sequence[str], place: Path) -> dict[str, Path | ImageError]:
    """Return the file of each picture: where it lies, or in a folder, where it was fetched to."""

    def fetch(numbered: tuple[int, str]) -> Path | ImageError:
        number, source = numbered
        if "://" not in source:  # of a folder, all pictures would be taken for this one
            is_folder = Path(source).is_dir()
            return ImageError(f"{source} is a folder, expected a picture") if is_folder else Path(source)
        try:
            system, path = _filesystem(source)
            with system.open_input_stream(path) as stream:
                content = stream.read()
        except (OSError, ValueError, ImportError) as error:
            return ImageError(f"{source}: cannot be read: {error}")
        target = place / f"{number}{Path(path).suffix}"
        target.write_bytes(content)
        return target

    with ThreadPoolExecutor(MOST_READERS) as pool:
        return dict(zip(sources, pool.map(fetch, enumerate(sources)), strict=True))


def _list_bucket(address: str) -> list[str]:
    """Return the addresses of the pictures right below one, by name."""
    from pyarrow import fs

    try:
        system, path = _filesystem(address)
        files = system.get_file_info(fs.FileSelector(path))
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{address} cannot be listed: {error}") from error
    names = sorted(one.base_name for one in files if one.is_file and is_kind(one.base_name, IMAGE_SUFFIXES))
    return [f"{address.rstrip('/')}/{name}" for name in names]


def _filesystem(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there: Arrow's own, or else fsspec's."""
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(address)
    except ValueError:  # a scheme that Arrow does not know
        import fsspec

        core: Any = fsspec.core
        arrow: Any = fs
        inner, path = core.url_to_fs(address)
        system = arrow.PyFileSystem(arrow.FSSpecHandler(inner))
    return system, path


class _Worker:
    """A process with the model."""

    def __init__(self, arguments: Mapping[str, Any]):
        self.arguments = arguments
        loaded = load_detector(arguments["model"], **arguments["options"])
        self.detector = in_tiles(loaded, arguments["tiles"], arguments["batch_size"])
        if parts.model_digest(self.detector) != arguments["digest"]:
            raise UsageError(f"{arguments['model']} is another model on this machine than where the command runs")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Detect in the pictures of a part."""
        threshold, batch_size = self.arguments["threshold"], self.arguments["batch_size"]
        found = detect_part(self.detector, [str(source) for source in row["sources"]], threshold, batch_size)
        return {"part": row["part"], "results": msgspec.json.encode(found)}


def _run(
    ray: Any, rows: Sequence[dict[str, Any]], arguments: Mapping[str, Any], workers: int | None, use_gpu: bool
) -> Iterator[tuple[int, list[PictureResult]]]:
    """Yield number and results of each part, as they come."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0)) if use_gpu else 0
    workers = min(workers or gpus or max(1, cpus // _CPUS), len(rows))
    # a worker has as many threads as it has processors; at least one is not all there is
    share = {"num_cpus": max(1, cpus // workers), "num_gpus": 1 if gpus else 0}
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    found = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(
        _Worker, fn_constructor_args=[dict(arguments)], compute=ray.data.ActorPoolStrategy(size=workers), **share
    )
    try:
        for row in found.iter_rows():
            yield int(row["part"]), msgspec.json.decode(row["results"], type=list[PictureResult])
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        cause = (str(getattr(error, "cause", None) or error).strip() or type(error).__name__).splitlines()[-1]
        raise DataError(
            f"prediction with Ray failed: {cause}; what was done is kept: the same command goes on from there"
        ) from error


def _import_ray() -> Any:
    """Import Ray with Ray Data."""
    try:
        import ray
        import ray.data
        import ray.data.exceptions
        import ray.exceptions
    except ImportError as error:
        raise MissingExtraError("ray[data]", "ray") from error
    return ray
