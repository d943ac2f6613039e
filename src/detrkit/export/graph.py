"""One ONNX graph from uint8 pictures of any sizes to detections.

Shapes: B images, H x W padded height and width, Q queries, S labels of the head.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.detectors.stages import evaluation_mode
from detrkit.errors import MissingExtraError, UsageError
from detrkit.families.family import BuiltModel
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.runtimes.engines import INPUTS

OPSETS = (18, 20, 23)
DEFAULT_OPSET = 20
LEAST_SIDE = 64
"""Height and width in pixels that a graph is given at least: on smaller maps torch would fix their size."""

_DIMENSIONS = ("batch", "height", "width")
_EXAMPLE = (2, 192, 224)  # all different, or torch would take two for one


class DetectionGraph(nn.Module):
    """A model with its preprocessing and postprocessing, on padded batches.

    Args:
        built: Model, in evaluation mode and prepared for inference.
        raw: Give out logits and boxes of the last layer.
    """

    def __init__(self, built: BuiltModel, raw: bool = False):
        super().__init__()
        self.network = built.model
        self.raw = raw
        self._family = built.family
        mean, std = (
            torch.tensor(numbers) for numbers in (built.config.transforms.mean, built.config.transforms.std)
        )
        self.register_buffer("factor", (1 / (255 * std)).view(3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(3, 1, 1))
        self.register_buffer("logit_index", torch.tensor(built.class_map.logit_index))
        self.factor: Tensor
        self.shift: Tensor
        self.logit_index: Tensor

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: uint8 ``[B, H, W, 3]`` RGB; what lies outside of an image's size does not count.
            sizes: Height and width of each image in the batch, int64 ``[B, 2]``.
            original_sizes: Height and width of the picture in whose pixels boxes are wanted, int64 ``[B, 2]``.

        Returns:
            Scores ``[B, Q]``, class ids int64 ``[B, Q]`` and boxes xyxy ``[B, Q, 4]``, best first; or logits
            ``[B, Q, S + 1]`` and boxes cxcywh ``[B, Q, 4]``, 0 to 1 of the image.
        """
        _, height, width, _ = images.shape
        below = torch.arange(height)[None] >= sizes[:, :1]
        right = torch.arange(width)[None] >= sizes[:, 1:]
        padding_mask = below[:, :, None] | right[:, None, :]
        normalized = images.permute(0, 3, 1, 2).float() * self.factor + self.shift
        outputs = self.network(normalized.masked_fill(padding_mask[:, None], 0.0), padding_mask)
        logits, boxes = outputs.logits[-1], outputs.boxes_cxcywh[-1]
        if self.raw:
            return logits, boxes
        scores, class_ids, boxes = self._family.rank(logits, boxes, self.logit_index, self._family.scoring)
        scale = original_sizes.flip(1).repeat(1, 2).float()  # width, height, width, height
        return scores, class_ids, cxcywh_to_xyxy(boxes) * scale[:, None]


def export_graph(built: BuiltModel, *, opset: int = DEFAULT_OPSET, raw: bool = False) -> bytes:
    """Export a model as an ONNX file with everything in it.

    Args:
        built: Model on the CPU, prepared for inference.
        opset: ONNX operator set, one of :data:`OPSETS`.
        raw: Give out logits and boxes instead of detections.

    Raises:
        UsageError: The operator set is none of these, or onnx and onnxscript are not installed.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset is {opset}, expected one of {', '.join(map(str, OPSETS))}")
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from error
    graph = DetectionGraph(built, raw)
    names = ("logits", "boxes") if raw else ("scores", "labels", "boxes")
    # warnings of exporter and converter are about themselves, nothing that a person could change
    with evaluation_mode(graph), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _trace(graph)
        exported: Any = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=INPUTS, output_names=names, verbose=False
        )
    _clean(exported.model)
    content: bytes = onnx_ir.to_proto(exported.model).SerializeToString()
    return content


def _trace(graph: DetectionGraph) -> torch.export.ExportedProgram:
    """Trace a graph for batches and images of any size."""
    count, height, width = _EXAMPLE
    sizes = torch.tensor([[height, width], [height - 40, width - 9]])
    originals = 2 * sizes  # a tensor of its own: of one given twice, torch makes one input
    batch = torch.export.Dim(_DIMENSIONS[0], min=1)
    sides = {axis: torch.export.Dim(_DIMENSIONS[axis], min=LEAST_SIDE) for axis in (1, 2)}
    # What torch cannot prove of sizes of all kinds would else fix them; it becomes an assertion, which ONNX drops.
    return torch.export.export(
        graph,
        (torch.zeros(count, height, width, 3, dtype=torch.uint8), sizes, originals),
        dynamic_shapes=({0: batch, **sides}, {0: batch}, {0: batch}),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _clean(model: Any) -> None:
    """Name dimensions as people do, and take out where in whose files each operation was written."""
    names = {
        str(dim): name
        for dim, name in zip(model.graph.inputs[0].shape, _DIMENSIONS, strict=False)
        if str(dim) != name
    }
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # of expressions in torch's names; runtimes infer their own
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
        value.shape = onnx_ir.Shape([names.get(str(dim), dim) for dim in value.shape])
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
