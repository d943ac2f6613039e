"""Bundles that somebody made to do harm, sealed rightly: one clear error each, quickly, nothing else read."""

import hashlib
import json
import os
import sys
import time
import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper

from detrkit.errors import BundleError
from detrkit.machine import peak_resident_bytes
from detrkit.runtimes.bundle import GraphRecord
from detrkit.runtimes.graph_check import check_openvino
from detrkit.runtimes.predictor import load
from detrkit.runtimes.verify import verify_bundle
from tests.support.bundles import bundle_files, mean_graph, noise, resealed, write_files

_opened: list[str] | None = None


def _note_open(event, arguments):
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(os.path.realpath(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def _audit():
    sys.addaudithook(_note_open)


def refused(path, message: str, *, act=load) -> None:
    """Check that a bundle gives one error within 10 s and 300 MB, and that no file outside of it is opened."""
    global _opened
    before, start, _opened = peak_resident_bytes(), time.perf_counter(), []
    try:
        with pytest.raises(BundleError, match=message) as told:
            act(path)
    finally:
        opened, _opened = _opened, None
    assert len(str(told.value)) < 2000
    assert str(path.name) in str(told.value)
    assert time.perf_counter() - start < 10  # of a machine with other work; idle, it is milliseconds
    assert peak_resident_bytes() - before < 300e6
    inside = os.path.realpath(path)
    others = [file for file in opened if not file.startswith(inside) and not file.endswith((".py", ".pyc", ".so"))]
    assert not [file for file in others if not file.startswith(("/proc", "/sys", sys.prefix, sys.base_prefix))]


def put(*keys, value):
    """Return a change that puts a value into a manifest."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def deep(levels: int) -> bytes:
    return b'"licence": "", "x": ' + b"[" * levels + b"]" * levels


GOLDEN = ("golden", 0)
NONSENSE = {
    "sides of nothing": put("preprocessing", "eval_size", value=0),
    "negative sides": put("preprocessing", "max_size", value=-5),
    "endless sides": put("preprocessing", "eval_size", value=10**9),
    "endless padding": put("preprocessing", "least_side", value=10**9),
    "endless fixed shape": put("preprocessing", "fixed_hw", value=[10**6, 10**6]),
    "number beyond all": put("max_detections", value=10**400),
    "text for a number": put("max_detections", value="many"),
    "no number": put("preprocessing", "mean", value=[float("nan")] * 3),
    "infinite": put("preprocessing", "std", value=[float("inf")] * 3),
    "beyond float": b'"licence": "", "max_detections": 1e999',
    "two channels": put("preprocessing", "mean", value=[0.5, 0.5]),
    "division by nothing": put("preprocessing", "std", value=[0.0, 1.0, 1.0]),
    "range the wrong way": put("preprocessing", "pixel_range", value=[9.0, 1.0]),
    "scores that are none": put(*GOLDEN, "scores", value=[float("nan"), 0.1]),
    "scores too few": put(*GOLDEN, "scores", value=[0.5]),
    "boxes of three": put(*GOLDEN, "boxes_xyxy", value=[[1, 2, 3], [1, 2, 3]]),
    "classes that are not there": put(*GOLDEN, "class_ids", value=[1, 9]),
    "negative classes": put(*GOLDEN, "class_ids", value=[1, -1]),
    "negative bytes": put("files", "graph.onnx", "bytes", value=-5),
    "bytes beyond all": put("files", "graph.onnx", "bytes", value=10**15),
    "files as a list": put("files", value=[]),
    "a graph that is not listed": put("graphs", 0, "file", value="other.onnx"),
    "a graph of no name": put("graphs", 0, "file", value=None),
    "a name with nul": put("graphs", 0, "file", value="graph\0.onnx"),
    "a lone surrogate": put("graphs", 0, "file", value="\ud800"),
    "no class": put("classes", value={"names": [], "category_ids": [], "slots": [], "num_slots": 0}),
    "classes twice": put("classes", "category_ids", value=[17, 17]),
    "endless rows": put("classes", "slots", value=[0, 10**30]),
    "thresholds of other classes": put("thresholds", value={"version": 1, "classes": []}),
    "thresholds as a list": put("thresholds", value=[1]),
    "report as text": put("report", value="fine"),
    "deep nesting": deep(100_000),
    "nesting in what is kept": b'"licence": "", "provenance": {"config": '
    + b'{"a":' * 50_000
    + b"1"
    + b"}" * 50_001,
    "unknown fields": put("plugin", value="import os"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_with_a_right_seal_is_refused(name, tmp_path):
    files = bundle_files()
    path = write_files(
        tmp_path / "bundle", {**files, "bundle.json": resealed(files["bundle.json"], NONSENSE[name])}
    )
    refused(path, r"bundle\.json|graph|outside")


def test_golden_pictures_that_are_not_there_or_no_pictures_are_told(tmp_path):
    files = bundle_files()
    absent = resealed(files["bundle.json"], put(*GOLDEN, "file", value="golden/9.png"))
    refused(write_files(tmp_path / "a", {**files, "bundle.json": absent}), "9.png", act=verify_bundle)
    text = b"no picture"
    record = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    changed = resealed(files["bundle.json"], put("files", "golden/0.png", value=record))
    path = write_files(tmp_path / "b", {**files, "bundle.json": changed, "golden/0.png": text})
    refused(path, "0.png", act=verify_bundle)


def test_a_manifest_that_is_too_large_is_not_read(place):
    write_files(place, {**bundle_files(), "bundle.json": b'{"a": "' + b"x" * (17 << 20) + b'"}'})
    refused(place, "bytes, expected at most")


def test_names_that_a_zip_has_twice_are_told(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("graph.onnx", b"another")
    refused(path, "graph.onnx more than once")


@pytest.mark.parametrize("name", ["bundle.json", "graph.onnx", "golden/0.png"])
def test_zip_bombs_stay_small(name, tmp_path):
    files, path = bundle_files(), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for each, content in files.items():
            archive.writestr(each, bytes(1 << 26) if each == name else content)
    refused(path, f"{name} cannot be read: it has 67,108,864 bytes, expected at most", act=verify_bundle)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_whose_decoder_takes_what_memory_it_likes_is_refused(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in bundle_files().items():
            archive.writestr(name, content)
    refused(tmp_path / "a.zip", "expected stored or deflated")


def test_a_zip_that_lies_about_sizes_is_told(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24  # size of the first file in the directory
    content[place : place + 4] = (40).to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "graph.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["graph.onnx", "bundle.json"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    path = write_files(tmp_path / "bundle", bundle_files())
    (path / name).unlink()
    os.mkfifo(path / name)
    refused(path, "no file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a folder nor a file")


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "/dev/zero", "loop"])
def test_links_and_linked_folders_that_lead_outside_are_refused(target, tmp_path):
    path = write_files(tmp_path / "bundle", bundle_files())
    (tmp_path / "secret").write_bytes(b"secret")
    (path / "loop").symlink_to("loop")
    (path / "graph.onnx").unlink()
    (path / "graph.onnx").symlink_to(target)
    refused(path, "graph.onnx")


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer, which its own packages do not write so deep."""
    size = len(content)
    length = b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_nested_too_deeply_is_refused(runtime, tmp_path):
    pytest.importorskip(runtime)
    whole = mean_graph().SerializeToString()
    inner = field(1, field(1, b"one") + field(2, b"x") + field(4, b"Identity")) + field(12, field(1, b"x"))
    for _ in range(5000):
        branch = field(5, field(1, b"then_branch") + field(6, inner))
        node = field(1, b"one") + field(2, b"x") + field(4, b"If") + branch
        inner = field(1, node) + field(12, field(1, b"x"))
    path = write_files(tmp_path / "bundle", bundle_files(whole + field(7, inner)))
    refused(path, "cannot open the graph", act=lambda path: load(path, runtime, 1))


def wrong_outputs():
    """Graphs of the right names that give no detections."""
    for name, shape, kind, value in (
        ("scores", [1, 3], TensorProto.FLOAT, 0.5),
        ("scores", [1, 2], TensorProto.FLOAT, float("nan")),
        ("labels", [1, 2], TensorProto.INT64, 7),
        ("labels", [1, 2], TensorProto.INT64, -1),
        ("labels", [1, 2], TensorProto.FLOAT, 0.0),
        ("boxes", [1, 2, 3], TensorProto.FLOAT, 1.0),
        ("boxes", [2], TensorProto.FLOAT, 1.0),
        ("boxes", [1, 2, 4], TensorProto.FLOAT, float("inf")),
    ):
        model = mean_graph()
        node = next(node for node in model.graph.node if name in node.output)
        model.graph.node.remove(node)
        array = np.full(shape, value, helper.tensor_dtype_to_np_dtype(kind))
        tensor = helper.make_tensor(name, kind, shape, array.ravel().tolist())
        model.graph.node.append(helper.make_node("Constant", [], [name], value=tensor))
        output = next(output for output in model.graph.output if output.name == name)
        output.type.tensor_type.ClearField("shape")
        output.type.tensor_type.elem_type = kind
        yield model


def test_graphs_that_give_no_detections_are_told(tmp_path):
    for number, model in enumerate(wrong_outputs()):
        path = write_files(tmp_path / f"{number}.zip", bundle_files(model.SerializeToString()))
        predictor = load(path, threads=1)
        with pytest.raises(BundleError, match=r"shapes|labels|finite"):
            predictor.predict(noise((20, 30)), 0)


def test_a_graph_of_other_inputs_is_told(tmp_path):
    model = mean_graph()
    model.graph.input[0].name = "pixels_of_mine"
    model.graph.node[0].input[0] = "pixels_of_mine"
    path = write_files(tmp_path / "a.zip", bundle_files(model.SerializeToString()))
    with pytest.raises(BundleError, match="pixels_of_mine"):
        load(path, threads=1).predict(noise((20, 30)), 0)


def test_a_seal_counts_bytes_so_that_later_fields_do_not_break_it(tmp_path):
    files = bundle_files()
    content = resealed(files["bundle.json"], put("report", "later", value=1))
    load(write_files(tmp_path / "a.zip", {**files, "bundle.json": content}))
    with pytest.raises(BundleError, match="was changed"):
        load(write_files(tmp_path / "b.zip", {**files, "bundle.json": content.replace(b"later", b"Later")}))
    assert json.loads(content)["seal"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'<!DOCTYPE n [<!ENTITY a "b">]><net><layer version="opset1" name="&a;"/></net>', "declares entities"),
        (b'<net><layer version="extension"/></net>', "operators of extension"),
        (b'<net><layer version="opset1"/>', "cut off"),
        (b"<net/>", "no OpenVINO graph"),
        (b"<a>" * 50_000 + b"</a>" * 50_000, "no OpenVINO graph"),
        (b"\xff\xfe\x00", "cut off"),
    ],
)
def test_openvino_graphs_that_need_more_than_themselves_are_refused(content, message):
    with pytest.raises(BundleError, match=message):
        check_openvino(content, "graph.xml")


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/hostname", "absent.bin"])
def test_weights_that_lie_elsewhere_are_refused(name, tmp_path):
    graph = b'<net><layer version="opset1"/></net>'
    files = bundle_files(graph, graphs=(GraphRecord("graph.onnx", 20, weights_file=name),))
    refused(write_files(tmp_path / "bundle", files), "weights|hostname|absent")
