"""The ``detrkit data`` verbs, each group in a module of its own."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Everything about data sets: fetch, check, look at, convert, split.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
