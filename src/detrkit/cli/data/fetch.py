"""``detrkit data fetch``: public data sets onto this disk."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.shared import JsonOption, errors, say
from detrkit.errors import UsageError, counted

if TYPE_CHECKING:
    from detrkit.curation.fetch import DatasetEntry, FetchResult

_LINE_EVERY_S = 10.0
"""Where there is no terminal, a line says this often how far a long fetch is."""


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Data sets to fetch; --list shows them.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the data set, NAME if not given; of several sets, each gets DIR/NAME."
        ),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="Only this part, such as val; may repeat."),
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="Connections to the server at once.")
    ] = 4,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the downloaded files in DIR/archives.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch once more what is complete already.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show what can be fetched: images, licence, size, address.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch public data sets, checked and laid out to be read. Stopped or killed, the same command goes on."""
    with errors():
        from detrkit.curation.fetch import CATALOGUE, fetch_dataset

        unknown = [name for name in names or [] if name not in CATALOGUE]
        if unknown:
            raise UsageError(f"there is no data set {unknown[0]!r} to fetch; known are {', '.join(CATALOGUE)}")
        if listing:
            _list([CATALOGUE[name] for name in names or CATALOGUE], as_json)
            return
        if not names:
            raise UsageError("name a data set, such as bccd; see all with: detrkit data fetch --list")
        results = []
        for name in dict.fromkeys(names):
            folder = Path(name) if out is None else out if len(set(names)) == 1 else out / name
            with _progress(hidden=as_json) as report:
                try:
                    result = fetch_dataset(
                        name,
                        folder,
                        parts=parts or None,
                        connections=connections,
                        keep_archives=keep_archives,
                        force=force,
                        say=_to_stderr if as_json else say,
                        report=report,
                    )
                except KeyboardInterrupt:
                    _to_stderr(f"stopped; what was fetched is kept in {folder}; the same command goes on with it")
                    raise
            results.append(result)
            if not as_json:
                _say_result(result)
        if as_json:
            typer.echo(json.dumps([_result_row(result) for result in results], indent=1))


def _to_stderr(message: str) -> None:
    typer.echo(message, err=True)


def _say_result(result: FetchResult) -> None:
    for name, part in result.present.items():
        state = "fetched" if name in result.fetched else "was there"
        say(f"  {name}: {counted(part.files, 'file')}, {_size(part.bytes)}, {state}")
    folder = result.folder
    say(f"{result.name} is in {folder}, its licence in LICENCE.txt there. Next: detrkit data check {folder}")


def _result_row(result: FetchResult) -> dict[str, Any]:
    parts = {
        name: {
            "files": part.files,
            "bytes": part.bytes,
            "fetched": name in result.fetched,
            "archives": [vars(archive) for archive in part.archives],
        }
        for name, part in result.present.items()
    }
    return {"name": result.name, "folder": str(result.folder), "parts": parts}


def _list(entries: list[DatasetEntry], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_entry_row(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        typer.echo(f"{entry.name}: {entry.title}")
        typer.echo(f"  images   {entry.images}; classes: {entry.classes}")
        typer.echo(f"  licence  {entry.licence.name} ({entry.licence.url})")
        if entry.licence.note:
            typer.echo(f"           {entry.licence.note}")
        typer.echo(f"  layout   {entry.layout}")
        for part in entry.parts:
            optional = "" if part.name in entry.defaults else "; only with --part"
            typer.echo(f"  part     {part.name}: {part.summary}, {_size(part.size)}{optional}")
            for archive in part.archives:
                typer.echo(f"           {archive.url} ({archive.check})")
        typer.echo("")
    typer.echo("Fetch one with: detrkit data fetch NAME")


def _entry_row(entry: DatasetEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "images": entry.images,
        "classes": entry.classes,
        "licence": vars(entry.licence),
        "source": entry.source,
        "layout": entry.layout,
        "parts": [
            {
                "name": part.name,
                "summary": part.summary,
                "default": part.name in entry.defaults,
                "bytes": part.size,
                "archives": [
                    {
                        "url": archive.url,
                        "file": archive.file_name,
                        "bytes": archive.size,
                        "sha256": archive.sha256,
                        "md5": archive.md5,
                        "commit": archive.commit,
                        "check": archive.check,
                    }
                    for archive in part.archives
                ],
            }
            for part in entry.parts
        ],
    }


def _size(count: int | None) -> str:
    from detrkit.curation.fetch.entry import size_text

    return "size not announced" if count is None else size_text(count)


@contextlib.contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Progress with speed and time left on standard error: a bar on a terminal, a line now and then elsewhere."""
    if hidden or not sys.stderr.isatty():
        yield _quiet if hidden else _lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(title: str, done: int, total: int | None) -> None:
            if title not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                # What an earlier run fetched counts as done, not as speed.
                tasks[title] = bar.add_task(title, total=total, completed=done)
            bar.update(tasks[title], completed=done, total=total)

        yield report


def _quiet(_title: str, _done: int, _total: int | None) -> None:
    pass


def _lines(clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int | None], None]:
    """Reports as lines, for a log: what, how much of it, how fast, and how long still."""
    began: dict[str, tuple[float, int]] = {}
    said_at = clock()

    def report(title: str, done: int, total: int | None) -> None:
        nonlocal said_at
        now = clock()
        start, before = began.setdefault(title, (now, done))
        if now - said_at < _LINE_EVERY_S or now <= start:
            return
        said_at = now
        speed = (done - before) / (now - start)
        left = ""
        if total and speed > 0:
            left = f" of {_size(total)}, {max(0, total - done) / speed:,.0f} s left"
        _to_stderr(f"{title}: {_size(done)}{left}, {_size(round(speed))}/s")

    return report
