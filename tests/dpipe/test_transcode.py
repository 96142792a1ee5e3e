from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dpipe.cli import app
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.images.decode import decode_image
from dpipe.images.encode import SUFFIXES, Encoding
from dpipe.looking.transcode import plan_transcoding, renamed, run_transcoding

SIZES = [(70, 90), (64, 64), (63, 200), (1, 1), (3, 2)]
WAYS = {
    "jp2": (["--to", "jp2"], ".jp2"),
    "jpeg": (["--to", "jpeg"], ".jpg"),
    "webp": (["--to", "webp"], ".webp"),
    "lossless webp": (["--to", "webp", "--lossless"], ".webp"),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five PNGs in two folders and one below, beside files that are no images."""
    root = tmp_path / "images"
    (root / "ä town").mkdir(parents=True)
    (root / "labels").mkdir()
    for number, size in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
        name = f"{number}.one.png" if number % 2 else f"ä town/{number}.PNG"
        Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 2)).save(root / name)
    (root / "labels" / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def orientation_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["transcode", *map(str, arguments)])


@pytest.mark.parametrize("way", WAYS)
def test_names_are_kept_and_pixels_as_far_as_promised(images: Path, tmp_path: Path, way: str) -> None:
    arguments, suffix = WAYS[way]
    out = tmp_path / "out"
    result = run(images, out, *arguments, "--nproc", 2)
    assert result.exit_code == 0, result.output
    stems = ["1.one", "3.one", "ä town/0", "ä town/2", "ä town/4"]
    assert names(out) == [stem + suffix for stem in stems]
    for stem, source in zip(stems, (name for name in names(images) if name[0] in "13ä"), strict=True):
        size = size_of(images / source)
        apart = cv2.absdiff(decode_image(images / source, size), decode_image(out / (stem + suffix), size))
        assert apart.max() <= (0 if way in ("jp2", "lossless webp") else 60)
    # Every reader sees the same pixels; DALI is asked in a test of its own.
    for target in out.rglob(f"*{suffix}"):
        with Image.open(target) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert np.array_equal(pixels, decode_image(target, pixels.shape[:2]))
    assert ("lossless" in result.stdout) == (way in ("jp2", "lossless webp"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dali_decodes_what_was_written_alike(images: Path, tmp_path: Path, device: str) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    from dpipe.backends.dali import DaliBackend
    from dpipe.policy import Augment

    augment = Augment([])
    for way in ("jp2", "webp"):
        run(images, tmp_path / way, "--to", way)
        paths = sorted((tmp_path / way).rglob("*." + way))
        sizes = [size_of(path) for path in paths]
        plans = [augment.draw(size, seed=0, epoch=0, sample=number) for number, size in enumerate(sizes)]
        for plan, made in zip(
            plans, DaliBackend(paths, augment, device=device).stream([[p] for p in plans]), strict=True
        ):
            expected = decode_image(paths[plan.image], plan.source_size)
            assert np.array_equal(made.images[0].permute(1, 2, 0).cpu().numpy(), expected)


def test_jpeg_keeps_colours_at_full_resolution(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 130, 0)  # as light as the red
    Image.fromarray(stripes).save(tmp_path / "images" / "stripes.png")
    report = run_transcoding(plan_transcoding(tmp_path / "images", tmp_path / "out", Encoding("jpeg")))
    assert report.worst_psnr > 30  # 9 dB where colours are halved


def test_the_mean_psnr_is_that_of_images_that_changed(images: Path, tmp_path: Path) -> None:
    expected = run_transcoding(plan_transcoding(images, tmp_path / "out", Encoding("webp"))).mean_psnr
    Image.new("RGB", (16, 16)).save(images / "black.png")
    report = run_transcoding(plan_transcoding(images, tmp_path / "again", Encoding("webp")))
    assert (report.images, report.mean_psnr) == (6, expected)


def test_it_tells_sizes_and_psnr(images: Path, tmp_path: Path) -> None:
    plan = plan_transcoding(images, tmp_path / "out", Encoding("jpeg", quality=30))
    steps: list[int] = []
    report = run_transcoding(plan, advance=steps.append)
    assert sum(steps) == report.images == 5
    assert report.before == sum(path.stat().st_size for path in images.rglob("[0-9]*"))
    assert report.after == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.jpg"))
    ratios = {}
    for job in plan.jobs:
        size = size_of(job.source)
        # An image of one colour may come out as it was.
        apart = decode_image(job.source, size).astype(float) - decode_image(job.target, size)
        ratios[job.target] = 10 * math.log10(255**2 / (apart**2).mean()) if apart.any() else math.inf
    assert report.worst_psnr == pytest.approx(min(ratios.values()))
    assert ratios[report.worst] == min(ratios.values())
    changed = [ratio for ratio in ratios.values() if math.isfinite(ratio)]
    assert report.mean_psnr == pytest.approx(sum(changed) / len(changed))
    result = run(images, tmp_path / "again", "--to", "jpeg", "--quality", 30)
    assert f"{report.mean_psnr:.1f} dB" in result.stdout
    assert f"{report.worst_psnr:.1f} dB" in result.stdout
    assert f"{report.after / report.before:.2f}" in result.stdout
    assert f"worst: {tmp_path / 'again' / report.worst.relative_to(tmp_path / 'out')}" in result.stdout


def test_the_bytes_do_not_depend_on_the_number_of_threads(images: Path, tmp_path: Path) -> None:
    for way, (arguments, _) in WAYS.items():
        for nproc in (1, 4):
            assert run(images, tmp_path / f"{way} {nproc}", *arguments, "--nproc", nproc).exit_code == 0
        one, four = tmp_path / f"{way} 1", tmp_path / f"{way} 4"
        assert names(one) == names(four)
        assert all((one / name).read_bytes() == (four / name).read_bytes() for name in names(one))


def annotate(path: Path, records: list[tuple[str, tuple[int, int]]]) -> Path:
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1], "extra": [1, None]}
        for number, (name, size) in enumerate(records)
    ]
    rows = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]
    content = {"info": {"year": 2020}, "images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
    path.write_text(json.dumps(content))
    return path


def test_annotations_come_along(images: Path, tmp_path: Path) -> None:
    train = annotate(tmp_path / "train.json", [("ä town/0.PNG", SIZES[0]), ("1.one.png", SIZES[1])])
    val = annotate(tmp_path / "val.json", [("ä town/2.PNG", SIZES[2]), ("1.one.png", SIZES[1])])
    out = tmp_path / "out"
    result = run(images, out, "--to", "jp2", "--annotations", train, "-a", val)
    assert result.exit_code == 0, result.output
    assert names(out) == ["1.one.jp2", "train.json", "val.json", "ä town/0.jp2", "ä town/2.jp2"]
    assert f"annotations: {out / 'train.json'}" in result.stdout
    before, after = json.loads(train.read_text()), json.loads((out / "train.json").read_text())
    assert [image.pop("file_name") for image in after["images"]] == ["ä town/0.jp2", "1.one.jp2"]
    assert [image.pop("file_name") for image in before["images"]] == ["ä town/0.PNG", "1.one.png"]
    assert after == before
    index = CocoIndex.load(out / "val.json")
    for name, height, width in zip(index.file_names, index.heights, index.widths, strict=True):
        assert decode_image(out / name, (int(height), int(width))).shape == (height, width, 3)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("way", ["jpeg", "jp2", "webp"])
def test_annotations_say_whether_exif_data_turn_an_image(tmp_path: Path, way: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    images = tmp_path / "images"
    images.mkdir()
    gradient = np.linspace(0, 255, 80 * 100 * 3).reshape(80, 100, 3).astype(np.uint8)
    Image.fromarray(gradient).save(images / "camera.jpg", exif=exif, quality=95)
    for size in ((80, 100), (100, 80)) if orientation > 4 else ((80, 100),):
        expected = decode_image(images / "camera.jpg", size)
        path = annotate(tmp_path / f"{size[0]}.json", [("camera.jpg", size)])
        out = tmp_path / f"out {size[0]}"
        result = run(images, out, "--to", way, "-a", path)
        assert result.exit_code == 0, result.output
        written = out / f"camera{SUFFIXES[way]}"
        assert cv2.absdiff(decode_image(written, size), expected).max() <= (0 if way == "jp2" else 12)
        assert size_of(written) == size
        assert orientation_of(written) == 1
    # Without annotations a JPEG leaves it to the reader, as before; the others cannot.
    result = run(images, tmp_path / "bare", "--to", way)
    if orientation > 4 and way != "jpeg":
        assert result.exit_code == 2
        assert f"error: {images / 'camera.jpg'}: its EXIF data turn it by 90 degrees" in result.stderr
        assert "give the annotations" in result.stderr
        return
    assert result.exit_code == 0, result.output
    for size in ((80, 100), (100, 80)) if orientation > 4 else ((80, 100),):
        pixels = decode_image(tmp_path / "bare" / written.name, size)
        assert cv2.absdiff(pixels, decode_image(images / "camera.jpg", size)).max() <= (0 if way == "jp2" else 12)
    if way == "jpeg":
        assert orientation_of(tmp_path / "bare" / "camera.jpg") == orientation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "jpeg", "--lossless"], "JPEG cannot be lossless"),
        (["--to", "jp2", "--quality", 80], "a lossless jp2 has no quality"),
        (["--to", "webp", "--lossless", "--quality", 80], "a lossless webp has no quality"),
        (["--to", "webp", "--quality", 101], r"quality must lie in 1..100, got 101"),
    ],
)
def test_what_a_format_cannot_do_is_told(images: Path, tmp_path: Path, arguments: list, message: str) -> None:
    result = run(images, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [".", "labels", "labels/deeper", "../images"])
def test_it_never_writes_into_its_input(images: Path, where: str) -> None:
    before = names(images)
    result = run(images, images / where, "--to", "jp2")
    assert result.exit_code == 2
    assert "lies in the folder of the images" in result.stderr
    assert names(images) == before


def test_it_never_writes_over_what_it_reads(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "a"
    inner.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "x.jp2")
    Image.new("RGB", (9, 9), "red").save(inner / "x.png")
    before = (tmp_path / "a" / "x.jp2").read_bytes()
    result = run(tmp_path / "a", tmp_path, "--to", "jp2")
    assert result.exit_code == 2
    assert f"error: {tmp_path / 'a' / 'x.jp2'}: would be overwritten" in result.stderr
    assert (tmp_path / "a" / "x.jp2").read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path)
    result = run(tmp_path / "a", tmp_path / "link", "--to", "jp2")
    assert f"error: {tmp_path / 'link' / 'a' / 'x.jp2'}: would be overwritten" in result.stderr
    assert (tmp_path / "a" / "x.jp2").read_bytes() == before
    path = annotate(tmp_path / "x.json", [("a/x.png", (9, 9))])
    result = run(tmp_path / "a", tmp_path, "--to", "jp2", "-a", path)
    assert f"error: {path}: would be overwritten" in result.stderr


def test_files_that_would_become_one_are_told(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(images / "1.one.jpg")
    result = run(images, tmp_path / "out", "--to", "jp2")
    assert result.exit_code == 2
    assert f"{images / '1.one.png'}: would become {tmp_path / 'out' / '1.one.jp2'}, as {images / '1.one.jpg'} does" in (
        result.stderr
    )


def test_bad_input_is_told_in_one_line(images: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        result = run(images, tmp_path / "out", "--to", "jp2", "--overwrite", *arguments)
        assert result.exit_code == 2
        message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(message) == 1
        return message[0]

    first, second = images / "2.png", images / "20.png"
    second.write_bytes((images / "1.one.png").read_bytes()[:-30])
    first.write_text("no image")
    assert error("--nproc", 4) == f"error: {first}: no image in a known format, or corrupt"
    first.unlink()
    assert error() == f"error: {second}: truncated PNG: its end chunk is missing"
    second.unlink()
    path = annotate(tmp_path / "a.json", [("gone.png", (3, 4))])
    assert error("-a", path) == f"error: {images / 'gone.png'}: no such image file"
    path = annotate(tmp_path / "a.json", [("1.one.png", (3, 4))])
    assert "it is 64x64 pixels, the annotations say 4x3" in error("-a", path)
    path = annotate(tmp_path / "a.json", [("../1.one.png", (64, 64))])
    assert "'..' is not allowed" in error("-a", path)
    other = annotate(tmp_path / "b.json", [("1.one.png", (64, 65))])
    path = annotate(tmp_path / "a.json", [("1.one.png", (64, 64))])
    assert "1.one.png is 65x64 pixels there, but 64x64 in a file before it" in error("-a", path, "-a", other)
    assert not any(name.endswith(".json") for name in names(tmp_path / "out"))
    with pytest.raises(InputError, match="no such folder of images"):
        plan_transcoding(tmp_path / "nowhere", tmp_path / "out", Encoding("jp2"))
    with pytest.raises(InputError, match="expected at least one image, found none"):
        plan_transcoding(images / "labels", tmp_path / "out", Encoding("jp2"))


def test_bad_images_are_left_out_of_the_annotations_too(images: Path, tmp_path: Path) -> None:
    (images / "2.png").write_text("no image")
    Image.new("RGB", (16400, 2)).save(images / "wide.png")
    records = [("1.one.png", SIZES[1]), ("2.png", (9, 9)), ("3.one.png", SIZES[3]), ("wide.png", (2, 16400))]
    path = annotate(tmp_path / "a.json", records)
    content = json.loads(path.read_text())
    content["annotations"] = [{**content["annotations"][0], "id": 7 + image, "image_id": image} for image in range(3)]
    path.write_text(json.dumps(content))
    result = run(images, tmp_path / "out", "--to", "webp", "-a", path, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == ["1.one.webp", "3.one.webp", "a.json"]
    after = json.loads((tmp_path / "out" / "a.json").read_text())
    assert [(image["id"], image["file_name"]) for image in after["images"]] == [(0, "1.one.webp"), (2, "3.one.webp")]
    assert [row["id"] for row in after["annotations"]] == [7, 9]
    title, *lines = result.stderr.splitlines()
    assert title == "left out 2 images because of errors, from the annotations too:"
    assert lines[0] == f"  {images / '2.png'}: no image in a known format, or corrupt"
    assert lines[1].startswith(f"  {images / 'wide.png'}: it cannot be written as webp: ")


def test_where_no_image_is_left_that_is_an_error(images: Path, tmp_path: Path) -> None:
    path = annotate(tmp_path / "a.json", [("gone.png", (3, 4))])
    result = run(images, tmp_path / "out", "--to", "jp2", "-a", path, "--on-error", "skip")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: none of 1 image could be written, such as {images / 'gone.png'}: no such image file\n"
    )
    assert names(tmp_path / "out") == []


def test_a_folder_that_holds_something_is_written_into_only_when_told(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = annotate(tmp_path / "a.json", [("1.one.png", SIZES[1])])
    out.mkdir()
    (out / "a.json").write_text("mine")
    (out / "1.one.webp").write_text("mine too")
    result = run(images, out, "--to", "jp2", "-a", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {out}: is not empty: expected a new or an empty folder, or --overwrite")
    assert (out / "a.json").read_text() == "mine"
    assert run(images, out, "--to", "jp2", "-a", path, "--overwrite").exit_code == 0
    assert names(out) == ["1.one.jp2", "1.one.webp", "a.json"]
    assert len(json.loads((out / "a.json").read_text())["images"]) == 1


def test_images_beyond_a_formats_limits_are_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16400, 2)).save(tmp_path / "images" / "wide.png")
    result = run(tmp_path / "images", tmp_path / "out", "--to", "webp")
    assert result.exit_code == 2
    assert f"error: {tmp_path / 'images' / 'wide.png'}: it cannot be written as webp: " in result.stderr
    assert names(tmp_path / "out") == []


def test_a_promise_of_no_loss_is_checked(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpipe.images.encode._pillow_options", lambda *_: {"format": "WEBP", "quality": 80})
    with pytest.raises(InputError, match="lossless webp did not keep its pixels"):
        run_transcoding(plan_transcoding(images, tmp_path / "out", Encoding("webp", lossless=True)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.png", "a/b.jp2"),
        ("b.JPEG", "b.jp2"),
        ("frame.0001", "frame.0001.jp2"),
        ("frame.0001.tif", "frame.0001.jp2"),
        ("plain", "plain.jp2"),
    ],
)
def test_only_the_ending_of_an_image_is_replaced(name: str, expected: str) -> None:
    assert renamed(name, Encoding("jp2")) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals, code: int) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(images / "0.bmp")
    for image in range(1, 400):
        os.link(images / "0.bmp", images / f"{image}.bmp")
    path = annotate(tmp_path / "a.json", [(f"{image}.bmp", (300, 300)) for image in range(400)])
    command = [sys.executable, "-c", "from dpipe.cli import main; main()", "transcode", images, out, "--to", "jp2"]
    process = subprocess.Popen([*command, "-a", path, "--nproc", "2"], stderr=subprocess.PIPE, text=True)
    give_up = threading.Timer(60, process.kill)
    give_up.start()
    while not (out.is_dir() and any(out.glob("*.jp2"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, errors = process.communicate()
    give_up.cancel()
    assert process.returncode == code
    assert "Traceback" not in errors
    written = names(out)
    assert 0 < len(written) < 400
    for name in written:
        assert name.endswith(".jp2")
        decode_image(out / name, (300, 300))


@pytest.mark.realdata
def test_a_street_data_set_keeps_its_batches(data_root: Path, tmp_path: Path) -> None:
    from dpipe.loader import DetectionLoader

    index = CocoIndex.load(data_root / "coco_mini" / "annotations" / "instances_val.json")
    path = tmp_path / "few.json"
    content = json.loads(Path(index.path).read_text())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    path.write_text(json.dumps(content))
    result = run(data_root / "coco_mini" / "val", tmp_path / "out", "--to", "jp2", "-a", path)
    assert result.exit_code == 0, result.output
    options = {"augment": [{"type": "Resize", "scale": [320, 240]}], "batch_size": 3, "backend": "opencv"}
    (before,) = DetectionLoader(CocoIndex.load(path), data_root / "coco_mini" / "val", **options)
    (after,) = DetectionLoader(CocoIndex.load(tmp_path / "out" / "few.json"), tmp_path / "out", **options)
    assert (before.images == after.images).all()
    assert all((ours.boxes == theirs.boxes).all() for ours, theirs in zip(before.targets, after.targets, strict=True))
