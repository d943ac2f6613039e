"""Bundles that are damaged, changed, newer or not to be trusted: each is one clear error, and nothing is run."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest
from onnx import helper, numpy_helper

from detrkit.errors import BundleError, UsageError
from detrkit.machine import Machine
from detrkit.runtimes.bundle import FileRecord, GraphRecord, read_bundle
from detrkit.runtimes.compare import Difference, Tolerance
from detrkit.runtimes.contents import is_bundle
from detrkit.runtimes.predictor import load
from detrkit.runtimes.report import Accuracy, BundleReport
from detrkit.runtimes.verify import verify_bundle
from tests.support.bundles import bundle_files, mean_graph, noise, write_files


def test_a_whole_bundle_is_read_and_verified(place):
    write_files(place, bundle_files())
    assert is_bundle(place)
    found = verify_bundle(place)
    assert found.passed
    assert (found.files, found.total.missing) == (3, 0)
    assert found.total.detections > 0
    report = found.report
    assert report.runs >= 9
    assert report.latency.p99 >= report.latency.p50 > 0
    assert report.cold_start.seconds > 0
    assert report.parity == found.total
    lines = "\n".join(found.lines())
    for word in ("same detections as torch", report.machine.processor, report.version, "p95", "fresh process"):
        assert word in lines


@pytest.mark.parametrize("name", ["graph.onnx", "golden/0.png", "bundle.json"])
def test_cut_off_at_any_place_it_is_one_clear_error(name, tmp_path):
    files = bundle_files()
    for number, end in enumerate(np.random.default_rng(0).integers(0, len(files[name]), 10).tolist()):
        path = write_files(tmp_path / str(number), {**files, name: files[name][:end]})
        with pytest.raises(BundleError, match=r"bundle again|was changed|does not say"):
            verify_bundle(path)


def test_a_zip_cut_off_at_any_place_is_one_clear_error(tmp_path):
    whole = write_files(tmp_path / "whole.zip", bundle_files()).read_bytes()
    for end in np.random.default_rng(0).integers(0, len(whole), 30).tolist():
        path = tmp_path / "cut.zip"
        path.write_bytes(whole[:end])
        with pytest.raises(BundleError, match=r"cut\.zip"):
            load(path)


def test_another_graph_in_its_place_is_told(place):
    files = bundle_files()
    other = mean_graph()
    other.graph.node[7].input[0] = "area"
    swapped = other.SerializeToString()
    write_files(place, {**files, "graph.onnx": swapped})
    with pytest.raises(BundleError, match=r"was changed|bytes, expected"):
        load(place)


def test_edited_hashes_are_told(place):
    files = bundle_files()
    content = json.loads(files["bundle.json"])
    content["files"]["graph.onnx"]["sha256"] = "0" * 64
    write_files(place, {**files, "bundle.json": json.dumps(content).encode()})
    with pytest.raises(BundleError, match="was changed"):
        load(place)


def test_another_graph_with_its_hash_is_found_out_by_the_golden_pictures(place):
    other = mean_graph()
    other.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.array([[0.9, 0.5]], np.float32), "halves"))
    write_files(place, bundle_files(other.SerializeToString()))
    found = verify_bundle(place, cold_start=False)
    assert (found.passed, found.verdict, found.lines()[-1]) == (False, "failed", "FAILED")
    assert found.total.missing
    assert "golden/0.png: 2 of 4" in "\n".join(found.lines())


def test_another_runtime_or_processor_is_a_warning_while_results_are_the_same(place):
    here = BundleReport.here()
    elsewhere = msgspec.structs.replace(
        here, runtime="onnxruntime", version="1.0.0", machine=Machine("Plan9 pdp11", "PDP-11/70")
    )
    write_files(place, bundle_files(report=elsewhere))
    found = verify_bundle(place, cold_start=False)
    assert (found.passed, found.verdict) == (True, "verified with warnings")
    lines = "\n".join(found.lines())
    for word in ("1.0.0", "PDP-11/70", "Plan9", "VERIFIED WITH WARNINGS"):
        assert word in lines
    same = msgspec.structs.replace(here, runtime="onnxruntime", version=found.report.version)
    assert dataclasses.replace(found, written=same).verdict == "verified"


def test_a_runtime_of_few_digits_may_miss_a_few(tmp_path):
    found = verify_bundle(write_files(tmp_path / "a", bundle_files()), cold_start=False)
    pictures = {"a": Difference(100, 1), "b": Difference(100, 3)}
    few = dataclasses.replace(found, pictures=pictures, tolerance=Tolerance(missing=0.02))
    assert few.passed
    assert "but for 4 of 200 (allowed 2%)" in "\n".join(few.lines())
    assert not dataclasses.replace(few, tolerance=Tolerance()).passed
    assert not dataclasses.replace(few, pictures={**pictures, "c": Difference(10, 1)}).passed


def test_ap_on_the_same_annotations_has_to_be_the_same(tmp_path):
    found = verify_bundle(write_files(tmp_path / "a", bundle_files()), cold_start=False)
    then = Accuracy("set", "val", "hash", 10, 20, ap=0.5, ap50=0.7, low=0.4, high=0.6, torch_ap=0.5)

    def with_accuracy(**changes):
        here = msgspec.structs.replace(then, torch_ap=None, **changes)
        return dataclasses.replace(
            found,
            report=msgspec.structs.replace(found.report, accuracy=here),
            written=msgspec.structs.replace(found.report, accuracy=then),
        )

    assert with_accuracy(ap=0.50003).verdict == "verified"
    worse = with_accuracy(ap=0.4997)
    assert worse.verdict == "failed"
    assert "AP 0.4997 on set, val, expected 0.5000" in "\n".join(worse.lines())
    other = with_accuracy(ap=0.1, sha256="other")
    assert (other.verdict, "other annotations" in other.warnings[0]) == ("verified with warnings", True)


def test_a_newer_version_says_what_to_do(place):
    files = bundle_files()
    content = json.loads(files["bundle.json"]) | {"version": 3, "news": True}
    write_files(place, {**files, "bundle.json": json.dumps(content).encode()})
    with pytest.raises(BundleError, match=r"version 3, newer than the 2.*pip install"):
        load(place)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside.onnx", "a/../../b", "C:/graph.onnx", "..\\x", "", "./x"]
)
def test_names_that_lead_outside_are_refused(name, tmp_path):
    files = bundle_files()
    record = FileRecord("0" * 64, 10)
    changed = {
        **files,
        "bundle.json": bundle_files(graphs=(GraphRecord(name, 20),), files={name: record})["bundle.json"],
    }
    (tmp_path / "outside.onnx").write_bytes(files["graph.onnx"])
    with pytest.raises(BundleError, match="outside"):
        load(write_files(tmp_path / "bundle", changed))


def test_links_that_lead_outside_are_refused(tmp_path):
    files = bundle_files()
    path = write_files(tmp_path / "bundle", files)
    (tmp_path / "outside.onnx").write_bytes(files["graph.onnx"])
    (path / "graph.onnx").unlink()
    (path / "graph.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match="link that leads outside"):
        load(path)


def external(model) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = 1
    model.graph.initializer[0].external_data.add(key="location", value="/etc/hostname")


def external_in_attribute(model) -> None:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32))
    tensor.external_data.add(key="location", value="../weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))


def own_operator(model) -> None:
    model.graph.node.append(helper.make_node("Run", ["images"], ["more"], domain="com.example"))


def own_domain(model) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def own_operator_in_a_branch(model) -> None:
    inner = helper.make_graph([helper.make_node("Run", [], ["x"], domain="com.example")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["one"], ["more"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "weights in other files"),
        (external_in_attribute, "weights in other files"),
        (own_operator, "operators of com.example"),
        (own_domain, "operators of com.microsoft"),
        (own_operator_in_a_branch, "operators of com.example"),
    ],
)
def test_graphs_that_need_more_than_themselves_are_refused_before_any_runtime(change, message, place, monkeypatch):
    monkeypatch.setattr("detrkit.runtimes.predictor.make_engine", lambda *_: pytest.fail("it was run"))
    model = mean_graph()
    change(model)
    write_files(place, bundle_files(model.SerializeToString()))
    with pytest.raises(BundleError, match=message):
        load(place)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\xff" * 50, b"\x00" * 8])
def test_what_is_no_graph_is_told(content, place):
    write_files(place, bundle_files(content or b"\n"))
    with pytest.raises(BundleError, match=r"no ONNX graph|holds no"):
        load(place)


def test_what_is_no_bundle_is_told(tmp_path):
    (tmp_path / "text.zip").write_text("not a zip")
    for path in (tmp_path, tmp_path / "text.zip", tmp_path / "absent"):
        with pytest.raises(BundleError, match=str(path.name)):
            read_bundle(path)
        assert path.suffix == ".zip" or not is_bundle(path)


def test_unknown_fields_and_other_kinds_are_told(place):
    files = bundle_files()
    for change in ({"kind": "other"}, {"more": 1}, {"graphs": []}, {"classes": {"names": ["a"]}}, {"golden": 3}):
        content = json.loads(files["bundle.json"]) | change
        write_files(place, {**files, "bundle.json": json.dumps(content).encode()})
        with pytest.raises(BundleError, match=r"bundle\.json"):
            load(place)
        place.unlink() if place.is_file() else None


def test_a_raw_bundle_says_that_it_gives_no_detections(place):
    write_files(place, bundle_files(graphs=(GraphRecord("graph.onnx", 20, outputs="raw"),)))
    with pytest.raises(UsageError, match="--raw"):
        load(place)


def test_an_unknown_runtime_is_told(place):
    write_files(place, bundle_files())
    with pytest.raises(UsageError, match="onnxruntime, openvino, openvino-bf16, auto"):
        load(place, "tensorrt")


def test_pixels_are_what_the_graph_sees(place):
    predictor = load(write_files(place, bundle_files()))
    image = noise((50, 30), 3)
    assert predictor.predict(image, threshold=0).xyxy.shape == (2, 4)
