"""Cost of a detector whatever the machine's speed: parameters, arithmetic, memory."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.detectors.stages import Stages, prepare
from detrkit.hardware import PeakMemory, count_flops
from detrkit.preprocess import image_size_hw

NOT_COUNTED = "element by element work, normalisation, resizing, sampling, sorting and suppression"
"""What :attr:`Cost.flops` leaves out; each of them moves more memory than it computes."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one detection.

    Args:
        parameters: Numbers that training can change.
        buffers: Numbers that are kept besides, such as the statistics of batch norms.
        weight_bytes: Bytes of parameters and buffers.
        flops: Operations of one forward, a multiplication and an addition being two: matrix products, convolutions
            and attention; see :data:`NOT_COUNTED`. What the papers call FLOPs of a detector is often half of it.
        peak_bytes: Memory that one detection takes at most beyond what was in use before it, the weights.
        input_shape: Shape of the largest tensor that the network is given.
    """

    parameters: int
    buffers: int
    weight_bytes: int
    flops: int
    peak_bytes: int
    input_shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures ready for JSON."""
        return {**dataclasses.asdict(self), "input_shape": list(self.input_shape)}


def count_cost(stages: Stages, images: Tensor | Sequence[Tensor]) -> Cost:
    """Count parameters of a detector, and arithmetic and memory of one detection.

    On the CPU memory is what the process grows by, after what it held unused was given back; on CUDA what
    torch's allocator handed out. What a module computes in kernels of its own, beyond torch's operators, is
    not seen.

    Args:
        stages: Detector.
        images: One image, or those of a batch, uint8 ``[3, H, W]`` RGB.
    """
    batch = [images] if isinstance(images, Tensor) else list(images)
    inputs = prepare(stages, batch)
    with _frozen(stages.network), count_flops() as count:
        stages.forward(inputs)
    return Cost(
        **count_parameters(stages.network),
        flops=int(count.get_total_flops()),
        peak_bytes=peak_memory(stages, batch),
        input_shape=max(_shapes(inputs), key=lambda shape: torch.Size(shape).numel(), default=()),
    )


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Count the first three figures of :class:`Cost`; what parts of it share counts once."""
    parameters = list(network.parameters())
    tensors = itertools.chain(parameters, network.buffers())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "buffers": sum(buffer.numel() for buffer in network.buffers()),
        "weight_bytes": sum(tensor.nbytes for tensor in tensors),
    }


def peak_memory(stages: Stages, images: Sequence[Tensor]) -> int:
    """Measure the bytes that one detection takes at most beyond what was in use before it.

    Detects twice: the first time libraries make what they keep.
    """
    memory = PeakMemory(stages.device)
    _detect(stages, images)
    _give_back(stages.device)
    memory.reset()
    before = memory.now()
    _detect(stages, images)
    return max(memory.peak() - before, 0)


def _detect(stages: Stages, images: Sequence[Tensor]) -> None:
    outputs = stages.forward(prepare(stages, images))
    stages.postprocess(outputs, [image_size_hw(image) for image in images])


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let no parameter ask for gradients: torch's counter hooks those that do, and fails where there are none."""
    asking = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _give_back(device: torch.device) -> None:
    """Return memory that is free, so that what comes next shows; only glibc can be asked to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    """List the shapes of tensors in containers and objects with ``tensors``, as torchvision's lists of images."""
    if isinstance(inputs, Tensor):
        return [tuple(inputs.shape)]
    if isinstance(inputs, dict):
        return [shape for value in inputs.values() for shape in _shapes(value)]
    if isinstance(inputs, list | tuple):
        return [shape for value in inputs for shape in _shapes(value)]
    return _shapes(inputs.tensors) if hasattr(inputs, "tensors") else []


@contextlib.contextmanager
def count_kept(model: nn.Module, found: dict[str, int], label: Callable[[], str]) -> Iterator[None]:
    """Count the bytes that autograd keeps for the backward pass, parameters and buffers apart, by label.

    Of recomputed parts (:mod:`detrkit.nn.recompute`) nothing inside is kept, and what enters them counts where it
    comes from, if that keeps it.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = []  # so that no address is used twice meanwhile

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage)
            found[label()] = found.get(label(), 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield
