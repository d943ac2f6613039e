"""``detrkit data fetch``: public data sets onto this disk."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.shared import JsonOption, arg, errors, opt, print_json, say
from detrkit.errors import UsageError, counted

if TYPE_CHECKING:
    from detrkit.curation.fetch import DatasetEntry, FetchResult
    from detrkit.download import Report

_LINE_EVERY_S = 10.0


def fetch(
    names: Annotated[list[str] | None, arg("NAME", "Data sets to fetch; --list shows them.")] = None,
    out: Annotated[
        Path | None, opt("DIR", "Folder of the data set, NAME if not given; of several sets, each gets DIR/NAME.")
    ] = None,
    parts: Annotated[list[str] | None, opt("PART", "Only this part, such as val; may repeat.", "--part")] = None,
    keep_archives: Annotated[
        bool, opt(None, "Keep the downloaded files in DIR/archives.", "--keep-archives")
    ] = False,
    force: Annotated[bool, opt(None, "Fetch once more what is complete already.", "--force")] = False,
    listing: Annotated[
        bool, opt(None, "Show what can be fetched: images, licence, size, address.", "--list")
    ] = False,
    as_json: JsonOption = False,
    connections: Annotated[int, opt(None, "Ignored: files come over one connection.", hidden=True)] = 1,
) -> None:
    """Fetch public data sets, checked and laid out to be read. Stopped or killed, the same command goes on."""
    with errors():
        from detrkit.curation.fetch import CATALOGUE, fetch_dataset, find_entry
        from detrkit.download import transfer_progress

        entries = [find_entry(name) for name in dict.fromkeys(names or [])]
        if listing:
            _list(entries or list(CATALOGUE.values()), as_json)
            return
        if not entries:
            raise UsageError("name a data set, such as bccd; see all with: detrkit data fetch --list")
        tell, results = functools.partial(typer.echo, err=True) if as_json else say, []
        for entry in entries:
            folder = Path(entry.name) if out is None else out if len(entries) == 1 else out / entry.name
            with transfer_progress(hidden=as_json) as report:
                try:
                    result = fetch_dataset(
                        entry.name,
                        folder,
                        parts=parts,
                        keep_archives=keep_archives,
                        force=force,
                        say=tell,
                        report=report if as_json or sys.stderr.isatty() else _progress_lines(),
                    )
                except KeyboardInterrupt:
                    stopped = f"stopped; what was fetched is kept in {folder}; the same command goes on with it"
                    typer.echo(stopped, err=True)
                    raise
            results.append(result)
            if not as_json:
                _say_result(result)
        if as_json:
            print_json([_result_row(result) for result in results])


def _say_result(result: FetchResult) -> None:
    for name, part in result.present.items():
        state = "fetched" if name in result.fetched else "was there"
        say(f"  {name}: {counted(part.files, 'file')}, {_size(part.bytes)}, {state}")
    folder = result.folder
    say(f"{result.name} is in {folder}, its licence in LICENCE.txt there. Next: detrkit data check {folder}")


def _result_row(result: FetchResult) -> dict[str, Any]:
    parts = {}
    for name, part in result.present.items():
        sizes = {"files": part.files, "bytes": part.bytes, "fetched": name in result.fetched}
        parts[name] = {**sizes, "archives": part.archives}
    return {"name": result.name, "folder": str(result.folder), "parts": parts}


def _list(entries: list[DatasetEntry], as_json: bool) -> None:
    if as_json:
        print_json([_entry_row(entry) for entry in entries])
        return
    for entry in entries:
        typer.echo(f"{entry.name}: {entry.title}")
        typer.echo(f"  images   {entry.images}; classes: {entry.classes}")
        typer.echo(f"  licence  {entry.licence.name} ({entry.licence.url})")
        if entry.licence.note:
            typer.echo(f"           {entry.licence.note}")
        typer.echo(f"  layout   {entry.layout}")
        for name, part in entry.parts.items():
            optional = "; only with --part" if part.on_request else ""
            typer.echo(f"  part     {name}: {part.summary}, {_size(part.size)}{optional}")
            for archive in part.archives:
                typer.echo(f"           {archive.url} ({archive.check})")
        typer.echo("")
    typer.echo("Fetch one with: detrkit data fetch NAME")


def _entry_row(entry: DatasetEntry) -> dict[str, Any]:
    parts = []
    for name, part in entry.parts.items():
        archives = [
            {"url": archive.url, "file": archive.file_name, "bytes": archive.size, "check": archive.check}
            | {key: getattr(archive, key) or None for key in ("sha256", "md5", "commit")}
            for archive in part.archives
        ]
        row = {"name": name, "summary": part.summary, "default": not part.on_request, "bytes": part.size}
        parts.append({**row, "archives": archives})
    words = ("name", "title", "images", "classes", "licence", "source", "layout")
    return {**{word: getattr(entry, word) for word in words}, "parts": parts}


def _size(count: int | None) -> str:
    from detrkit.download import size_text

    return "size not announced" if count is None else size_text(count)


def _progress_lines(clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a report that prints lines for a log: what, how much of it, how fast, and how long still."""
    from detrkit.download import size_text

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
            left = f" of {size_text(total)}, {max(0, total - done) / speed:,.0f} s left"
        typer.echo(f"{title}: {size_text(done)}{left}, {size_text(round(speed))}/s", err=True)

    return report
