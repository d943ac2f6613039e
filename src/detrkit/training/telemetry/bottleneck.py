"""Advice where a training waits for data."""

from __future__ import annotations

import shlex
from typing import Literal, NamedTuple

from detrkit.data.loader import LoadingFacts

WORTH_SAYING = 0.2
"""Share of the time spent waiting above which a remedy is named."""

_LARGER = 1.5
"""How many times larger than needed images have to be for smaller copies to be worth their disk."""

Kind = Literal["workers", "cache", "both", "cpus", "decode"]


class Advice(NamedTuple):
    """A remedy and its sentence; the log repeats no remedy."""

    kind: Kind
    sentence: str


def advise(data_wait: float, facts: LoadingFacts) -> Advice | None:
    """Return the remedy for a training that waits for data; None if it hardly does.

    Args:
        data_wait: share of the time spent waiting, 0 to 1.
        facts: how data is loaded.
    """
    if data_wait < WORTH_SAYING:
        return None
    waits = f"waiting for data {100 * data_wait:.0f} % of the time: "
    each = max(1, facts.cpus // facts.processes)
    of_process = " of each process" if facts.processes > 1 else ""
    more_workers = f"raise data.workers{of_process} (now {facts.workers}, for {_cpus(facts.cpus)})"
    large = facts.needed_short is not None and facts.image_short >= _LARGER * facts.needed_short
    make_cache = f"run: detrkit data cache {shlex.quote(facts.data)}"
    why_cache = (
        f"images have a short side of {facts.image_short} pixels, training wants {facts.needed_short} at most"
    )
    has_cpus = facts.workers < max(1, each - 1)  # one is for the training itself
    if has_cpus and large and not facts.has_cache:
        return Advice("both", f"{waits}{more_workers}, or {make_cache} ({why_cache})")
    if has_cpus:
        return Advice("workers", f"{waits}{more_workers}")
    if large and not facts.has_cache:
        return Advice("cache", f"{waits}{make_cache} ({why_cache})")
    if facts.workers > each:
        more = f"{facts.workers * facts.processes} loader processes share {_cpus(facts.cpus)}"
        return Advice("cpus", f"{waits}{more}; give the training more CPUs, or set data.workers={each}")
    return Advice(
        "decode",
        f"{waits}{_cpus(facts.cpus)} cannot decode and resize fast enough; give the training more CPUs, put the "
        "images on a faster disk, or train at smaller transforms.scales",
    )


def _cpus(count: int) -> str:
    return f"{count} CPU{'' if count == 1 else 's'}"
