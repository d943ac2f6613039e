"""``detrkit data check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.data.shared import DataArgument, LayoutOption, checked_layout, refuse_unfit
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, print_json, progress_bar, say
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import UsageError, counted

if TYPE_CHECKING:
    from detrkit.curation.check import CheckResult
    from detrkit.curation.fix import FixResult


def check(
    data: DataArgument,
    image_folder: ImageFolderOption = None,
    html: Annotated[Path | None, opt("FILE", "Also write a page with the pictures concerned.", "--html")] = None,
    fix: Annotated[Path | None, opt("DIR", "Write a repaired copy here, and what it changed.", "--fix")] = None,
    copy: Annotated[bool, opt(None, "With --fix: copy images instead of linking them.", "--copy")] = False,
    images: Annotated[bool, opt(None, "Decode every image.", "--images/--no-images")] = True,
    duplicates: Annotated[
        bool, opt(None, "Compare all images with each other.", "--duplicates/--no-duplicates")
    ] = True,
    queries: Annotated[
        int | None, opt("N", "Queries of the model; of --model if not given.", "--queries", min=1)
    ] = None,
    model: Annotated[
        str, opt("PRESET", "Model whose number of queries counts; see: detrkit models.")
    ] = DEFAULT_PRESET,
    strict: Annotated[bool, opt(None, "Exit with 1 for warnings too.", "--strict")] = False,
    layout: LayoutOption = "auto",
    workers: Annotated[int | None, opt("N", "Threads that open images.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong with a data set. Exits with 1 if there are errors, with --strict also for warnings.

    With --fix it exits with 1 only if the repaired copy still has some, or has lost too much to be trained on.
    """
    with errors():
        from detrkit.curation.check import CheckOptions, examine
        from detrkit.families.recipes import preset_config

        _check_target(html, fix)
        queries = queries or preset_config(model).model.num_queries
        options = CheckOptions(checked_layout(layout), images, duplicates, queries, workers, image_folder)
        with progress_bar("checking", as_json) as bar:
            checked = examine(data, options, _steps(bar))
        if html is not None:
            from detrkit.curation.check.page import write_check_page

            write_check_page(html, checked)
        fixed = None
        if fix is not None:
            from detrkit.curation.fix import fix_data

            with progress_bar("repairing", as_json) as bar:
                fixed = fix_data(checked, fix, copy=copy, progress=_steps(bar))
        _report(checked.result, fixed, html, as_json)
        decisive = checked.result if fixed is None else fixed.after
        if fixed is not None:
            refuse_unfit(fixed.out, fixed.unfit)
        if decisive.worst == "error" or (strict and not decisive.is_clean):
            raise typer.Exit(1)


def _check_target(html: Path | None, fix: Path | None) -> None:
    """Refuse before minutes of work what would be refused after them."""
    from detrkit.data.formats.output import check_new_folder
    from detrkit.files import check_free

    if fix is not None:
        check_new_folder(fix)
    if html is not None and html.is_dir():
        raise UsageError(f"--html {html} is a folder, expected the name of a file")
    if html is not None:
        check_free(html)


def _steps(bar: Any) -> Any:
    """Show the progress of several steps on one bar."""
    return lambda _step, done, total: bar(done, total)


def _report(result: CheckResult, fixed: FixResult | None, html: Path | None, as_json: bool) -> None:
    if as_json:
        more = {"html": html and str(html), "fix": fixed and _fix_dict(fixed)}
        print_json({**result.to_dict(), **more})
        return
    for split in result.splits:
        counts = f"{counted(split.image_count, 'image')}, {counted(split.annotation_count, 'annotation')}"
        say(f"{split.name}: {split.layout} ({split.reason}); {counts}")
    for words in result.skipped:
        say(f"not checked: {words}")
    if result.findings:
        result.table().only("Severity", "Finding", "Count", "Example").show()
    say(_verdict(result, result.is_clean))
    if fixed is not None:
        repairs = counted(sum(fixed.repaired.values()), "fault")
        say(f"Repaired copy: {fixed.out}, without {repairs} of the original: {fixed.out / 'changes.txt'}")
        for loss in fixed.losses:
            say(f"  {loss}")
        say(f"The copy: {_verdict(fixed.after, fixed.is_clean)}")
        for finding in fixed.after.findings:
            if finding.severity != "note":
                say(f"  {finding}")
    if html is not None:
        say(f"Page with pictures: {html}")
    elif result.findings and fixed is None:
        say("Pictures: --html FILE. A repaired copy: --fix DIR")


def _fix_dict(fixed: FixResult) -> dict[str, Any]:
    return {
        "out": str(fixed.out),
        "changes": sum(fixed.repaired.values()),
        "lost": [vars(loss) for loss in fixed.losses],
        "ledgers": {name: vars(ledger) for name, ledger in fixed.ledgers.items()},
        "unfit": fixed.unfit,
        "clean": fixed.is_clean,
        "after": fixed.after.to_dict(),
    }


def _verdict(result: CheckResult, is_clean: bool) -> str:
    from detrkit.curation.check import Severity

    parts = [f"{counted(len(result.of(severity)), 'kind')} of {severity}" for severity in Severity]
    return ("Clean: " if is_clean else "Not clean: ") + ", ".join(parts) + "."
