"""The DALI graph: from paths and numbers to a padded batch of images. The only module that imports DALI.

One graph serves the CPU and the GPU. What differs from sample to sample comes in as tensors or as branches that DALI
runs for some of the samples; nothing is drawn inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import nvidia.dali
from nvidia.dali import Pipeline, pipeline_def

from dpipe.backends.dali_options import DaliOptions
from dpipe.backends.dali_steps import LINEAR_STEP
from dpipe.policy import Normalize

# Filled when DALI is loaded: type checkers do not see what is in them.
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types

_INPUTS = {  # name: (dtype, number of dimensions)
    "path": (types.UINT8, 1),  # the bytes of a file name
    "source_size": (types.INT32, 1),  # (height, width) according to the index
    "matrix": (types.FLOAT, 2),  # (2, 3), output to halved source, continuous coordinates
    "size": (types.FLOAT, 1),  # (height, width) after the warp
    "bordered": (types.INT32, 0),  # 1 where output pixels may lie outside the source
    "corners": (types.FLOAT, 2),  # (2, 2), (y, x) in the halved source of the output's first and last corners
    "fill": (types.INT16, 3),  # (1, 1, 3), what they are filled with
    "canvas": (types.FLOAT, 1),  # (height, width) after padding
}
_HALVING_INPUTS = {
    "halvings": (types.INT32, 0),  # how many of them this image has
    "halved_size": (types.FLOAT, 3),  # (halvings, 2, 2), see halved_sizes
}
_STEP_INPUTS = {
    "step": (types.INT32, 1),  # (slots,), 0 or one of dali_steps
    "weights": (types.FLOAT, 2),  # (slots, 3), see photometric_step
}


def build_pipeline(
    source: Callable[[], Sequence[Any]],
    *,
    slots: int,
    halvings: int,
    normalize: Normalize | None,
    half: bool,
    options: DaliOptions,
    device_id: int | None,
    threads: int,
    prefetch: int,
    max_batch_size: int,
) -> Pipeline:
    """Builds the pipeline.

    Args:
        source: Called for each batch; returns the arrays of ``graph_inputs``, the batch in the first dimension;
            raises StopIteration at the end.
        slots: Photometric operations that a sample can have.
        halvings: How often a sample can be halved.
        normalize: None to keep uint8.
        half: Whether normalised images are float16; else they are float32.
        options: Of the decoder.
        device_id: Number of the CUDA device; None for the CPU.
        threads: CPU threads.
        prefetch: Batches in the making at a time.
        max_batch_size: Of any batch.

    Returns:
        A built pipeline with two outputs: the images (N, H, W, 3), and each decoded image's (height, width, 3).
    """
    with _without_warnings_of_dali():
        pipeline = _graph(
            source,
            slots,
            halvings,
            normalize,
            types.UINT8 if normalize is None else types.FLOAT16 if half else types.FLOAT,
            options,
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


def build_probe(
    source: Callable[[], Sequence[Any]], *, options: DaliOptions, device_id: int | None, threads: int
) -> Pipeline:
    """Builds a pipeline that decodes one image at a time, to find out whether it can.

    Args:
        source: Returns the first two arrays of ``graph_inputs``, of one image.
        options: Of the decoder.
        device_id: Number of the CUDA device; None for the CPU.
        threads: CPU threads.
    """
    with _without_warnings_of_dali():
        pipeline = _probe(
            source,
            options,
            device_id is not None,
            batch_size=1,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        pipeline.build()
    return pipeline


@contextmanager
def _without_warnings_of_dali() -> Iterator[None]:
    """Lets DALI define and build a graph without warnings that tell the user nothing, also where they are errors.

    DALI turns the branches of a graph into operators by rewriting its source with gast, whose use of ast is deprecated
    since Python 3.13; an error there would make DALI give up the rewriting. The first graph on a GPU warns where cuFFT
    and NPP are not installed: no operator here uses them, and DALI's packages do not bring them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*Support for arbitrary keyword arguments", DeprecationWarning)
        warnings.filterwarnings("ignore", r"nvidia-dali-cuda\d+ is no longer shipped with CUDA runtime")
        yield


@pipeline_def(enable_conditionals=True)
def _probe(source: Callable[[], Sequence[Any]], options: DaliOptions, on_gpu: bool) -> Any:
    inputs = [_INPUTS["path"], _INPUTS["source_size"]]
    path, source_size = fn.external_source(
        source=source,
        num_outputs=2,
        dtype=[dtype for dtype, _ in inputs],
        ndim=[dimensions for _, dimensions in inputs],
        batch=True,
    )
    return _decode_turned(fn.io.file.read(path), source_size, options, on_gpu).shape()


@pipeline_def(enable_conditionals=True)
def _graph(
    source: Callable[[], Sequence[Any]],
    slots: int,
    halvings: int,
    normalize: Normalize | None,
    dtype: Any,
    options: DaliOptions,
    on_gpu: bool,
) -> Any:
    inputs = list(_INPUTS.values())
    inputs += list(_HALVING_INPUTS.values()) if halvings else []
    inputs += list(_STEP_INPUTS.values()) if slots else []
    path, source_size, matrix, size, bordered, corners, fill, canvas, *more = fn.external_source(
        source=source,
        num_outputs=len(inputs),
        dtype=[dtype for dtype, _ in inputs],
        ndim=[dimensions for _, dimensions in inputs],
        batch=True,
    )
    encoded = fn.io.file.read(path)
    decoded = _decode_turned(encoded, source_size, options, on_gpu)
    decoded_shape = decoded.shape()

    source_image = decoded.gpu() if on_gpu and options.decoder == "cpu" else decoded
    for halving in range(halvings):
        source_image = _halve(source_image, more[0] > halving, more[1][halving])

    if bordered > 0:
        # warp_affine fills with one number for all channels, so the fill colour is made the zero.
        colour = fill.gpu() if on_gpu else fill
        shifted = fn.cast(source_image, dtype=types.INT16) - colour
        warped = fn.warp_affine(shifted, matrix=matrix, size=size, fill_value=0.0)
        image = fn.cast(warped + colour, dtype=types.UINT8)
    else:
        # Mirrored where the corners are; border pixels repeat. On the CPU it is nearer to the truth than a warp, which
        # adds up its steps in single precision.
        image = _resize(source_image, size, corners)

    for slot in range(slots):
        image = _photometric_step(image, more[-2][slot], more[-1][slot], on_gpu)

    if normalize is not None and normalize.bgr:
        image = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.BGR)
    images = fn.crop_mirror_normalize(
        image,
        mean=[0.0] if normalize is None else list(normalize.mean),
        std=[1.0] if normalize is None else list(normalize.std),
        dtype=dtype,
        output_layout="HWC",
        crop_h=canvas[0],
        crop_w=canvas[1],
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        out_of_bounds_policy="pad",
        fill_values=[0.0],
    )
    return images, decoded_shape


def _decode_turned(encoded: Any, source_size: Any, options: DaliOptions, on_gpu: bool) -> Any:
    """Decodes, and turns where EXIF asks for it and the annotations belong to the turned image."""
    stored_size = fn.peek_image_shape(encoded, adjust_orientation=False)
    if stored_size[0] != source_size[0] or stored_size[1] != source_size[1]:
        decoded = fn.decoders.image(encoded, **decoder_arguments(options, on_gpu, turn=True))
    else:
        decoded = fn.decoders.image(encoded, **decoder_arguments(options, on_gpu, turn=False))
    return decoded


def decoder_arguments(options: DaliOptions, on_gpu: bool, turn: bool) -> dict[str, Any]:
    """Returns the arguments of ``fn.decoders.image``.

    Args:
        options: What the user chose.
        on_gpu: Whether batches are made on a GPU.
        turn: Whether this decoder is that of images which EXIF data turn.
    """
    decodes_on_gpu = on_gpu and options.decoder == "gpu"
    arguments = {
        "device": "mixed" if decodes_on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": turn,
        "jpeg_fancy_upsampling": True,  # as libjpeg does on the CPU
    }
    if decodes_on_gpu:
        arguments["hw_decoder_load"] = options.hw_decoder_load
        if turn:  # rare images: this decoder reserves no memory for itself in advance
            arguments.update(device_memory_padding=0, host_memory_padding=0)
        elif options.preallocate is not None:
            height, width = options.preallocate
            arguments.update(preallocate_height_hint=height, preallocate_width_hint=width)
    return arguments


def _halve(image: Any, wanted: Any, sizes: Any) -> Any:
    """Takes the mean of each two neighbours along one axis or both, where that is wanted.

    Without antialiasing, a linear interpolation to half of the size reads just between two pixels. Means are multiples
    of a quarter: an eighth more, and those in the middle are rounded up, as OpenCV does.
    """
    if wanted:
        mean = _resize(image, sizes[1], ([0.0, 0.0], sizes[0]), dtype=types.FLOAT)
        image = fn.cast(mean + 0.125, dtype=types.UINT8)
    return image


def _resize(image: Any, size: Any, corners: Any, **options: Any) -> Any:
    """Interpolates bilinearly; see ``_INPUTS`` for the corners."""
    return fn.resize(
        image,
        size=size,
        roi_start=corners[0],
        roi_end=corners[1],
        interp_type=types.INTERP_LINEAR,
        antialias=False,
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
