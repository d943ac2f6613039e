"""Bundles in OpenVINO's own format: only OpenVINO runs them, and nothing but its own operators."""

import hashlib

import numpy as np
import pytest

from detrkit import runtime
from detrkit.errors import BundleError, UsageError
from detrkit.runtimes.bundle import FileRecord, GraphRecord
from detrkit.runtimes.engines import openvino_core
from detrkit.runtimes.graph_check import check_openvino
from tests.support.bundles import bundle_files, expected_scores, mean_graph, noise, write_files

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("converted") / "graph.xml"
    model = openvino_core().read_model(mean_graph().SerializeToString(), b"")
    openvino.save_model(model, path, compress_to_fp16=False)
    return {"graph.xml": path.read_bytes(), "graph.bin": path.with_suffix(".bin").read_bytes()}


def files_of(converted: dict[str, bytes]) -> dict[str, bytes]:
    files = {**converted, "golden/0.png": bundle_files()["golden/0.png"]}
    records = {
        name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()
    }
    graph = GraphRecord("graph.xml", 20, weights_file="graph.bin")
    return {**files, "bundle.json": bundle_files(graphs=(graph,), files=records)["bundle.json"]}


def test_openvino_runs_its_format_unasked_and_nothing_else_does(converted, place):
    path = write_files(place, files_of(converted))
    for name in ("", "openvino", "auto"):
        predictor = runtime.load(path, name, threads=1)
        assert predictor.engine.name == "openvino"
        image = noise((50, 60), 1)
        assert np.allclose(predictor.predict(image, threshold=0).confidence, expected_scores(image), atol=1e-6)
    with pytest.raises(UsageError, match="only the runtime openvino"):
        runtime.load(path, "onnxruntime")


@pytest.mark.parametrize("damage", [{"graph.bin": b""}, {"graph.xml": b"<net/>"}, {"graph.xml": b"<net"}])
def test_damage_is_one_error(damage, converted, place):
    path = write_files(place, files_of({**converted, **damage}))
    with pytest.raises(BundleError, match="graph"):
        runtime.load(path, threads=1).predict(noise((50, 60)))


def test_operators_of_somebodys_own_are_refused(converted):
    check_openvino(converted["graph.xml"], "graph.xml")
    changed = converted["graph.xml"].replace(b'version="opset1"', b'version="extension"', 1)
    with pytest.raises(BundleError, match="operators of extension"):
        check_openvino(changed, "graph.xml")
