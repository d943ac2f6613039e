"""Several processes under torchrun: killed, stopped, restarted, and evaluated together."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detrkit.checkpoint import read_model
from detrkit.config import read_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.split import read_split
from detrkit.detectors.split_evaluator import SplitEvaluator
from detrkit.families.build import build_model
from tests.e2e.conftest import Trained, records
from tests.e2e.processes import (
    arguments,
    assert_same_training,
    ended,
    popen,
    torchrun,
    training_process,
    wait_for_step,
)


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two processes, never disturbed."""
    run = tmp_path_factory.mktemp("processes") / "whole"
    code, out, err = ended(torchrun(arguments(tiny_data, run)))
    assert code == 0, err
    return Trained(run, out, err)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_evaluation_by_two_processes_equals_that_of_one(uninterrupted: Trained, one_thread: None):
    """To the last digit: 8 images in batches of 5 and 3, one to each process."""
    run = uninterrupted.run
    saved = read_model(run / "checkpoints" / "last.pt")
    built = build_model(saved.config, saved.class_map)
    model = built.model
    model.load_state_dict(saved.state_dict)
    config = read_config(run / "config.yaml")
    evaluator = SplitEvaluator(
        dataclasses.replace(built, config=config), read_split(config, "val"), torch.device("cpu")
    )
    values = evaluator.measure(model.to(memory_format=torch.channels_last))
    last = records(run, "eval")[-1]
    assert len(values) == 12
    assert {name: -1.0 if last[name] is None else last[name] for name in values} == values


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_been(
    uninterrupted: Trained, tiny_data: Path, tmp_path: Path
):
    run = tmp_path / "killed"
    process = torchrun(arguments(tiny_data, run), options=("--standalone", "--max-restarts", "3"))
    wait_for_step(process, run, 4)
    training_process(process, rank=1).kill()
    code, _, err = ended(process)
    assert code == 0, err
    assert any("resumed at step" in event["message"] for event in records(run, "event"))
    assert_same_training(run, uninterrupted.run)


@pytest.mark.slow
def test_a_process_killed_before_masks_are_learnt_is_restarted_too(tmp_path: Path):
    """Boxes first: masks begin at step 7, of averaged weights."""
    data = write_synthetic(tmp_path / "data", train_images=24, val_images=4, size=48, masks=True)
    changes = {"model__hidden_dim": 32, "model__ffn_dim": 32, "model__num_queries": 10, "train__box_epochs": 2}

    def command(name: str) -> list[str]:
        model = {"detr-tiny": "detr-tiny-two-stage-panoptic"}
        return [model.get(word, word) for word in arguments(data, tmp_path / name, **changes)]

    code, _, err = ended(torchrun(command("whole")))
    assert code == 0, err
    process = torchrun(command("killed"), options=("--standalone", "--max-restarts", "3"))
    wait_for_step(process, tmp_path / "killed", 4)
    training_process(process, rank=1).kill()
    code, _, err = ended(process)
    assert code == 0, err
    assert any("resumed at step" in event["message"] for event in records(tmp_path / "killed", "event"))
    assert_same_training(tmp_path / "killed", tmp_path / "whole")
    assert records(tmp_path / "whole", "eval")[-1]["PQ"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_the_run_goes_on(
    number: signal.Signals, uninterrupted: Trained, tiny_data: Path, tmp_path: Path
):
    run = tmp_path / "stopped"
    command = arguments(tiny_data, run, train__save_every_steps=None)
    process = torchrun(command)
    wait_for_step(process, run, 4)
    sent = time.monotonic()
    process.send_signal(number)
    code, _, err = ended(process)
    assert code != 0
    assert time.monotonic() - sent < 25, "torchrun kills what has not ended after 30 s"
    stops = [event["message"] for event in records(run, "event")]
    assert any("stopped by" in message and "go on with" in message for message in stops), err
    code, _, err = ended(torchrun([*command, "--resume"]))
    assert code == 0, err
    assert_same_training(run, uninterrupted.run)


@pytest.mark.slow
def test_processes_started_by_the_command_itself(uninterrupted: Trained, tiny_data: Path, tmp_path: Path):
    run = tmp_path / "launched"
    command = [sys.executable, "-m", "detrkit", *arguments(tiny_data, run, train__devices=2)]
    process = popen(command)
    wait_for_step(process, run, 4)
    process.terminate()
    code, _, err = ended(process)
    assert code == 143, err
    assert err.count("finishing this step") == 1
    code, out, err = ended(popen([*command, "--resume"]))
    assert code == 0, err
    assert out.count("Run folder") == 1
    assert_same_training(run, uninterrupted.run)


@pytest.mark.slow
def test_two_machines_with_a_rendezvous(uninterrupted: Trained, tiny_data: Path, tmp_path: Path):
    """Two agents of one process each; one loses its process, and both start anew."""
    run = tmp_path / "machines"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    rendezvous = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "7")
    command = [*arguments(tiny_data, run), "--resume"]
    options = (*rendezvous, "--max-restarts", "3", "--local-addr", "127.0.0.1")
    machines = [torchrun(command, processes=1, options=options) for _ in range(2)]
    wait_for_step(machines[0], run, 4)
    training_process(machines[1], rank=None).kill()
    ends = [ended(machine) for machine in machines]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert any("resumed at step" in event["message"] for event in records(run, "event"))
    assert_same_training(run, uninterrupted.run)


@pytest.mark.slow
def test_an_unreadable_image_of_one_process_ends_all_of_them(tiny_data: Path, tmp_path: Path):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    image = sorted((data / "val2017").iterdir())[-1]  # in the second process's batch
    image.write_bytes(b"not a picture")
    code, _, err = ended(torchrun(arguments(data, tmp_path / "run")))
    assert code == 1
    assert image.name in err
    assert "detrkit/runs/" not in err  # torchrun prints a traceback of its own, not of the training


@pytest.mark.slow
def test_more_processes_than_images(tiny_data: Path, tmp_path: Path):
    run = tmp_path / "crowd"
    command = arguments(tiny_data, run, epochs=1, train__batch_size=8)
    code, _, err = ended(torchrun(command, processes=3))
    assert code == 0, err
    assert len(records(run, "eval")) == 1
    assert (run / "checkpoints" / "last.pt").exists()
