"""The ``detrkit data`` verbs, one file each."""

from __future__ import annotations

import typer

from detrkit.cli.data.cache import cache
from detrkit.cli.data.check import check
from detrkit.cli.data.convert import convert
from detrkit.cli.data.fetch import fetch
from detrkit.cli.data.preview import preview
from detrkit.cli.data.sample import sample
from detrkit.cli.data.split import split
from detrkit.cli.data.stats import stats

app = typer.Typer(
    help="Everything about data sets: fetch, check, look at, convert, split.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("fetch", short_help="Public data sets: COCO, VOC, small free ones.")(fetch)
app.command("check", short_help="What is wrong with a data set; a page, a repaired copy.")(check)
app.command("convert", short_help="Write a data set as COCO, YOLO or Pascal VOC.")(convert)
app.command("stats", short_help="Classes, box sizes, objects per image; tables or a page.")(stats)
app.command("preview", short_help="Annotated samples, before and after augmentation.")(preview)
app.command("split", short_help="Divide into train, val, test; classes in proportion.")(split)
app.command("cache", short_help="Copies of large training images at the size training needs.")(cache)
app.command("sample", short_help="A small data set out of a large one.")(sample)
