"""Fetching weights over the network into a cache, checked by SHA-256."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path
from urllib.parse import unquote, urlparse

from detrkit.errors import WeightsError


def cache_dir() -> Path:
    """Where downloads are kept: ``$DETRKIT_CACHE``, or detrkit's folder in the user's cache."""
    given = os.environ.get("DETRKIT_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "detrkit"


def is_url(source: str) -> bool:
    """Whether a source is an address rather than a path."""
    return source.startswith(("https://", "http://", "file://"))


def download_weights(url: str, sha256: str | None = None, *, progress: bool = True) -> Path:
    """The local path of a file at an address, fetched if it is not there yet.

    The file appears under its name only when it is whole and its hash is right.

    Args:
        url: http, https or file address.
        sha256: Expected SHA-256 or leading hexadecimal digits of it; None takes the digits that the file name
            ends with, as torch.hub's files do (``detr-r50-e632da11.pth``).
        progress: Show a progress bar.

    Raises:
        WeightsError: The address cannot be reached or the hash is wrong.
    """
    from torch.hub import HASH_REGEX, download_url_to_file

    name = Path(unquote(urlparse(url).path)).name
    if not name:
        raise WeightsError(f"{url} does not end in a file name; expected the address of a weights file")
    if sha256 is None:
        match = HASH_REGEX.search(name)
        sha256 = match.group(1) if match else None
    path = cache_dir() / "weights" / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(url, str(path), sha256, progress=progress)
    except urllib.error.URLError as error:
        raise WeightsError(
            f"cannot fetch {url}: {getattr(error, 'reason', error)}. Without a network, fetch the file elsewhere "
            f"and give its path, or put it at {path}"
        ) from error
    except RuntimeError as error:  # torch.hub's word for a wrong hash; it has removed the file
        raise WeightsError(
            f"{url} was fetched but is damaged or not the published file: {error}. Try again; nothing was kept"
        ) from error
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def download_hub_model(hub_id: str) -> Path:
    """The local folder of a model on the Hugging Face hub: its config and safetensors.

    Raises:
        WeightsError: The hub cannot be reached, or has no such model in safetensors.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=["config.json", "preprocessor_config.json", "*.safetensors"]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"cannot fetch {hub_id} from the Hugging Face hub: {str(error).splitlines()[0]}. "
            "If you meant a file or folder, no such path exists here"
        ) from error
    path = Path(folder)
    if not list(path.glob("*.safetensors")):
        raise WeightsError(f"{hub_id} has no .safetensors file; ask for a repository or revision that has")
    return path
