"""Sources of images: paths, folders, arrays, PIL images and tensors, read as uint8 RGB. No torch is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from detrkit.errors import DataError, ImageError, UsageError, counted, listed
from detrkit.files import IMAGE_SUFFIXES, is_kind, walk_files
from detrkit.ops.images import decode_pixels
from detrkit.ops.pixel_range import FULL, WIDE_MODES

logger = logging.getLogger(__name__)

MOST_READERS = 8
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")  # a path object has lost one of its slashes

Item = TypeVar("Item")
Read = TypeVar("Read")

if TYPE_CHECKING:
    from torch import Tensor

    from detrkit.config import PixelRange


@dataclasses.dataclass(frozen=True)
class NamedSource:
    """One image yet to be read.

    Args:
        name: The path as given, or ``image 3`` for an image in memory.
        content: The path or the image.
        skippable: Found by listing a folder, so that a broken one is reported and passed over.
    """

    name: str
    content: Any
    skippable: bool = False

    def read(self, pixel_range: PixelRange = FULL) -> Tensor:
        """Return the image as a tensor, uint8 ``[3, H, W]`` RGB; see :meth:`pixels`."""
        import torch

        return torch.from_numpy(self.pixels(pixel_range)).permute(2, 0, 1)

    def pixels(self, pixel_range: PixelRange = FULL) -> np.ndarray:
        """Return the image as uint8 ``[H, W, 3]`` RGB; see :func:`detrkit.ops.images.decode_image`.

        Raises:
            ImageError: The file is missing or cannot be decoded.
            UsageError: The image in memory is of a kind, dtype or shape that is not an image's.
        """
        if isinstance(self.content, Path):
            if not self.content.exists():
                raise ImageError(f"{self.name}: there is no such image file or folder")
            return decode_pixels(self.content, None, pixel_range)[0]
        if isinstance(self.content, Image.Image):
            return _from_pil(self.content, self.name, pixel_range)
        if _is_tensor(self.content):
            return _from_tensor(self.content, self.name)
        return _from_array(self.content, self.name)


def list_sources(source: Any) -> tuple[list[NamedSource], bool]:
    """List the images that ``source`` names; True with them if it named exactly one.

    Args:
        source: A path, a folder (its image files by name, sub-folders left out), a NumPy array HWC or HW, a
            PIL image, a torch tensor CHW, or a list or tuple of any of these.

    Raises:
        DataError: A folder holds no image.
        UsageError: ``source`` is of another type.
    """
    if isinstance(source, (list, tuple)):
        found: list[NamedSource] = []
        for position, item in enumerate(source):
            found += _expand(item, f"image {position}")
        return found, False
    found = _expand(source, "image")
    return found, not (isinstance(source, (str, os.PathLike)) and Path(source).is_dir())


def list_folder(folder: Path) -> list[Path]:
    """List the image files of a folder by name, without its sub-folders and hidden files.

    Raises:
        DataError: There is none.
    """
    images = sorted(path for path in folder.iterdir() if is_kind(path.name, IMAGE_SUFFIXES) and path.is_file())
    if not images:
        kinds, left = " ".join(sorted(IMAGE_SUFFIXES)), passed_over(folder)
        raise DataError(f"{folder}: no image in this folder, expected files with {kinds}{left and f'; {left}'}")
    return images


def warn_of_passed_over(sources: Sequence[NamedSource]) -> None:
    """Log what of the folders that were listed is not read."""
    for folder in dict.fromkeys(source.content.parent for source in sources if source.skippable):
        if left := passed_over(folder):
            logger.warning("%s: %s", folder, left)


def passed_over(folder: Path) -> str:
    """Say what of a folder is not read: files of other kinds, and images in its sub-folders; empty if nothing."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    others = Counter(Path(name).suffix.lower() for name in names if not is_kind(name, IMAGE_SUFFIXES))
    deeper = [name for name in walk_files(folder, *IMAGE_SUFFIXES) if "/" in name]
    parts = []
    if others:
        kinds = listed([suffix or "without suffix" for suffix, _ in others.most_common()], 5)
        parts.append(f"{counted(others.total(), 'file')} of another kind ({kinds})")
    if deeper:
        folders = sorted({name.rpartition("/")[0] for name in deeper})
        where = counted(len(folders), "sub-folder")
        parts.append(f"{counted(len(deeper), 'image')} in {where}: give these too, as {folder / folders[0]}")
    return f"not read: {', '.join(parts)}" if parts else ""


def read_windows(
    read: Callable[[Item], Read], items: Sequence[Item], window: int
) -> Iterator[list[tuple[Item, Future[Read]]]]:
    """Read items in threads, so many at once; the next are read while the caller works on these.

    Args:
        read: Reads an item, in a thread.
        items: All that there are.
        window: Items that are handed out together.
    """
    with threads_of_generator(max(1, min(len(items), os.cpu_count() or 1, MOST_READERS))) as pool:

        def submit(start: int) -> list[tuple[Item, Future[Read]]]:
            return [(item, pool.submit(read, item)) for item in items[start : start + window]]

        ahead = submit(0)
        for start in range(0, len(items), window):
            current, ahead = ahead, submit(start + window)
            yield current


@contextlib.contextmanager
def threads_of_generator(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that a generator may use, and end them without waiting, also when its caller stops early.

    A generator that was left is ended by the garbage collector, in any thread and at any line: in one that just
    starts, Python holds the lock that waiting for threads takes, and both would wait for ever.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _expand(item: Any, name: str) -> list[NamedSource]:
    if isinstance(item, (str, os.PathLike)):
        if not os.fspath(item):
            raise UsageError(f"{name} has an empty path, expected that of a file or folder")
        if address := _URL.match(os.fspath(item)):
            scheme, rest = address[1], os.fspath(item)[address.end() :]
            if scheme.lower() == "file":
                raise UsageError(f"{os.fspath(item)} is a URL; only paths are read: give /{rest}")
            how = f" (curl -O {scheme}://{rest})" if scheme.lower() in ("http", "https", "ftp") else ""
            raise UsageError(f"{scheme}://{rest} is a URL; only files are read: fetch it{how} and give the file")
        path = Path(item)
        if path.is_dir():
            return [NamedSource(str(file), file, skippable=True) for file in list_folder(path)]
        return [NamedSource(str(path), path)]
    if isinstance(item, (np.ndarray, Image.Image)) or _is_tensor(item):
        return [NamedSource(name, item)]
    raise UsageError(
        f"{name} is a {type(item).__name__}, expected a path, a folder, a NumPy array [H, W, 3], "
        "a PIL image, a torch tensor [3, H, W], or a list of these"
    )


def _is_tensor(item: Any) -> bool:
    """Return whether something is a tensor of torch, which nobody has made where torch is not imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Tensor)


def _from_pil(image: Image.Image, name: str, pixel_range: PixelRange) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in WIDE_MODES:  # the same pixels must not depend on whether Pillow or detrkit opened them
            content = io.BytesIO()
            upright.save(content, format="TIFF")
            return decode_pixels(content.getvalue(), None, pixel_range)[0]
        if upright.mode in ("P", "PA"):  # Pillow warns when a transparent palette goes to RGB in one step
            upright = upright.convert("RGBA")
        upright = upright.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL decodes lazily, so a cut-off file shows only here
        raise ImageError(f"{name}: the PIL image cannot be decoded: {error}") from error
    return _from_array(np.array(upright), name)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    layouts, other = "[H, W], [H, W, 3] or [H, W, 4]", "[3, H, W]: use array.transpose(1, 2, 0)"
    _check_pixels(f"{name} is a NumPy array", array.dtype == np.uint8, array, 2, layouts, other)
    return _three_channels(array)


def _from_tensor(tensor: Tensor, name: str) -> np.ndarray:
    if tensor.ndim == 2:
        tensor = tensor[None]
    layouts, other = "[H, W], [3, H, W] or [4, H, W]", "[H, W, 3]: use tensor.permute(2, 0, 1)"
    _check_pixels(f"{name} is a torch tensor", str(tensor.dtype) == "torch.uint8", tensor, 0, layouts, other)
    return _three_channels(tensor.detach().cpu().numpy().transpose(1, 2, 0))


def _three_channels(image: np.ndarray) -> np.ndarray:
    """Repeat gray and drop a fourth channel (alpha), as when Pillow converts to RGB.

    The copy lets go of the caller's memory, makes negative strides (BGR to RGB by [..., ::-1]) acceptable to
    torch, and read-only arrays safe.
    """
    three = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[:, :, :3]
    return np.array(three, order="C")


def _check_pixels(
    what: str, is_uint8: bool, pixels: np.ndarray | Tensor, axis: int, layouts: str, other: str
) -> None:
    """Check that an image in memory is uint8, its channels on an axis, 0 or 2; ``other`` says how to turn it."""
    if not is_uint8:
        raise UsageError(
            f"{what} of dtype {pixels.dtype}, expected a uint8 one, {layouts}, of values 0 to 255, not "
            "normalised; values 0 to 1 become that by (image * 255).round() and a cast"
        )
    shape = list(pixels.shape)
    is_volume = len(shape) == 3 and 0 not in shape
    if not is_volume or shape[axis] not in (1, 3, 4):
        hint = "; pass several images as a list" if len(shape) == 4 else ""
        if is_volume and shape[2 - axis] in (1, 3, 4):
            hint = f"; it looks like {other}"
        raise UsageError(f"{what} of shape {shape}, expected {layouts}{hint}")
