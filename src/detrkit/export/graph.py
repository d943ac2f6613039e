"""One ONNX graph from uint8 pictures of any sizes to detections.

Shapes: B images, H x W padded height and width, Q queries, S labels of the head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from detrkit.classes import SizeHW
from detrkit.detectors.stages import evaluation_mode
from detrkit.errors import MissingExtraError, UsageError
from detrkit.families.family import BuiltModel
from detrkit.families.postprocess import rank_queries
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.runtimes.engines import INPUTS

OPSETS = (18, 20, 23)
DEFAULT_OPSET = 20
LEAST_SIDE = 64
"""Height and width in pixels that a graph is given at least: on smaller maps torch would fix their size."""

_DIMENSIONS = ("batch", "height", "width")
_EXAMPLE = (2, 192, 224)  # all different, or torch would take two for one


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """What a graph is like.

    Args:
        opset: ONNX operator set, one of :data:`OPSETS`.
        raw: Give out logits and boxes 0 to 1 instead of detections.
        shape_hw: Fixed height and width; None leaves both and the batch free.
        batch: Images of a batch, where the shape is fixed.
        layout: Order of the axes of ``images``, ``nhwc`` or ``nchw``.
        gather: Read feature maps by plain indexing instead of ``GridSample``.
        half: Store weights in float16; they are computed with in float32.

    Raises:
        UsageError: They contradict each other, or there is no such thing.
    """

    opset: int = DEFAULT_OPSET
    raw: bool = False
    shape_hw: SizeHW | None = None
    batch: int | None = None
    layout: Literal["nhwc", "nchw"] = "nhwc"
    gather: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"opset is {self.opset}, expected one of {', '.join(map(str, OPSETS))}")
        if self.layout not in ("nhwc", "nchw"):
            raise UsageError(f"layout is {self.layout!r}, expected nhwc or nchw")
        if self.shape_hw is not None and min(self.shape_hw) < 1:
            raise UsageError(f"shape is {self.shape_hw}, expected height and width of 1 pixel or more")
        if self.batch is not None and (self.batch < 1 or self.shape_hw is None):
            raise UsageError(f"batch is {self.batch}, expected 1 or more, and together with a fixed shape")

    @property
    def fixed_batch(self) -> int | None:
        """Images of a batch, 1 where only the shape is given; None if it is free."""
        return None if self.shape_hw is None else self.batch or 1


class DetectionGraph(nn.Module):
    """A model with its preprocessing and postprocessing, on padded batches.

    Args:
        built: Model, in evaluation mode and prepared for inference.
        raw: Give out logits and boxes of the last layer.
        channels_first: Take images as ``[B, 3, H, W]``.
        split: Of a model with masks, give out what :class:`MaskGraph` computes masks of, instead of all masks.
    """

    def __init__(self, built: BuiltModel, raw: bool = False, channels_first: bool = False, split: bool = False):
        super().__init__()
        self.split = split
        self.network = built.model
        self.raw = raw
        self.channels_first = channels_first
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
            images: uint8 ``[B, H, W, 3]`` RGB, or channels first; what lies outside of an image's size does not
                count.
            sizes: Height and width of each image in the batch, int64 ``[B, 2]``.
            original_sizes: Height and width of the picture in whose pixels boxes are wanted, int64 ``[B, 2]``.

        Returns:
            Scores ``[B, Q]``, class ids int64 ``[B, Q]`` and boxes xyxy ``[B, Q, 4]``, best first; or logits
            ``[B, Q, S + 1]`` and boxes cxcywh ``[B, Q, 4]``, 0 to 1 of the image. Of a model with masks, then
            mask logits ``[B, Q, h, w]`` in the same order; or, split, the query of each detection, int64
            ``[B, Q]``, and what :meth:`detrkit.types.QueryMasks.parts` gives, ``sizes`` behind the cells.
        """
        pixels = images if self.channels_first else images.permute(0, 3, 1, 2)
        height, width = pixels.shape[2:]
        below = torch.arange(height)[None] >= sizes[:, :1]
        right = torch.arange(width)[None] >= sizes[:, 1:]
        padding_mask = below[:, :, None] | right[:, None, :]
        normalized = pixels.float() * self.factor + self.shift
        outputs = self.network(normalized.masked_fill(padding_mask[:, None], 0.0), padding_mask)
        logits, boxes = outputs.logits[-1], outputs.boxes_cxcywh[-1]
        masks = outputs.masks
        if self.raw:
            return logits, boxes, *(() if masks is None else (masks.all(),))
        scores, class_ids, boxes = self._family.rank(logits, boxes, self.logit_index, self._family.scoring)
        scale = original_sizes.flip(1).repeat(1, 2).float()  # width, height, width, height
        found = scores, class_ids, cxcywh_to_xyxy(boxes) * scale[:, None]
        if masks is None:
            return found
        order = rank_queries(logits, self.logit_index, self._family.scoring)[2]
        if self.split:
            cells, *parts = masks.parts()
            return *found, order, torch.cat([cells, sizes[:, None]], dim=1), *parts
        count, queries = order.shape
        rows = torch.arange(count * queries) // queries
        return *found, masks(rows, order.flatten()).unflatten(0, (count, queries))


class MaskGraph(nn.Module):
    """Masks of some queries of one image; its inputs are outputs of a split :class:`DetectionGraph`."""

    def __init__(self, built: BuiltModel):
        super().__init__()
        self.network = built.family.mask_graph(built.model)

    def forward(self, queries: Tensor, maps: list[Tensor]) -> Tensor:
        """Return mask logits ``[M, h, w]`` of queries ``[M, D]``, given maps ``[1, C, h, w]`` without padding."""
        found: Tensor = self.network(queries, maps[0], maps[1:])
        return found


def trace_graph(built: BuiltModel, options: GraphOptions, split: bool = False) -> torch.export.ExportedProgram:
    """Trace a model on the CPU, prepared for inference, with its preprocessing and postprocessing.

    ``split`` leaves masks to :func:`trace_masks`.
    """
    graph = DetectionGraph(built, options.raw, options.layout == "nchw", split)
    count, height, width = _EXAMPLE
    shapes: Any = None
    if options.shape_hw is not None:
        count, (height, width) = options.fixed_batch or 1, options.shape_hw
    else:
        batch = torch.export.Dim(_DIMENSIONS[0], min=1)
        sides = [torch.export.Dim(name, min=LEAST_SIDE) for name in _DIMENSIONS[1:]]
        axes = (2, 3) if graph.channels_first else (1, 2)
        shapes = ({0: batch, **dict(zip(axes, sides, strict=True))}, {0: batch}, {0: batch})
    images = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * count)
    originals = 2 * sizes  # a tensor of its own: of one given twice, torch makes one input
    # Warnings of the exporter are about itself. What torch cannot prove of sizes of all kinds would else fix them;
    # it becomes an assertion, which ONNX drops.
    gather = _Gathers() if options.gather else contextlib.nullcontext()
    with evaluation_mode(graph), torch.no_grad(), warnings.catch_warnings(), gather:
        warnings.simplefilter("ignore")
        return torch.export.export(
            graph,
            (images.permute(0, 3, 1, 2).contiguous() if graph.channels_first else images, sizes, originals),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def trace_masks(built: BuiltModel) -> torch.export.ExportedProgram:
    """Trace the part of a model that makes masks, for any number of queries and maps of any size."""
    split, graph = DetectionGraph(built, split=True), MaskGraph(built)
    sizes = torch.tensor([_EXAMPLE[1:]])
    with evaluation_mode(split), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = split(torch.zeros(1, *_EXAMPLE[1:], 3, dtype=torch.uint8), sizes, 2 * sizes)
        queries, maps = given[5][0, :5], list(given[6:])
        # maps of one size have one name for it
        names = {
            size: [torch.export.Dim(f"{side}{size[0]}") for side in "hw"] for size in (x.shape[2:] for x in maps)
        }
        sides = [dict(zip((2, 3), names[one.shape[2:]], strict=True)) for one in maps]
        return torch.export.export(
            graph,
            (queries, maps),
            dynamic_shapes=({0: torch.export.Dim("count")}, sides),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def onnx_graph(program: torch.export.ExportedProgram, options: GraphOptions) -> bytes:
    """Write a traced model, or what makes its masks, as an ONNX file with everything in it.

    Raises:
        UsageError: onnx and onnxscript are not installed.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from error
    # of a split graph, what is made first of maps has the names that the other reads
    given, made = (
        len(names) for names in (program.graph_signature.user_inputs, program.graph_signature.user_outputs)
    )
    maps = [f"map_{number}" for number in range(max(given, made))]
    inputs: Sequence[str] = INPUTS
    names = ["logits", "boxes", "masks"] if options.raw else ["scores", "labels", "boxes", "masks"]
    if made == 1:
        inputs, names = ["queries", *maps], ["masks"]
    elif made > len(names):
        names = [*names[:3], "query_numbers", "cells", "queries", *maps]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=options.opset,
            input_names=inputs[:given],
            output_names=names[:made],
            verbose=False,
        )
    if options.shape_hw is None and made > 1:
        _name_dimensions(exported.model, options.layout)
    _clean(exported.model)
    if options.half:
        _store_half(exported.model.graph)
    content: bytes = onnx_ir.to_proto(exported.model).SerializeToString()
    return content


class _Gathers(TorchFunctionMode):
    """Reads feature maps by plain indexing wherever ``grid_sample`` is called inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what was called, or its stand-in."""
        if func is functional.grid_sample:
            return gather_samples(*args[:2])
        return func(*args, **(kwargs or {}))


def gather_samples(maps: Tensor, grid: Tensor) -> Tensor:
    """Read maps bilinearly, zero outside, as ``grid_sample`` does with ``align_corners=False``.

    Args:
        maps: ``[N, C, h, w]``.
        grid: Points (x, y), -1 to 1 from edge to edge, ``[N, Q, S, 2]``.

    Returns:
        ``[N, C, Q, S]``.
    """
    count, features, height, width = maps.shape
    rows = maps.flatten(2).transpose(1, 2).reshape(-1, features)
    starts = torch.arange(count, device=maps.device)[:, None, None] * (height * width)
    total = torch.zeros_like(grid[..., :1])
    for line, line_share in _neighbours(grid[..., 1], height):
        for column, column_share in _neighbours(grid[..., 0], width):
            read = rows[starts + line * width + column]
            total = total + read * (line_share * column_share)[..., None]
    return total.permute(0, 3, 1, 2)


def _neighbours(positions: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the cells before and behind positions of -1 to 1, and their shares, 0 for one outside of the map."""
    cells = ((positions + 1) * size - 1) / 2
    before = cells.floor()
    behind = cells - before
    return [
        (cell.clamp(min=0).clamp(max=size - 1).long(), share * ((cell >= 0) & (cell < size)))
        for cell, share in ((before, 1 - behind), (before + 1, behind))
    ]


def round_to_half(model: nn.Module) -> None:
    """Round weights, in place, to what float16 can hold; vectors, such as biases and norms, stay as they are."""
    with torch.no_grad():
        for parameter in model.parameters():
            half = parameter.half().float()
            if parameter.ndim > 1 and half.isfinite().all():
                parameter.copy_(half)


def _store_half(graph: Any) -> None:
    """Store the weights that float16 holds exactly in it, each with a cast behind."""
    import onnx_ir

    for name, value in list(graph.initializers.items()):
        weights = value.const_value.numpy()
        if weights.dtype != np.float32 or weights.ndim < 2:
            continue
        half = weights.astype(np.float16)
        if not np.array_equal(half, weights):
            continue
        stored = onnx_ir.val(f"{name}.half", const_value=onnx_ir.tensor(half, name=f"{name}.half"))
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
        del graph.initializers[name]
        graph.register_initializer(stored)
        value.replace_all_uses_with(cast.outputs[0])
        cast.outputs[0].name = name
        graph.insert_before(graph[0], cast)


def _name_dimensions(model: Any, layout: str) -> None:
    """Name free dimensions as people do."""
    import onnx_ir

    images = model.graph.inputs[0].shape
    free = images if layout == "nhwc" else [images[0], images[2], images[3]]
    names = {str(dim): name for dim, name in zip(free, _DIMENSIONS, strict=False)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape([names.get(str(dim), dim) for dim in value.shape])


def _clean(model: Any) -> None:
    """Take out where in whose files each operation was written."""
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
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
