"""Downloads of weights and archives: resumed after a kill, checked by hash, under their name only when whole.

While a file is fetched, its bytes lie in ``NAME.part`` and the server's word for this version of it in
``NAME.part.version``. A later call goes on at the end of the part file if the server still has that version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import errno
import functools
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from detrkit.errors import DownloadError, WeightsError
from detrkit.files import make_folder, sync_folder

Report = Callable[[str, int, int | None], None]
"""Called with what is being done, and the bytes done and in all (None if not known)."""

_BLOCK = 2**16
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)$")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def no_report(*_what: object) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """Patience with a server.

    Args:
        attempts: failures in a row, without a byte in between, before giving up
        first_wait_s: wait after the first failure, doubled after each further one
        longest_wait_s: longest wait that the server did not ask for
        longest_asked_s: longest ``Retry-After`` that is waited for
        timeout_s: silence after which a connection counts as lost
    """

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_s: float = 300.0
    timeout_s: float = 30.0


def cache_dir() -> Path:
    """Return the folder of downloads: ``$DETRKIT_CACHE``, or detrkit's folder in the user's cache."""
    given = os.environ.get("DETRKIT_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "detrkit"


def is_url(source: str) -> bool:
    """Return whether a source is an address rather than a path."""
    return source.startswith(("https://", "http://", "file://"))


def file_name_of(url: str) -> str:
    """Return the file name at the end of an address; empty if it ends in none."""
    return Path(unquote(urlsplit(url).path)).name


def size_text(count: int) -> str:
    """Format a number of bytes for people: 19.3 GB, 815.6 MB, 450 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def download_weights(
    url: str, sha256: str | None = None, *, folder: Path | None = None, progress: bool = True
) -> Path:
    """Return the path of a weights file in the cache, downloaded if it is not there yet.

    Args:
        url: http, https or file address
        sha256: SHA-256 or leading hexadecimal digits of it; None takes the digits that the file name ends with,
            as torch.hub's files do (``detr-r50-e632da11.pth``)
        folder: folder for the file; ``weights`` in the cache if None
        progress: show progress on standard error

    Raises:
        WeightsError: The address cannot be reached, or the hash is wrong.
    """
    from filelock import FileLock

    name = file_name_of(url)
    if not name:
        raise WeightsError(f"{url} does not end in a file name; expected the address of a weights file")
    match = _HASH_IN_NAME.search(name)
    sha256 = sha256 or (match[1] if match else "")
    path = (folder or cache_dir() / "weights") / name
    if path.exists():
        return path
    make_folder(path.parent)
    # Processes of one training ask at the same time: one fetches, the others wait and find the file.
    with FileLock(path.with_name(f".{name}.lock")), transfer_progress(hidden=not progress) as report:
        if not path.exists():
            try:
                by_hand, say = f"give its path, or put it at {path}", _to_stderr if progress else no_report
                download(url, path, sha256=sha256, by_hand=by_hand, say=say, report=report)
            except DownloadError as error:
                raise WeightsError(f"cannot fetch {error}") from error
    return path


def download_hub_model(hub_id: str) -> Path:
    """Return the local folder of a model on the Hugging Face hub: its config and safetensors.

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


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    md5: str = "",
    size: int | None = None,
    by_hand: str = "put it there",
    retry: Retry | None = None,
    say: Callable[[str], None] = print,
    report: Report = no_report,
) -> None:
    """Download a file; it gets its name only when it is whole, its hashes are right and it is on the disk.

    Args:
        url: http, https or file address
        path: target file, in a folder that exists; only one process may fetch it at a time
        sha256: published SHA-256 or leading digits of it; empty if none is published
        md5: the same for MD5
        size: published number of bytes
        by_hand: what to do with a file that was fetched elsewhere, for error messages
        retry: patience with the server
        say: called with messages for people
        report: called with progress

    Raises:
        DownloadError: The server cannot be reached or refuses, a hash is wrong, or the disk is full.
    """
    transfer = _Transfer(url, path, bool(sha256 or md5), size, by_hand, retry or Retry(), say, report)
    # What an earlier run left behind may be what is damaged: then the file is begun anew, once.
    for resumed in (transfer.kept > 0, False):
        with disk_errors(path):
            transfer.run()
            wrong = mismatch(transfer.part, sha256=sha256, md5=md5, size=size, report=report)
            if wrong is None:
                transfer.finish()
                return
        transfer.discard()
        if not resumed:
            break
        say(f"{path.name}: {wrong}; starting over")
    raise DownloadError(
        f"{url}: {wrong}. Nothing of it was kept. Try again; if it happens again, the file is damaged there or no "
        "longer the published one"
    )


def mismatch(
    path: Path, *, sha256: str = "", md5: str = "", size: int | None = None, report: Report = no_report
) -> str | None:
    """Return what is not as published about a file, in words; None if nothing."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes, expected {size:,}"
    for kind, name, expected in (("SHA-256", "sha256", sha256), ("MD5", "md5", md5)):
        if expected and not (digest := hash_of(path, name, report)).startswith(expected.lower()):
            return f"its {kind} is {digest}, expected {expected}"
    return None


def hash_of(path: Path, name: str, report: Report = no_report) -> str:
    """Return the hash of a file in hexadecimal digits; ``name`` is sha256 or md5."""
    hasher = hashlib.new(name, usedforsecurity=False)
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
            done += len(block)
            report(f"checking {path.name.removesuffix('.part')}", done, total)
    return hasher.hexdigest()


def need_space(folder: Path, count: int | None) -> None:
    """Check that a disk can hold this many bytes more.

    Raises:
        DownloadError: It cannot.
    """
    free = shutil.disk_usage(folder).free
    if count is not None and count > free:
        raise DownloadError(
            f"{folder}: {size_text(count)} are needed and {size_text(free)} are free; free some space, or choose "
            "a folder on another disk"
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do about a full disk.

    Raises:
        DownloadError: There was no space left while writing ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = size_text(shutil.disk_usage(path.parent).free)
        raise DownloadError(
            f"{path.parent}: no space left while writing {path.name} ({error.strerror}; {free} free). "
            "What was fetched is kept: free some space and run the same command again"
        ) from error


class _TryAgainError(Exception):
    """A failure that may pass; ``wait_s`` is the wait that the server asks for."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclasses.dataclass
class _Transfer:
    """The bytes of one file on their way into its part file."""

    url: str
    path: Path
    has_hash: bool
    size: int | None
    by_hand: str
    retry: Retry
    say: Callable[[str], None]
    report: Report

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def version(self) -> Path:
        """File with the address, and the entity tag or time of change that the server gave."""
        return self.path.with_name(f"{self.path.name}.part.version")

    @property
    def kept(self) -> int:
        """Bytes of the part file; 0 if it is not there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def _elsewhere(self) -> str:
        return f"Without a network, fetch the file elsewhere and {self.by_hand}"

    def run(self) -> None:
        """Fill the part file, trying again with longer and longer waits.

        Raises:
            DownloadError: It failed too often in a row, or the server refuses.
        """
        failures = 0
        while True:
            before = self.kept
            try:
                self._attempt()
                return
            except _TryAgainError as error:
                failures = 1 if self.kept > before else failures + 1
                time.sleep(self._wait_s(error, failures))

    def finish(self) -> None:
        """Give the file its name after its bytes are on the disk, and put the name there too."""
        with self.part.open("r+b") as file:
            os.fsync(file.fileno())
        self.part.replace(self.path)
        sync_folder(self.path.parent)
        self.version.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete what was fetched."""
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def _attempt(self) -> None:
        """Ask for the rest of the file, or all of it, and write what comes."""
        start, validator = self.kept, self._validator()
        # Without either only luck would tell that two halves are of one version.
        if start and not (validator or self.has_hash):
            start = 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and validator:
            headers["If-Range"] = validator
        with self._ask(headers) as response:
            range_ = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
            length = response.headers.get("Content-Length") or ""
            # The server has nothing after the end of the part file: it is whole, or of another version.
            if response.status == 416:
                if range_ and int(range_[2]) == start:
                    return
                self.discard()
                raise _TryAgainError("what was kept of the file does not belong to the one that is there now")
            # It goes on where the part file ends, or sends all of the file as it cannot or it is another one now.
            if response.status == 206:
                if range_ is None or range_[1] != str(start):
                    raise DownloadError(f"{self.url}: the server sent another range than was asked for")
                total: int | None = int(range_[2])
                self._check_size(total, start)
                self.say(f"{self.path.name}: going on after {size_text(start)} of {size_text(int(range_[2]))}")
            else:
                total = int(length) if length.isdigit() else None
                self._check_size(total, 0)
                if start:
                    self.say(f"{self.path.name}: the server cannot go on, or has another file now; starting over")
                start = 0
                self.part.unlink(missing_ok=True)
                self._note_version(response.headers)
            self._write(response, start, total)

    def _check_size(self, total: int | None, done: int) -> None:
        """Refuse a file that is not the published one, or that the disk cannot hold."""
        if self.size is not None and total not in (None, self.size):
            raise DownloadError(
                f"{self.url}: the server has {total:,} bytes, expected {self.size:,}: the file at this address is "
                "no longer the published one"
            )
        need_space(self.path.parent, None if total is None else total - done)

    def _write(self, response: IO[bytes], done: int, total: int | None) -> None:
        """Write the body of an answer behind what is there."""
        with self.part.open("ab") as file:
            while block := _read(response):
                file.write(block)
                done += len(block)
                self.report(f"fetching {self.path.name}", done, total)
        if total is not None and done < total:
            raise _TryAgainError(f"the connection was cut after {done:,} of {total:,} bytes")

    def _ask(self, headers: dict[str, str]) -> Any:
        """Return the answer to a GET request, its body not read yet: status 200, 206 or 416."""
        # No compression is asked for, so that ranges count the bytes of the file itself.
        request = urllib.request.Request(self.url, headers={"User-Agent": "detrkit", **headers})
        try:
            return _opener().open(request, timeout=self.retry.timeout_s)
        except urllib.error.HTTPError as error:
            if error.code == 416 and headers:
                return error
            answer = f"the server answered {error.code} {http.client.responses.get(error.code, '')}".strip()
            wait_s = _retry_after(error.headers.get("Retry-After"))
            error.close()
            if error.code in _TRY_AGAIN:
                raise _TryAgainError(answer, wait_s) from error
            raise DownloadError(
                f"{self.url}: {answer}, expected the file; the address may have moved. {self._elsewhere}"
            ) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DownloadError(f"{self.url}: the certificate of the server is not valid: {error}") from error
            if isinstance(error.reason, str) or self.url.startswith("file:"):  # an unknown kind, or no such file
                raise DownloadError(f"{self.url}: {error.reason}. {self._elsewhere}") from error
            raise _TryAgainError(_reason(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(_reason(error)) from error

    def _wait_s(self, error: _TryAgainError, failures: int) -> float:
        """Return the seconds to wait before trying again, and say them.

        Raises:
            DownloadError: It is not worth waiting.
        """
        retry = self.retry
        if failures >= retry.attempts:
            raise DownloadError(
                f"{self.url}: {error}, {failures} times in a row. What was fetched is kept: run the same command "
                f"again to go on. {self._elsewhere}"
            ) from error
        if (error.wait_s or 0) > retry.longest_asked_s:
            raise DownloadError(
                f"{self.url}: {error} and asks to wait {error.wait_s:,.0f} s; run the same command again then"
            ) from error
        wait_s = max(min(retry.first_wait_s * 2.0 ** (failures - 1), retry.longest_wait_s), error.wait_s or 0.0)
        self.say(f"{self.path.name}: {error}; trying again in {wait_s:.3g} s ({failures} of {retry.attempts - 1})")
        return wait_s

    def _validator(self) -> str:
        """Return what ``If-Range`` may hold of the version that was begun; empty if nothing."""
        with contextlib.suppress(OSError, ValueError):
            url, validator = self.version.read_text(encoding="utf-8").split("\n")
            return validator if url == self.url else ""
        return ""

    def _note_version(self, headers: Any) -> None:
        """Write down a strong entity tag, or the time of change (RFC 9110, 13.1.5)."""
        tag = headers.get("ETag") or ""
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""
        self.version.write_text(f"{self.url}\n{validator}", encoding="utf-8")


def _read(response: IO[bytes]) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(_reason(error)) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Follow within http and https, but never from https to http, where anyone could answer."""
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise DownloadError(f"{req.full_url} leads on to {newurl!r}, which is not encrypted; not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache  # reading the certificates takes longer than a small request
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https, through the proxies of the environment, and for files."""
    web, opener = urllib.request, urllib.request.OpenerDirector()
    schemes = (web.ProxyHandler, web.UnknownHandler, web.HTTPHandler, web.HTTPSHandler, web.FileHandler)
    for kind in (*schemes, web.HTTPDefaultErrorHandler, web.HTTPErrorProcessor, _Redirects):
        opener.add_handler(kind())
    return opener


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header: a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _reason(error: Any) -> str:
    if isinstance(error, TimeoutError):
        return "the server fell silent"
    if isinstance(error, socket.gaierror):
        return f"the name of the server cannot be found ({error.strerror}); is there a network?"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was cut"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def transfer_progress(hidden: bool) -> Iterator[Report]:
    """Show bytes, speed and time left as a bar on standard error, where that is a terminal."""
    if hidden or not sys.stderr.isatty():
        yield no_report
        return
    from rich import progress
    from rich.console import Console

    text = progress.TextColumn("{task.description}", markup=False)
    speed, left = progress.TransferSpeedColumn(), progress.TimeRemainingColumn()
    console = Console(stderr=True)
    with progress.Progress(
        text, progress.BarColumn(), progress.DownloadColumn(), speed, left, console=console
    ) as bar:

        def report(title: str, done: int, total: int | None) -> None:
            if not bar.tasks or bar.tasks[0].description != title:
                for task in bar.task_ids:
                    bar.remove_task(task)
                # What an earlier run fetched counts as done, not as speed.
                bar.add_task(title, total=total, completed=done)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield report


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
