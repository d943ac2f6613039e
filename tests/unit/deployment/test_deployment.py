"""Files that serve a bundle elsewhere: complete, right by their readers' schemas, never over others."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import stat
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.deployment import check, triton
from detrkit.deployment.check import Check
from detrkit.deployment.write import TARGETS, write_deployment
from detrkit.errors import BundleError, UsageError
from detrkit.runtimes.predictor import load
from tests.support.bundles import bundle_files, mean_graph, resealed, write_files

# Ray's schema takes seconds to import, and the others' files are among Kubernetes'
SLOW = ("ray", "docker", "kserve")
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TARGETS]
VALUES = {"--image": "registry.example.com/team/street:7", "--cpus": "3", "--replicas": "2-5"}


def yaml_files(folder: Path) -> dict[str, Any]:
    return {path.name: yaml.safe_load(path.read_text()) for path in folder.rglob("*.y*ml")}


def written(bundle: Path, target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the programs that take long."""
    monkeypatch.setattr(check, "_run_tool", lambda command, *_, **__: Check(command[0], None))
    monkeypatch.setattr(check, "_check_ray", lambda _: Check("ray", None))
    assert write_deployment(bundle, target, folder).passed
    return folder


@pytest.mark.parametrize("target", EACH)
def test_every_target_is_complete_passes_its_checks_and_is_written_again_as_it_was(
    bundle: Path, target: str, tmp_path: Path
):
    first = write_deployment(bundle, target, tmp_path / "out")
    files = {
        path: path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.name != ".detrkit-written" and path.is_file()
    }
    again = write_deployment(bundle, target, tmp_path / "out")
    assert first.passed, first.checks
    assert again.kept == list(TARGETS[target].secrets)
    assert {path: path.read_bytes() for path in files} == files
    for path, content in files.items():
        if path.suffix not in (".whl", ".onnx", ".png"):
            assert b"<<" not in content.replace(b"<<'", b""), path
    for name in TARGETS[target].secrets:
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o600
        assert re.search(r"\b[0-9a-f]{64}\b", (tmp_path / "out" / name).read_text())
        assert name.rpartition("/")[2] in (tmp_path / "out" / name).with_name(".gitignore").read_text()


def test_options_reach_the_files(bundle: Path, tmp_path: Path):
    words = ["deploy", str(bundle), "--to", "kubernetes", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, [*words, *(word for option in VALUES.items() for word in option)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    files = yaml_files(tmp_path)
    container = files["deployment.yaml"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == VALUES["--image"]
    assert container["resources"]["limits"]["cpu"] == "3"
    assert (files["autoscaler.yaml"]["spec"]["minReplicas"], files["autoscaler.yaml"]["spec"]["maxReplicas"]) == (
        2,
        5,
    )
    assert found["passed"]
    assert found["next_steps"][0] == f"docker build --tag {VALUES['--image']} ."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "heroku"], "kubernetes"),
        (["--to", "docker", "--replicas", "4-1"], "in order"),
        (["--to", "docker", "--replicas", "many"], "1-4"),
        (["--to", "docker", "--image", "Street View"], "Street View"),
    ],
)
def test_what_makes_no_sense_is_asked_wrongly_and_writes_nothing(
    bundle: Path, tmp_path: Path, words: list[str], said: str
):
    result = CliRunner().invoke(app, ["deploy", str(bundle), "--out", str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_and_files_of_others_are_refused(bundle: Path, tmp_path: Path):
    damaged = write_files(tmp_path / "damaged", {**bundle_files(), "golden/0.png": b"x"})
    with pytest.raises(BundleError, match=r"golden/0\.png"):
        write_deployment(damaged, "docker", tmp_path / "out")
    own = tmp_path / "own"
    own.mkdir()
    (own / "requirements.txt").write_text("mine\n")
    with pytest.raises(UsageError, match=r"requirements\.txt"):
        write_deployment(bundle, "docker", own)
    assert [path.name for path in own.iterdir()] == ["requirements.txt"]
    assert (own / "requirements.txt").read_text() == "mine\n"


@pytest.mark.parametrize("target", ["compose", "kubernetes", "kserve", "systemd", "ray", "triton"])
def test_a_hostile_name_stays_a_name(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = '7 x"\n  privileged: true # $(id) <<1>> ' + 80 * "é"
    hostile = write_files(tmp_path / "hostile", bundle_files(name=name))
    written(hostile, target, tmp_path / "out", monkeypatch)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "bundle" not in path.parts and path.suffix not in (".whl", ".onnx"):
            assert b"true # $(id)" not in path.read_bytes()
            assert "\n" not in path.name
    assert any(
        b"detector-7-x-privileged-true-id-1" in path.read_bytes()
        for path in (tmp_path / "out").rglob("*.*")
        if path.is_file()
    )


def test_kubernetes_files_follow_its_schema(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    validate = pytest.importorskip("kubernetes_validate")
    files = yaml_files(written(bundle, "kubernetes", tmp_path, monkeypatch) / "kubernetes")
    files |= yaml_files(Path(__file__).parents[3] / "docs" / "kubernetes")
    objects = [one for one in files.values() if one["kind"] not in ("Kustomization", "List")]
    objects += files["train.yaml"]["items"]
    assert {one["kind"] for one in objects} >= {"Deployment", "HorizontalPodAutoscaler", "Job", "Service"}
    # KServe's own fields are no pod's; the rest is handed on to the pods
    kserve = yaml_files(written(bundle, "kserve", tmp_path / "kserve", monkeypatch) / "kserve")
    pod = dict(kserve["inferenceservice.yaml"]["spec"]["predictor"])
    for own in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"):
        del pod[own]
    objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "street"}, "spec": pod})
    for one in objects:
        validate.validate(one, "1.33", strict=True)


def test_compose_file_follows_its_schema(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jsonschema = pytest.importorskip("jsonschema")
    spec = importlib.util.find_spec("check_jsonschema")
    if spec is None or spec.origin is None:
        pytest.skip("check-jsonschema is not installed")
    schemas = Path(spec.origin).parent / "builtin_schemas" / "vendor"
    compose = yaml_files(written(bundle, "compose", tmp_path, monkeypatch))["compose.yaml"]
    jsonschema.validate(compose, json.loads((schemas / "compose-spec.json").read_text()))
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    paths = [volume.partition(":")[0] for volume in mounted if volume.startswith("./")]
    assert len(paths) == 4
    assert all((tmp_path / path).exists() for path in paths)


def test_dashboard_and_alerts_ask_for_what_the_server_tells(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    metrics = pytest.importorskip("detrkit.serving.metrics", exc_type=ImportError)
    told = {
        f"{family.name}{end}": family
        for family in metrics.Metrics().registry.collect()
        for end in ("", "_total", "_bucket", "_sum", "_count")
    }
    folder = written(bundle, "compose", tmp_path, monkeypatch)
    panels = json.loads((folder / "monitoring/grafana/dashboards/detrkit.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [rule["expr"] for rule in yaml_files(folder)["alerts.yml"]["groups"][0]["rules"]]
    names = {name for text in asked for name in re.findall(r"detrkit_\w+", text)}
    assert len(names) >= 9
    assert names <= set(told)


@pytest.mark.parametrize(("shape", "most"), [(("batch", "height", "width", 3), 8), ((2, 64, 96, 3), 0)])
def test_triton_gets_the_graph_as_it_is(shape: tuple[Any, ...], most: int, tmp_path: Path):
    files = bundle_files(mean_graph(shape).SerializeToString())
    if most == 0:
        record = json.loads(files["bundle.json"])["preprocessing"] | {"fixed_hw": [64, 96], "fixed_batch": 2}
        files["bundle.json"] = resealed(files["bundle.json"], lambda content: content.update(preprocessing=record))
    found = write_deployment(write_files(tmp_path / "bundle", files), "triton", tmp_path / "out")
    assert found.passed, found.checks
    config = tmp_path / "out" / "models" / "mean" / "config.pbtxt"
    assert f"max_batch_size: {most}\n" in config.read_text()
    graph = (config.parent / "1" / "model.onnx").read_bytes()
    for wrong in ("dims: [ 2, 4 ]", 'name: "sizes"', "TYPE_UINT8"):
        assert wrong in config.read_text() or most == 0
        changed = tmp_path / "config.pbtxt"
        changed.write_text(
            config.read_text().replace(wrong, wrong.replace("2", "3").replace("s", "z").replace("8", "16"))
        )
        if wrong in config.read_text():
            assert triton.check_config(changed, graph)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("autoscaler.yaml", "name: mean}", "name: other}"),
        ("service.yaml", "targetPort: http", "targetPort: web"),
        ("service.yaml", "name: mean}\n  ports", "name: other}\n  ports"),
        ("deployment.yaml", "secretName: mean-token", "secretName: token"),
        ("disruption.yaml", "name: mean}", "name: other}"),
        ("service.yaml", "  name: mean", "  name: Mean_"),
    ],
)
def test_references_that_lead_nowhere_are_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: str, after: str
):
    folder = written(bundle, "kubernetes", tmp_path, monkeypatch) / "kubernetes"
    text = (folder / name).read_text()
    assert before in text
    assert check._check_references(folder).passed
    (folder / name).write_text(text.replace(before, after))
    assert check._check_references(folder).passed is False


def test_a_tool_that_is_not_there_is_told_apart_from_one_that_finds_fault(tmp_path: Path):
    absent = check._run_tool(["no-such-tool", "check"], tmp_path)
    without_part = check._run_tool(["sh", "-c", "exit 0"], tmp_path, probe=["sh", "-c", "echo no daemon; exit 1"])
    fault = check._run_tool(["sh", "-c", "echo line 3 >&2; exit 4"], tmp_path)
    assert (absent.passed, without_part.passed, fault.passed) == (None, None, False)
    assert "not installed" in str(absent)
    assert "no daemon" in str(without_part)
    assert str(fault).startswith("WRONG")
    assert "line 3" in str(fault)


def test_the_wheel_holds_this_detrkit_and_no_caches(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = written(bundle, "docker", tmp_path, monkeypatch)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        assert wheel.read("detrkit/deployment/check.py") == Path(check.__file__).read_bytes()
    assert "detrkit/deployment/templates/image/Dockerfile" in names
    assert not [name for name in names if "__pycache__" in name]
    locked = (folder / "requirements.txt").read_text()
    packages = re.findall(r"^([\w.-]+)==", locked, flags=re.M)
    assert {"onnxruntime", "fastapi", "uvicorn"} <= set(packages)
    assert "torch" not in packages
    assert len(re.findall(r"^\S+==\S+ .*\\\n    --hash", locked, flags=re.M)) == len(packages)


def test_the_client_of_triton_finds_what_the_bundle_finds(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = written(bundle, "triton", tmp_path, monkeypatch)
    predictor = load(bundle)

    class Tensor:
        def __init__(self, name: str, shape: list[int], kind: str):
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, array: np.ndarray) -> None:
            assert list(array.shape) == self.shape
            assert array.dtype == {"UINT8": np.uint8, "INT64": np.int64}[self.kind]
            self.array = array

    class Triton:  # as much of it as the graph
        def __init__(self, url: str):
            assert url == "127.0.0.1:8000"

        def __enter__(self) -> Triton:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def infer(self, model: str, inputs: list[Tensor]) -> Triton:
            assert (folder / "models" / model / "1" / "model.onnx").exists()
            found = predictor.engine.run({tensor.name: tensor.array for tensor in inputs})
            self.found = dict(zip(("scores", "labels", "boxes"), found, strict=True))
            return self

        def as_numpy(self, name: str) -> np.ndarray:
            return self.found[name]

    stub: Any = ModuleType("tritonclient.http")
    stub.InferInput, stub.InferenceServerClient = Tensor, Triton
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", stub)
    picture = str(bundle / "golden" / "0.png")
    monkeypatch.setattr(sys, "argv", ["client.py", picture, "--threshold", "0.1"])
    runpy.run_path(str(folder / "client.py"))
    expected = predictor.predict(picture, 0.1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == list(expected.data["class_name"])
    assert [float(line[2]) for line in lines] == pytest.approx(expected.confidence, abs=1e-4)
    assert len(lines) == 2


def test_images_get_all_that_the_extra_serve_has():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    group = [need for need in project["dependency-groups"]["serve-onnxruntime"] if isinstance(need, str)]
    group += project["dependency-groups"]["runtime-only"]
    wanted = project["project"]["optional-dependencies"]["serve"]
    assert set(wanted) <= set(group)
    for needs in ("onnxruntime", "openvino"):
        locked = (Path(check.__file__).parent / f"requirements-{needs}.txt").read_text()
        names = [re.split(r"[^\w-]", need)[0] for need in group]
        assert [name for name in names if not re.search(rf"^{name}==", locked, flags=re.M)] == []
