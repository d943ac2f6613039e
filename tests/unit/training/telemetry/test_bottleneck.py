from __future__ import annotations

import dataclasses

import pytest

from detrkit.data.loader import LoadingFacts
from detrkit.training.telemetry.bottleneck import Advice, advise

FACTS = LoadingFacts(
    workers=4, processes=1, cpus=4, image_short=480, needed_short=800, has_cache=False, data="my data"
)


def advice(wait: float = 0.43, **changes: object) -> Advice:
    found = advise(wait, dataclasses.replace(FACTS, **changes))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.199])
def test_little_waiting_is_not_worth_a_word(wait: float) -> None:
    assert advise(wait, FACTS) is None


def test_idle_cpus_call_for_workers() -> None:
    found = advice(workers=1)
    assert found.kind == "workers"
    assert found.sentence == ("waiting for data 43 % of the time: raise data.workers (now 1, for 4 CPUs)")
    assert advice(workers=0, cpus=1).kind == "workers"


def test_large_images_call_for_a_cache() -> None:
    found = advice(image_short=2000)
    assert found.kind == "cache"
    assert "run: detrkit data cache 'my data'" in found.sentence
    assert "2000 pixels, training wants 800" in found.sentence
    assert advice(image_short=2000, has_cache=True).kind != "cache"
    assert advice(image_short=1199).kind != "cache"
    assert advice(image_short=2000, needed_short=None).kind != "cache"


def test_both_remedies_are_named_where_both_help() -> None:
    found = advice(image_short=2000, workers=1)
    assert found.kind == "both"
    assert "raise data.workers" in found.sentence
    assert "or run: detrkit data cache" in found.sentence


def test_processes_share_the_cpus() -> None:
    assert advice(workers=4, processes=4, cpus=16).kind == "decode"
    assert advice(workers=2, processes=4, cpus=16).sentence.count("of each process") == 1
    found = advice(workers=4, processes=8, cpus=16)
    assert found.kind == "cpus"
    assert "32 loader processes share 16 CPUs" in found.sentence
    assert "data.workers=2" in found.sentence


def test_where_nothing_is_idle_the_cpus_are_too_few() -> None:
    found = advice(workers=3)
    assert found.kind == "decode"
    assert "4 CPUs cannot decode" in found.sentence
    assert "1 CPU cannot" in advice(workers=1, cpus=1).sentence
