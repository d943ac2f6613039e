"""Fetching the bytes of one file into a partial file that a later run can go on with."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from detrkit.curation.fetch.entry import Archive, size_text
from detrkit.curation.fetch.web import Identity, Policy, TryAgainError, ask, first_byte, identity, read_block
from detrkit.errors import DataError
from detrkit.files import atomic_file

Result = TypeVar("Result")
Say = Callable[[str], None]
Report = Callable[[str, int, int | None], None]
"""Called with what is being done, and the bytes done and in all (None if not known)."""

_REPORT_EVERY_S = 0.1
_JOIN_S = 3.0
_STATE_BYTES = 1024
"""A state is padded so that it never grows: room for all but the digits of what is done."""


@dataclasses.dataclass(frozen=True)
class Talk:
    """How a fetch speaks: to people, and to a progress bar."""

    say: Say
    report: Report


class ChangedError(Exception):
    """What was fetched so far does not belong to what the server has now."""


@dataclasses.dataclass
class State:
    """What of a partial file is done; written beside it.

    Args:
        url: Address.
        size: Bytes in all.
        etag: Entity tag of the version that is being fetched.
        modified: Its time of change.
        piece_bytes: Size of a piece; the last one may be shorter.
        done: Bytes done of each piece, from its start.
    """

    url: str
    size: int
    etag: str | None
    modified: str | None
    piece_bytes: int
    done: list[int]

    @classmethod
    def new(cls, url: str, found: Identity, piece_bytes: int) -> State:
        """Nothing done yet."""
        assert found.size is not None
        return cls(url, found.size, found.etag, found.modified, piece_bytes, [0] * -(-found.size // piece_bytes))

    @classmethod
    def read(cls, path: Path) -> State | None:
        """What an earlier run wrote; None if nothing, or nothing that makes sense."""
        try:
            state = cls(**json.loads(path.read_text(encoding="utf-8")))
            pieces = -(-state.size // state.piece_bytes)
            fits = len(state.done) == pieces and all(
                0 <= done <= state.length(piece) for piece, done in enumerate(state.done)
            )
        except (OSError, ValueError, TypeError, ZeroDivisionError):
            return None
        return state if fits else None

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all; on a full disk, write over it, which needs no space."""
        text = json.dumps(dataclasses.asdict(self))
        text = text.ljust(_STATE_BYTES + len(self.done) * len(str(self.piece_bytes)))
        try:
            with atomic_file(path) as file:
                file.write(text)
        except OSError:
            with path.open("r+", encoding="utf-8") as file:
                file.write(text)

    def length(self, piece: int) -> int:
        """Bytes of a piece."""
        return min(self.piece_bytes, self.size - piece * self.piece_bytes)

    @property
    def identity(self) -> Identity:
        """The version of the file that is being fetched."""
        return Identity(self.size, self.etag, self.modified)


def fetch_bytes(
    archive: Archive, partial: Path, state_path: Path, connections: int, policy: Policy, talk: Talk
) -> None:
    """Fill the partial file, going on with what of it is there.

    Raises:
        ChangedError: The file at the address is no longer the one that was begun.
        DataError: The server refuses, or could not be reached ``policy.attempts`` times in a row.
    """
    range_of_one = {"Range": "bytes=0-0"}
    first = retried(archive, policy, talk, lambda: ask(archive.url, range_of_one, policy.timeout_s))
    with first:
        found = identity(first)
        if archive.size is not None and found.size not in (None, archive.size):
            raise DataError(
                f"{archive.url}: the server has {found.size:,} bytes, expected {archive.size:,}: the file at this "
                "address is no longer the published one"
            )
        if first.status == 200:
            _fetch_whole(archive, first, partial, state_path, policy, talk)
            return
    if found.size is None:
        raise DataError(f"{archive.url}: the server sent a part of the file without saying of how much")
    state = _state_to_go_on_with(archive, found, partial, state_path, policy)
    need_space(partial, state.size - sum(state.done))
    _Transfer(archive, partial, state_path, state, policy, talk).run(connections)


def need_space(path: Path, count: int | None) -> None:
    """Raise before the work if a disk cannot hold this many bytes more.

    Raises:
        DataError: It cannot.
    """
    free = shutil.disk_usage(path.parent).free
    if count is not None and count > free:
        raise DataError(
            f"{path.parent}: {size_text(count)} are needed and {size_text(free)} are free; free some space, "
            "or give a folder on another disk with --out"
        )


def retried(
    archive: Archive,
    policy: Policy,
    talk: Talk,
    action: Callable[[], Result],
) -> Result:
    """Do it until it works, with longer and longer waits.

    Raises:
        DataError: It failed too often.
    """
    failures = 0
    while True:
        try:
            return action()
        except TryAgainError as error:
            failures += 1
            time.sleep(_wait_s(archive, error, failures, policy, talk))


def _wait_s(archive: Archive, error: TryAgainError, failures: int, policy: Policy, talk: Talk) -> float:
    """Seconds to wait before trying again, said to people; raises if it is not worth waiting."""
    if failures >= policy.attempts:
        raise DataError(
            f"{archive.url}: {error}, {failures} times in a row. What was fetched is kept: run the same command "
            f"again to go on. Without a network, fetch the file elsewhere and put it as {archive.file_name} into "
            "the folder archives of the data set"
        ) from error
    if error.wait_s is not None and error.wait_s > policy.longest_asked_wait_s:
        raise DataError(
            f"{archive.url}: {error} and asks to wait {error.wait_s:,.0f} s; run the same command again then"
        ) from error
    wait_s = policy.wait_s(failures, error.wait_s)
    talk.say(f"{archive.file_name}: {error}; trying again in {wait_s:.3g} s ({failures} of {policy.attempts - 1})")
    return wait_s


def _state_to_go_on_with(
    archive: Archive, found: Identity, partial: Path, state_path: Path, policy: Policy
) -> State:
    """The state of an earlier run if its data are of the same version, or a new one."""
    state = State.read(state_path) if partial.exists() else None
    if state is not None and state.url == archive.url:
        if state.identity != found:
            raise ChangedError("the file at its address has changed since it was begun")
        # Without a validator only a hash could tell afterwards that two halves are of different versions.
        if (found.validator or archive.sha256 or archive.md5) and partial.stat().st_size == state.size:
            return state
    state = State.new(archive.url, found, policy.piece_bytes)
    with partial.open("wb") as file:
        file.truncate(state.size)
    state.write(state_path)
    return state


def _fetch_whole(
    archive: Archive,
    first: http.client.HTTPResponse,
    partial: Path,
    state_path: Path,
    policy: Policy,
    talk: Talk,
) -> None:
    """Fetch from a server that gives no ranges: in one go, from the start each time.

    ``first`` is the answer of such a server to a request for the first byte: all of the file.
    """
    answers = iter([first])
    if partial.exists():
        talk.say(f"{archive.file_name}: this server cannot go on in the middle; starting from its beginning")
        state_path.unlink(missing_ok=True)

    def one_go() -> None:
        with next(answers, None) or ask(archive.url, {}, policy.timeout_s) as response, partial.open("wb") as file:
            size, done = identity(response).size, 0
            need_space(partial, size)
            while block := read_block(response, policy.block_bytes):
                file.write(block)
                done += len(block)
                talk.report(f"fetching {archive.file_name}", done, size)
        if size is not None and done < size:
            raise TryAgainError(f"the connection was cut after {done:,} of {size:,} bytes")

    retried(archive, policy, talk, one_go)


class _Transfer:
    """One file being fetched in pieces by several threads.

    ``state.done[i]`` is changed only by the thread that has piece i, and only after the bytes went to the file.
    """

    def __init__(
        self, archive: Archive, partial: Path, state_path: Path, state: State, policy: Policy, talk: Talk
    ):
        self.archive, self.partial, self.state_path, self.state = archive, partial, state_path, state
        self.policy, self.talk = policy, talk
        self._stop, self._ended = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        unfinished = [piece for piece, done in enumerate(state.done) if done < state.length(piece)]
        self._waiting = iter(unfinished)
        self._unfinished, self._running = len(unfinished), 0

    def run(self, connections: int) -> None:
        """Fetch what is missing; the state is on the disk when this ends, however it ends."""
        kept = sum(self.state.done)
        if kept:
            self.talk.say(
                f"{self.archive.file_name}: going on after {size_text(kept)} of {size_text(self.state.size)}"
            )
        threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(min(connections, self._unfinished))
        ]
        self._running = len(threads)
        try:
            for thread in threads:
                thread.start()
            self._watch()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(_JOIN_S)  # one that waits for the network ends with the process: it writes no more
            with contextlib.suppress(OSError):  # on a full disk the state of the last second stays
                self._save()
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        saved_at = time.monotonic()
        while self._running and self._error is None:
            self._ended.wait(_REPORT_EVERY_S)
            self._ended.clear()
            self.talk.report(f"fetching {self.archive.file_name}", sum(self.state.done), self.state.size)
            if time.monotonic() - saved_at >= self.policy.save_every_s:
                self._save()
                saved_at = time.monotonic()
        self.talk.report(f"fetching {self.archive.file_name}", sum(self.state.done), self.state.size)

    def _save(self) -> None:
        """Write the state down, after the data that it speaks of are on the disk."""
        done = list(self.state.done)
        with self.partial.open("r+b") as file:
            os.fsync(file.fileno())
        dataclasses.replace(self.state, done=done).write(self.state_path)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    piece = next(self._waiting, None)
                if piece is None:
                    return
                self._fetch_piece(piece)
        except BaseException as error:  # it is raised again where people can see it
            with self._lock:
                self._error = self._error or error
            self._stop.set()
        finally:
            with self._lock:
                self._running -= 1
            self._ended.set()

    def _fetch_piece(self, piece: int) -> None:
        failures = 0
        while not self._stop.is_set() and self.state.done[piece] < self.state.length(piece):
            before = self.state.done[piece]
            try:
                self._read_range(piece)
            except TryAgainError as error:
                failures = failures + 1 if self.state.done[piece] == before else 1
                self._stop.wait(_wait_s(self.archive, error, failures, self.policy, self.talk))

    def _read_range(self, piece: int) -> None:
        """Fetch the rest of a piece and write it where it belongs."""
        start = piece * self.state.piece_bytes + self.state.done[piece]
        end = piece * self.state.piece_bytes + self.state.length(piece)
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self.state.identity.validator:
            headers["If-Range"] = self.state.identity.validator
        with ask(self.archive.url, headers, self.policy.timeout_s) as response:
            if response.status != 206 or identity(response) != self.state.identity:
                raise ChangedError("the file at its address changed while it was fetched")
            if first_byte(response) != start:
                raise DataError(f"{self.archive.url}: the server sent another range than was asked for")
            with self.partial.open("r+b", buffering=0) as file:
                file.seek(start)
                while start < end and not self._stop.is_set():
                    block = read_block(response, min(self.policy.block_bytes, end - start))
                    if not block:
                        raise TryAgainError("the connection was cut")
                    if self._stop.is_set():  # a stopped run saves its state and must find the file at rest
                        return
                    _write_all(file.write, block)
                    start += len(block)
                    self.state.done[piece] += len(block)


def _write_all(write: Callable[[memoryview], int | None], block: bytes) -> None:
    """Write a block to an unbuffered file, which may take a part of it at a time."""
    view = memoryview(block)
    while view:
        view = view[write(view) or 0 :]
