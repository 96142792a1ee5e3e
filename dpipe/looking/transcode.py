"""Data sets into another image format: every name is kept but its ending, and every pixel where the format can."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import orjson
from PIL import Image

from converters.report import counted
from converters.running.runner import OnError
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import BadSampleError, InputError
from dpipe.files import check_writable, write_whole
from dpipe.images.decode import EXIF_ORIENTATION, PILLOW_ERRORS, UNREADABLE, decode_image
from dpipe.images.encode import SUFFIXES, Encoding, encode_image, psnr
from dpipe.plan import Size

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)


@dataclass(frozen=True)
class Job:
    """One image to transcode.

    Attributes:
        name: As annotations have it: relative to the folder of images.
        source: Its file.
        target: The file to write.
        size: Height and width that the annotations give; None without annotations.
    """

    name: str
    source: Path
    target: Path
    size: Size | None


@dataclass(frozen=True)
class TranscodePlan:
    """What is to be done.

    Attributes:
        encoding: How.
        jobs: The images, sorted by their names.
        annotations: COCO JSON files to write once the images are there, with the files they come from.
    """

    encoding: Encoding
    jobs: Sequence[Job]
    annotations: Sequence[tuple[Path, Path]]


@dataclass(frozen=True)
class Transcoded:
    """One image that was written.

    Attributes:
        before: Bytes of the file it comes from.
        after: Bytes of the file written.
        psnr: Peak signal-to-noise ratio in dB; infinite where every pixel was kept.
    """

    before: int
    after: int
    psnr: float


@dataclass(frozen=True)
class TranscodeReport:
    """What was done.

    Attributes:
        images: Number of images.
        before: Bytes of all files they come from.
        after: Bytes of all files written.
        mean_psnr: Over the images that changed, in dB; infinite where none did.
        worst_psnr: The least of all.
        worst: The file written that has it.
        annotations: COCO JSON files written.
        skipped: One line per image that was left out because of an error.
    """

    images: int
    before: int
    after: int
    mean_psnr: float
    worst_psnr: float
    worst: Path
    annotations: Sequence[Path]
    skipped: Sequence[str] = ()


def plan_transcoding(
    images: Path, output: Path, encoding: Encoding, annotations: Sequence[Path] = (), *, overwrite: bool = False
) -> TranscodePlan:
    """Decides which files become which, and checks all that can be checked before the work.

    Args:
        images: Folder of images; those in folders below it count.
        output: Folder to write into; made where it is not there.
        encoding: How to write.
        annotations: COCO JSON files whose file names are relative to ``images``. Where given, the images that they
            name are taken, instead of all below the folder, and each file is to be written into ``output`` with the
            new names.
        overwrite: Write into a folder that holds something; files of the same names are replaced, others stay.

    Raises:
        InputError: For a folder without images, files that would take each other's place, or an output folder that
            holds something or cannot be written.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    inside, outside = output.resolve(), images.resolve()
    if inside == outside or outside in inside.parents:
        raise InputError(f"{output}: lies in the folder of the images, {images}: expected another one")
    sizes = _annotated(images, annotations) if annotations else dict.fromkeys(_found(images))
    if not sizes:
        raise InputError(f"{images}: expected at least one image, found none")
    jobs = [
        Job(name, image_path(images, name), output / renamed(name, encoding), sizes[name]) for name in sorted(sizes)
    ]
    written = [(source, output / source.name) for source in annotations]
    _check_targets([(job.source, job.target) for job in jobs] + written)
    check_writable(output)
    if not overwrite and any(output.iterdir()):
        raise InputError(
            f"{output}: is not empty: expected a new or an empty folder, or --overwrite, which replaces files of the "
            "same names and keeps the others"
        )
    return TranscodePlan(encoding, jobs, written)


def run_transcoding(
    plan: TranscodePlan,
    *,
    nproc: int = 1,
    on_error: OnError = "fail",
    advance: Callable[[int], None] = lambda count: None,
) -> TranscodeReport:
    """Writes the images, each whole or not at all, then the annotations.

    The bytes written are functions of the files and of the encoding, whatever ``nproc`` is.

    Args:
        plan: What to do.
        nproc: Images in work at a time.
        on_error: ``fail`` ends with the first error; ``skip`` leaves the image out, of the annotations too: an image
            without its file ends training, and objects without their image are errors.
        advance: Called with the number of images done since its last call.

    Raises:
        BadSampleError: For the first image, by name, that cannot be used, unless it is to be skipped.
        InputError: For an image that the format cannot hold, unless it is to be skipped, and where none is left.
        OSError: Where a file cannot be written.
    """
    cv2.setNumThreads(1)
    results: list[tuple[Job, Transcoded]] = []
    errors: dict[str, InputError] = {}
    # Threads suffice: decoding and encoding let go of Python's lock.
    pool = ThreadPoolExecutor(nproc, thread_name_prefix="dpipe-transcode")
    try:
        tasks = [pool.submit(transcode_image, job, plan.encoding) for job in plan.jobs]
        for job, task in zip(plan.jobs, tasks, strict=True):
            try:
                results.append((job, task.result()))
            except InputError as error:
                if on_error == "fail":
                    raise
                errors[job.name] = error
            advance(1)
    finally:
        # Also where the user breaks off: what has begun is written whole, what has not begun never is.
        pool.shutdown(wait=True, cancel_futures=True)
    if not results:
        first = next(iter(errors.values()))
        raise InputError(f"none of {counted(len(errors), 'image')} could be written, such as {first}")
    for source, target in plan.annotations:
        write_whole(target, _renamed_annotations(source, plan.encoding, errors.keys()))
    changed = [result.psnr for _, result in results if math.isfinite(result.psnr)]
    worst_job, worst = min(results, key=lambda each: each[1].psnr)
    return TranscodeReport(
        images=len(results),
        before=sum(result.before for _, result in results),
        after=sum(result.after for _, result in results),
        mean_psnr=sum(changed) / len(changed) if changed else math.inf,
        worst_psnr=worst.psnr,
        worst=worst_job.target,
        annotations=[target for _, target in plan.annotations],
        skipped=[str(error) for error in errors.values()],
    )


def transcode_image(job: Job, encoding: Encoding) -> Transcoded:
    """Writes one image, and reads back what it wrote.

    With annotations, the pixels are those of ``decode_image``: turned by EXIF data where the annotations belong to the
    turned image, and the file has no orientation. Without, they are the stored ones: a JPEG keeps the orientation that
    its source has, so that ``decode_image`` goes on to apply it where annotations want it.

    Raises:
        BadSampleError: If the image cannot be used.
        InputError: If the format cannot hold it.
        OSError: If the file cannot be written.
    """
    size, orientation = (job.size, 1) if job.size is not None else _stored_size(job.source, encoding)
    pixels = decode_image(job.source, size)
    try:
        data = encode_image(pixels, encoding, orientation)
    except InputError as error:
        raise InputError(f"{job.source}: {error}") from None
    decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None or decoded.shape != pixels.shape:
        raise InputError(f"{job.source}: cannot be read again once it is written as {encoding.format}")
    ratio = psnr(pixels, decoded)
    if encoding.keeps_pixels and math.isfinite(ratio):
        raise InputError(f"{job.source}: lossless {encoding.format} did not keep its pixels")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(job.target, data)
    return Transcoded(job.source.stat().st_size, len(data), ratio)


def renamed(name: str, encoding: Encoding) -> str:
    """Returns a file's name in the new format: an image's ending is replaced, any other is kept."""
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return str(path.with_name(stem + SUFFIXES[encoding.format]))


def _found(images: Path) -> list[str]:
    """Returns the images below a folder, relative to it."""
    paths = (path.relative_to(images) for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path.as_posix() for path in paths if not path.name.startswith(".") and (images / path).is_file()]


def _annotated(images: Path, annotations: Iterable[Path]) -> dict[str, Size | None]:
    """Returns the size of each image that the annotations name."""
    sizes: dict[str, Size | None] = {}
    for path in annotations:
        index = CocoIndex.load(path)
        for name, height, width in zip(index.file_names, index.heights.tolist(), index.widths.tolist(), strict=True):
            image_path(images, name)
            if sizes.setdefault(name, (height, width)) != (height, width):
                known = sizes[name]
                assert known is not None
                raise InputError(
                    f"{path}: {name} is {width}x{height} pixels there, but {known[1]}x{known[0]} in a file before it"
                )
    return sizes


def _check_targets(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raises an InputError where two files would become one, or one of them would be overwritten."""
    sources = {source.resolve() for source, _ in pairs}
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        other = taken.setdefault(target, source)
        if other != source:
            raise InputError(f"{source}: would become {target}, as {other} does: rename one of them")
        if target.resolve() in sources:
            raise InputError(f"{target}: would be overwritten, and it is one of the files to read")


def _stored_size(path: Path, encoding: Encoding) -> tuple[Size, int]:
    """Returns the height and width of the stored pixels, and the EXIF orientation to keep.

    Raises:
        BadSampleError: If the file is in no known format, or its orientation would get lost and matters.
    """
    try:
        with Image.open(path) as image:
            size, orientation = (image.height, image.width), _orientation(image)
    except PILLOW_ERRORS:
        raise BadSampleError(path, UNREADABLE) from None
    if encoding.format == "jpeg":
        return size, orientation
    if orientation in (5, 6, 7, 8):  # those that turn by 90 degrees
        reason = (
            f"its EXIF data turn it by 90 degrees, which {encoding.format} cannot tell: give the annotations, which "
            "tell whether they belong to the turned image"
        )
        raise BadSampleError(path, reason)
    return size, 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except PILLOW_ERRORS:
        return 1  # damaged: decoding tells


def _renamed_annotations(source: Path, encoding: Encoding, left_out: Collection[str]) -> bytes:
    """Returns a COCO JSON file with the new names, without images that were left out, and all else as it was."""
    try:
        content = orjson.loads(source.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"{source}: no valid JSON: {error}") from None
    if left_out:
        images = content["images"]
        content["images"] = [image for image in images if image["file_name"] not in left_out]
        lost = {image["id"] for image in images if image["file_name"] in left_out}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in lost]
    for image in content["images"]:
        image["file_name"] = renamed(image["file_name"], encoding)
    return orjson.dumps(content)
