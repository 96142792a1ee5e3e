"""The DALI graph: from paths and numbers to a padded batch of images. The only module that imports DALI.

One graph serves the CPU and the GPU. What differs from sample to sample comes in as tensors or as branches that DALI
runs for some of the samples; nothing is drawn inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nvidia.dali
from nvidia.dali import Pipeline, pipeline_def

from dpipe.backends.dali_steps import LINEAR_STEP
from dpipe.policy import Normalize

# Filled when DALI is loaded: type checkers do not see what is in them.
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types

_INPUTS = {  # name: (dtype, number of dimensions)
    "path": (types.UINT8, 1),  # the bytes of a file name
    "source_size": (types.INT32, 1),  # (height, width) according to the index
    "matrix": (types.FLOAT, 2),  # (2, 3), output to source, continuous coordinates
    "size": (types.FLOAT, 1),  # (height, width) after the warp
    "bordered": (types.INT32, 0),  # 1 where output pixels may lie outside the source
    "fill": (types.INT16, 3),  # (1, 1, 3), what they are filled with
    "canvas": (types.FLOAT, 1),  # (height, width) after padding
    "step": (types.INT32, 1),  # (slots,), 0 or one of dali_steps
    "weights": (types.FLOAT, 2),  # (slots, 3), see photometric_step
}
_NO_RESERVE = {"device_memory_padding": 0, "host_memory_padding": 0}


def build_pipeline(
    source: Callable[[], Sequence[Any]],
    *,
    slots: int,
    normalize: Normalize | None,
    device_id: int | None,
    threads: int,
    prefetch: int,
    max_batch_size: int,
) -> Pipeline:
    """Builds the pipeline.

    Args:
        source: Called for each batch; returns the arrays of ``_INPUTS`` in order, the batch in the first dimension
            (``path`` as a list, the last two only where there are slots); raises StopIteration at the end.
        slots: Photometric operations that a sample can have.
        normalize: None to keep uint8.
        device_id: Number of the CUDA device; None for the CPU.
        threads: CPU threads.
        prefetch: Batches in the making at a time.
        max_batch_size: Of any batch.

    Returns:
        A built pipeline with two outputs: the images (N, H, W, 3), and each decoded image's (height, width, 3).
    """
    with warnings.catch_warnings():
        # DALI turns the branches of _graph into operators by rewriting its source with gast, whose use of ast is
        # deprecated since Python 3.13. Where warnings are errors, DALI would give up the rewriting.
        warnings.filterwarnings("ignore", r".*Support for arbitrary keyword arguments", DeprecationWarning)
        pipeline = _graph(
            source,
            slots,
            normalize,
            device_id is not None,
            batch_size=max_batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=prefetch,
            # This executor gives its outputs away: a batch stays valid for as long as someone holds it.
            exec_dynamic=True,
        )
    pipeline.build()
    return pipeline


@pipeline_def(enable_conditionals=True)
def _graph(source: Callable[[], Sequence[Any]], slots: int, normalize: Normalize | None, on_gpu: bool) -> Any:
    inputs = list(_INPUTS.values())[: len(_INPUTS) if slots else -2]
    path, source_size, matrix, size, bordered, fill, canvas, *steps = fn.external_source(
        source=source,
        num_outputs=len(inputs),
        dtype=[dtype for dtype, _ in inputs],
        ndim=[dimensions for _, dimensions in inputs],
        batch=True,
    )
    encoded = fn.io.file.read(path)
    stored_size = fn.peek_image_shape(encoded, adjust_orientation=False)
    # EXIF's orientation counts only where the stored pixels are not of the size that the annotations belong to.
    if stored_size[0] != source_size[0] or stored_size[1] != source_size[1]:
        # Rare images: this decoder reserves no memory for itself in advance.
        decoded = _decode(encoded, on_gpu, adjust_orientation=True, **(_NO_RESERVE if on_gpu else {}))
    else:
        decoded = _decode(encoded, on_gpu, adjust_orientation=False)
    decoded_shape = decoded.shape()

    if bordered > 0:
        # warp_affine fills with one number for all channels, so the fill colour is made the zero.
        colour = fill.gpu() if on_gpu else fill
        shifted = fn.cast(decoded, dtype=types.INT16) - colour
        warped = fn.warp_affine(shifted, matrix=matrix, size=size, fill_value=0.0)
        image = fn.cast(warped + colour, dtype=types.UINT8)
    else:
        image = fn.warp_affine(decoded, matrix=matrix, size=size)  # border pixels repeat

    for slot in range(slots):
        image = _photometric_step(image, steps[0][slot], steps[1][slot], on_gpu)

    if normalize is not None and normalize.bgr:
        image = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.BGR)
    images = fn.crop_mirror_normalize(
        image,
        mean=[0.0] if normalize is None else list(normalize.mean),
        std=[1.0] if normalize is None else list(normalize.std),
        dtype=types.UINT8 if normalize is None else types.FLOAT,
        output_layout="HWC",
        crop_h=canvas[0],
        crop_w=canvas[1],
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        out_of_bounds_policy="pad",
        fill_values=[0.0],
    )
    return images, decoded_shape


def _decode(encoded: Any, on_gpu: bool, **options: Any) -> Any:
    return fn.decoders.image(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,  # as libjpeg does on the CPU
        **options,
    )


def _photometric_step(image: Any, step: Any, weights: Any, on_gpu: bool) -> Any:
    """One operation on uint8 pixels: none, equalisation, or a weighted sum of image, grey image and mean grey level."""
    if step > 0:
        if step > LINEAR_STEP:
            image = fn.equalize(image)
        else:
            weight = weights.gpu() if on_gpu else weights
            grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
            mean = fn.cast(fn.reductions.mean(grey, dtype=types.FLOAT, axes=[0, 1]), dtype=types.INT32)
            image = fn.cast(image * weight[0] + grey * weight[1] + mean * weight[2], dtype=types.UINT8)
    return image
