"""What users may rely on: the public names, and what stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import detrkit

PUBLIC = {
    "ClassMap",
    "Config",
    "Detector",
    "DetrkitError",
    "__version__",
    "benchmark",
    "compare",
    "choose_thresholds",
    "evaluate",
    "export",
    "load",
    "lr_range",
    "predict",
    "preflight",
    "profile",
    "replay",
    "resume",
    "train",
    "tune",
}


def test_all_is_the_public_api():
    assert set(detrkit.__all__) == PUBLIC
    assert list(detrkit.__all__) == sorted(detrkit.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_can_be_imported(name: str):
    assert getattr(detrkit, name) is not None
    assert name in dir(detrkit)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = detrkit.nonsense


@pytest.mark.parametrize("code", ["import detrkit", "import detrkit.cli", "import detrkit.families"])
def test_light_imports_stay_free_of_torch(code: str):
    check = f"{code}; import sys; sys.exit('torch' in sys.modules or 'supervision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "doctor",
        "models",
        "preflight",
        "train",
        "resume",
        "tune",
        "plot",
        "profile",
        "benchmark",
        "eval",
        "compare",
        "predict",
        "export",
    ],
)
def test_help_of_every_command_is_there_and_does_not_import_torch(command: str):
    check = (
        "import sys; sys.argv = ['detrkit', *sys.argv[1:]]\n"
        "from detrkit.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: detrkit" in done.stdout
    assert len(done.stdout) > 200
