"""The template repository of a pipeline: its files parse, its commands are detrkit's, and all of it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from detrkit.cli import app

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "examples" / "pipeline"
SCRIPTS = ("pipeline.sh", "demo.sh")
WORKFLOWS = (".github/workflows/model.yml", ".gitlab-ci.yml")
STEPS = ("check", "train", "evaluate", "export", "gate", "release", "deploy", "rollback")


def texts_of(value: Any) -> Iterator[str]:
    """All texts of a YAML file, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def commands_of(script: str) -> list[list[str]]:
    """The command lines of a script that run detrkit, as words."""
    text = (PIPELINE / script).read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        found.split() for found in re.findall(r"^\s*(?:if .*; then )?detrkit (.*?)(?:; fi)?$", text, flags=re.M)
    ]


def options_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_both_workflows_parse_and_call_every_step_of_the_script():
    for name in WORKFLOWS:
        content = yaml.safe_load((PIPELINE / name).read_text(encoding="utf-8"))
        calls = [text for text in texts_of(content) if text.startswith("./pipeline.sh")]
        assert {step for call in calls for step in call.split()[1:]} == set(STEPS), name
    github = yaml.safe_load((PIPELINE / WORKFLOWS[0]).read_text(encoding="utf-8"))
    assert set(github[True]) >= {"push", "pull_request"}  # YAML 1.1 takes "on" for true
    gitlab = yaml.safe_load((PIPELINE / WORKFLOWS[1]).read_text(encoding="utf-8"))
    jobs = [job for job in gitlab.values() if isinstance(job, dict) and "script" in job]
    assert {job["stage"] for job in jobs} == set(gitlab["stages"])


def test_scripts_are_shell_and_their_commands_are_detrkits():
    for script in SCRIPTS:
        assert os.access(PIPELINE / script, os.X_OK)
        subprocess.run(["bash", "-n", PIPELINE / script], check=True)
        for words in commands_of(script):
            command: Any = get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            assert options_of(" ".join(words)) <= known, (script, command.name, words)


def test_settings_name_options_of_their_commands():
    text = (PIPELINE / "pipeline.sh").read_text(encoding="utf-8") + (PIPELINE / "demo.sh").read_text(
        encoding="utf-8"
    )
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for setting, verbs in (
        ("TRAIN_OPTIONS", ["train"]),
        ("EXPORT_OPTIONS", ["export"]),
        ("GATE_OPTIONS", ["gate", "release"]),
    ):
        lines = [line for line in text.splitlines() if f"{setting}=" in line]
        used = options_of("\n".join(line.partition(f"{setting}=")[2] for line in lines))
        assert used, setting
        for verb in verbs:
            assert used <= {name for option in commands[verb].params for name in option.opts}, verb


def test_an_unknown_step_is_refused(tmp_path: Path):
    done = subprocess.run(
        [PIPELINE / "pipeline.sh", "fly"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no step fly" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_pipeline_passes_stops_a_spoilt_model_and_goes_back(tmp_path: Path):
    program = tmp_path / "bin" / "detrkit"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom detrkit.cli import main\n\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    folder = tmp_path / "work"
    done = subprocess.run(
        [PIPELINE / "demo.sh", folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # two releases, the first in use again, and why the third is none
    assert sorted(path.name for path in (folder / "releases" / "releases").iterdir()) == ["v1", "v2"]
    assert (folder / "releases" / "current").resolve().name == "v1"
    reasons = (folder / "build" / "reports" / "gate.md").read_text(encoding="utf-8")
    assert "stopped" in reasons
    assert "| STOP |" in reasons
    assert (folder / "build" / "deployment").is_dir()
    record = json.loads((folder / "releases" / "releases" / "v2" / "release.json").read_text(encoding="utf-8"))
    assert record["previous"] == "v1"
    assert "AP" in (folder / "releases" / "current" / "MODEL_CARD.md").read_text(encoding="utf-8")
