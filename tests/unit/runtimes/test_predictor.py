"""A bundle at work: the same detections however pictures come, and no torch."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detrkit
from detrkit import runtime
from detrkit.errors import ImageError, UsageError
from detrkit.hardware import has_fast_bf16
from detrkit.runtimes.bundle import PreprocessingRecord
from detrkit.runtimes.engines import ENGINES
from tests.support.bundles import (
    BOXES,
    LONGEST,
    SIZE,
    bundle_files,
    expected_scores,
    mean_graph,
    noise,
    write_files,
)

PICTURES = [noise((40, 60), 1), noise((200, 30), 2), noise((1, 1), 3), noise((20, 400), 4), noise((64, 64), 5)]


def need(name: str) -> None:
    """Skip where a runtime is not installed, or the CPU has no bf16."""
    pytest.importorskip(name.partition("-")[0])
    if name == "openvino-bf16" and not has_fast_bf16():
        pytest.skip("this CPU does not multiply bf16 numbers")


@pytest.fixture(params=list(ENGINES))
def predictor(request, place):
    need(request.param)
    return runtime.load(write_files(place, bundle_files()), request.param, threads=1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_detections_do_not_depend_on_the_batch(predictor, batch_size):
    found = predictor.predict(PICTURES, threshold=0, batch_size=batch_size)
    for image, detections in zip(PICTURES, found, strict=True):
        height, width = image.shape[:2]
        assert np.allclose(detections.confidence, expected_scores(image), atol=1e-6)
        assert np.allclose(detections.xyxy, BOXES * np.array([width, height, width, height]), atol=1e-4)
        assert detections.class_id.tolist() == [1, 0]
        assert detections.data["class_name"].tolist() == ["dog", "cat"]
        assert detections.data["category_id"].tolist() == [18, 17]
        assert detections.metadata["size_hw"] == (height, width)


def test_all_ways_of_giving_a_picture_are_one(predictor, tmp_path):
    image = noise((40, 60), 7)
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.png"
    Image.fromarray(image).save(path)
    gray = image[:, :, :1].repeat(3, 2)
    assert len(predictor.predict([gray[:, :, 0]], 0)[0]) == 2
    expected = predictor.predict(image, 0).confidence
    for source in (path, str(path), Image.fromarray(image), [image][0]):
        assert np.array_equal(predictor.predict(source, 0).confidence, expected)
    [found] = predictor.predict(tmp_path / "images", 0)
    assert np.array_equal(found.confidence, expected)
    assert found.metadata["source"] == str(path)


def test_a_broken_picture_of_a_folder_is_left_out_with_a_warning(predictor, tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(noise((8, 8))).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
        assert len(predictor.predict(folder, 0)) == 1
    assert "b.png" in caplog.text
    with pytest.raises(ImageError, match=r"b\.png"):
        predictor.predict(folder / "b.png")


def test_auto_takes_the_fastest_runtime_and_says_so(place, caplog, monkeypatch):
    bundle = write_files(place, bundle_files())
    with caplog.at_level(logging.INFO):
        predictor = runtime.load(bundle, "auto")
    assert predictor.engine.precision == "float32"
    assert f"{predictor.engine.name} is taken" in caplog.text
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert runtime.load(bundle, "auto").engine.name == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="pip install"):
        runtime.load(bundle, "auto")


@pytest.mark.parametrize("runtime_name", list(ENGINES))
@pytest.mark.parametrize("shape", [(3, 96, 96, 3), (2, 3, 96, 96)])
def test_a_graph_of_a_fixed_shape_is_given_that_shape(shape, runtime_name, tmp_path):
    need(runtime_name)
    layout = "nhwc" if shape[3] == 3 else "nchw"
    fixed = PreprocessingRecord(
        SIZE, LONGEST, (0.0,) * 3, (1.0,) * 3, layout=layout, fixed_hw=(96, 96), fixed_batch=shape[0]
    )
    files = bundle_files(mean_graph(shape).SerializeToString(), preprocessing=fixed)
    predictor = runtime.load(write_files(tmp_path / "a.zip", files), runtime_name, threads=1)
    for batch_size in (1, 5):
        found = predictor.predict(PICTURES, threshold=0, batch_size=batch_size)
        for image, detections in zip(PICTURES, found, strict=True):
            assert np.allclose(detections.confidence, expected_scores(image), atol=1e-6)
    detector = detrkit.load(tmp_path / "a.zip")
    assert [len(one) for one in detector.predict(PICTURES, threshold=0, batch_size=5)] == [2] * 5


def test_an_image_that_does_not_fit_a_fixed_shape_is_refused(tmp_path):
    fixed = PreprocessingRecord(SIZE, LONGEST, (0.0,) * 3, (1.0,) * 3, fixed_hw=(64, 96), fixed_batch=1)
    graph = mean_graph((1, 64, 96, 3)).SerializeToString()
    predictor = runtime.load(write_files(tmp_path / "a.zip", bundle_files(graph, preprocessing=fixed)))
    assert len(predictor.predict(noise((40, 60)), threshold=0)) == 2
    with pytest.raises(UsageError, match=r"96 x 64.*64 x 96.*--shape 96x96"):
        predictor.predict(noise((60, 40)))


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize(("threads", "streams"), [(1, 2), (4, 2)])
def test_streams_change_nothing_but_the_time(name, threads, streams, tmp_path):
    need(name)
    bundle = write_files(tmp_path / "a.zip", bundle_files())
    for number in range(20):
        Image.fromarray(noise((40 + number % 3, 60), number)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "07.png").write_bytes(b"no")
    expected = runtime.load(bundle, name, 1).predict(tmp_path, 0, batch_size=2)
    found = runtime.load(bundle, name, threads, streams).predict(tmp_path, 0, batch_size=2)
    assert [one.metadata["source"][-6:-4] for one in found] == [f"{i:02}" for i in range(20) if i != 7]
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one.confidence, other.confidence, atol=1e-6)


def test_an_error_in_the_middle_of_many_pictures_is_raised(predictor, tmp_path):
    Image.fromarray(noise((8, 8))).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"absent\.png"):
        predictor.predict([tmp_path / "a.png"] * 9 + [tmp_path / "absent.png"] + [tmp_path / "a.png"] * 9)


@pytest.mark.parametrize("asked", [{"threshold": 1.5}, {"batch_size": 0}])
def test_what_is_asked_wrongly_is_told(predictor, asked):
    with pytest.raises(UsageError, match=next(iter(asked))):
        predictor.predict(PICTURES[0], **asked)


BARE = """
import sys
class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Refuse)
import importlib.util
import importlib.metadata
version, find_spec = importlib.metadata.version, importlib.util.find_spec
def version_of(name):
    if name in {absent!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = version_of
importlib.util.find_spec = lambda name, *rest: None if name in {absent!r} else find_spec(name, *rest)
"""
TORCH = ("torch", "torchvision", "lightning", "lightning_fabric", "scipy", "hotcoco", "supervision", "matplotlib")
RUNTIME = {"detrkit", "numpy", "PIL", "msgspec", "onnxruntime", "typing_extensions", "_distutils_hack"}


def run_without(absent: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    code = BARE.format(absent=absent) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_nothing_but_the_runtimes_own_packages_is_imported(place, tmp_path):
    bundle = write_files(place, bundle_files())
    Image.fromarray(noise((40, 60))).save(tmp_path / "a.png")
    code = f"""
import detrkit.runtime
found = detrkit.runtime.load({str(bundle)!r}).predict({str(tmp_path / "a.png")!r}, threshold=0)
assert type(found).__module__ == "detrkit.detections" and len(found) == 2
from detrkit.runtimes.verify import verify_bundle
assert verify_bundle({str(bundle)!r}, cold_start=False).passed
modules = [(name, getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items())]
print(*{{name.split(".")[0] for name, file in modules if "site-packages" in file}})
"""
    ran = run_without((*TORCH, "pydantic", "yaml", "typer"), code)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) - RUNTIME == set()


def test_the_command_line_without_torch_works_or_says_what_is_missing(tmp_path):
    bundle = str(write_files(tmp_path / "a.zip", bundle_files()))
    missing = "torch is not installed"
    expected = [
        (["verify", bundle], 0, "VERIFIED"),
        (["--help"], 0, "export"),
        (["doctor"], 0, "bundles can be verified and run"),
        (["predict", bundle, "a.png"], 2, missing),
        (["verify", bundle, "--data", "data"], 2, missing),
        (["export", "detr-nano", "--out", "b"], 2, missing),
    ]
    code = f"""
from typer.testing import CliRunner
from detrkit.cli import app
for words, code, said in {expected!r}:
    ran = CliRunner().invoke(app, words)
    assert (ran.exit_code, said in ran.output) == (code, True), (words, ran.output, ran.exception)
assert "torch" not in sys.modules
"""
    ran = run_without(TORCH, code)
    assert ran.returncode == 0, ran.stderr


def test_what_runs_bundles_alone_is_locked_and_asks_for_what_the_package_asks_for():
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    known = {*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["runtime"]}
    group = project["dependency-groups"]["runtime-only"]
    assert set(group) <= known
    locked = (root / "requirements-runtime.txt").read_text(encoding="utf-8")
    assert "torch" not in locked
    for requirement in group:
        name = requirement.partition(">")[0]
        assert f"\n{name}==" in locked
    pins = [line for line in locked.splitlines() if "==" in line]
    assert locked.count(" \\\n    --hash=sha256:") >= len(pins)
