from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dpipe.cli import app
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.looking.draw import class_colour
from dpipe.looking.preview import DEFAULT_AUGMENT, GAP, TILE_WIDTH, contact_sheet, write_image
from dpipe.looking.preview_samples import describe_operations, preview_samples
from dpipe.operations.colours import Color, Equalize
from dpipe.operations.cropping import MinIoURandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.policy import Augment, AutoAugment, Normalize

PALE = np.array((200, 200, 255))


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Five grey pictures, each with a pale triangle whose polygon and box the JSON holds; the last has none."""
    images = tmp_path / "images"
    images.mkdir()
    records, annotations = [], []
    for number in range(5):
        height, width = (120, 200) if number % 2 else (160, 120)
        canvas = np.full((height, width, 3), 60, dtype=np.uint8)
        points = np.array([[30, 30], [90, 40], [50, 100]])
        records.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
        if number < 4:
            cv2.fillPoly(canvas, [points], PALE.tolist()[::-1])
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number + 1,
                    "category_id": 3,
                    "bbox": [30, 30, 61, 71],
                    "area": 2200,
                    "iscrowd": 0,
                    "segmentation": [(points + 0.5).ravel().tolist()],
                }
            )
        cv2.imwrite(str(images / f"{number}.png"), canvas)
    path = tmp_path / "instances.json"
    categories = [{"id": 3, "name": "Dreieck"}]
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path, images


def run(*arguments: object):
    return CliRunner().invoke(app, ["preview", *map(str, arguments)])


def test_the_command_tells_of_annotations_that_are_left_out(data: tuple[Path, Path], tmp_path: Path) -> None:
    path, images = data
    output = tmp_path / "sheet.png"
    assert run(path, images, "-o", output).output.endswith(" pixels\n")
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [500, 500, 9, 9]
    path.write_text(json.dumps(content))
    told = " pixels; annotations left out, as their boxes are empty or outside of their images: 1\n"
    assert run(path, images, "-o", output).output.endswith(told)


def test_the_command_writes_a_sheet_of_every_sample(data: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    result = run(*data, "-o", output, "--columns", 3)
    assert result.exit_code == 0, result.output
    sheet = cv2.imread(str(output))
    assert sheet.shape[1] == 3 * (TILE_WIDTH + GAP) + GAP
    assert f"{sheet.shape[1]}x{sheet.shape[0]}" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances.json", "sheet.png"]


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_masks_lie_on_their_objects_whatever_was_drawn(data: tuple[Path, Path], backend: str) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    # The only op is one that moves things; the tint then covers the pale triangle and nothing else.
    fill = (60, 60, 60)
    augment = Augment(
        [
            Rotate(9, prob=1.0, img_fill_val=fill),
            Shear(5, prob=1.0, img_fill_val=fill),
            Resize((480, 360)),
            RandomFlip(0.5),
            Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        ]
    )
    sheet = contact_sheet(CocoIndex.load(data[0]), data[1], augment, count=5, columns=1, backend=backend)
    tinted = np.abs(sheet.astype(int) - (0.6 * PALE + 0.4 * np.array(class_colour(0)))).max(axis=-1) <= 3
    bare_object = np.abs(sheet.astype(int) - PALE).max(axis=-1) <= 3
    tinted_background = (
        np.abs(sheet.astype(int) - (0.6 * np.array(fill) + 0.4 * np.array(class_colour(0)))).max(-1) <= 3
    )
    assert tinted.sum() > 4 * 5000
    # At edges there are blends of both, and an object that left the canvas in part is cut, not lost.
    assert bare_object.sum() < 0.01 * tinted.sum()
    assert tinted_background.sum() < 0.02 * tinted.sum()


def test_a_recipe_says_what_is_shown(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data:\n  train_transforms:\n"
        "    - {type: Resize, scale: [64, 48]}\n"
        "    - {type: Normalize, mean: [0.0, 0.0, 0.0], std: [1.0, 1.0, 1.0]}\n"
        "    - {type: Pad, size_divisor: 32}\n"
    )
    output = tmp_path / "sheet.png"
    result = run(*data, "-o", output, "--config", recipe, "--columns", 1, "--count", 2)
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(output)).shape[0] < 2 * 120  # tiles are no larger than the samples


def test_seed_and_epoch_change_the_sheet_and_nothing_else_does(data: tuple[Path, Path]) -> None:
    index = CocoIndex.load(data[0])
    first = contact_sheet(index, data[1], count=4)
    assert (contact_sheet(index, data[1], count=4) == first).all()
    for other in (contact_sheet(index, data[1], count=4, seed=1), contact_sheet(index, data[1], count=4, epoch=1)):
        assert other.shape != first.shape or (other != first).any()


def test_captions_say_what_was_drawn() -> None:
    always = Augment(
        [
            AutoAugment(
                [
                    [
                        Rotate(5, prob=1.0, random_negative_prob=0.0),
                        Rotate(5, prob=0.0),
                        Translate(4, prob=1.0, random_negative_prob=1.0),
                        Translate(4, prob=1.0, direction="vertical", random_negative_prob=0.0),
                        Shear(10, prob=1.0, direction="vertical", random_negative_prob=0.0),
                        Color(5, prob=1.0),
                        Equalize(prob=1.0),
                    ]
                ]
            ),
            Resize((100, 50)),
            RandomFlip(1.0),
        ]
    )
    plan = always.draw((100, 200), seed=4, epoch=2, sample=7)
    assert describe_operations(always, plan, seed=4) == [
        "Rotate +15.0°",
        "Translate 100 px left",
        "Translate 100 px down",
        "Shear +0.30 vertical",
        "Color 1.00",
        "Equalize",
        "Resize 200x100 to 100x50",
        "Flip horizontal",
    ]


def test_captions_are_of_the_plan_that_was_used() -> None:
    for sample in range(50):
        plan = DEFAULT_AUGMENT.draw((100, 200), seed=1, epoch=3, sample=sample)
        texts = describe_operations(DEFAULT_AUGMENT, plan, seed=1)
        flipped = np.linalg.det(plan.matrix[:, :2]) < 0
        assert ("Flip horizontal" in texts) == flipped
        names = [text.partition(" ")[0].lower() for text in texts]
        assert [name for name, _ in plan.photometric] == [
            name for name in names if name in ("color", "brightness", "contrast", "equalize")
        ]


def test_captions_of_crops_know_the_same_boxes_as_the_plan(write_dataset) -> None:
    images = [np.zeros((60, 80, 3), dtype=np.uint8)] * 12
    objects = [{"image_id": number, "bbox": [5, 5, 10, 10]} for number in range(12)]
    crowds = [{"image_id": number, "bbox": [20, 20, 60, 40], "iscrowd": 1} for number in range(12)]
    index, folder = write_dataset(images, [*objects, *crowds])
    cropped = 0
    for sample in preview_samples(index, folder, Augment([MinIoURandomCrop()]), count=12):
        height, width = sample.plan.size
        x, y = -sample.plan.matrix[:, 2]
        if sample.operations:
            cropped += 1
            assert sample.operations == [f"MinIoURandomCrop {width}x{height} at {x:.0f},{y:.0f}"]
        else:
            assert (height, width) == (60, 80)
    assert cropped > 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda json_path, images: {"annotations": json_path.with_name("none.json")}, "none.json"),
        (lambda json_path, images: json_path.write_text('{"images": ['), "instances.json"),
        (lambda json_path, images: {"images": images / "none"}, "no such folder of images"),
        (lambda json_path, images: (images / "2.png").unlink(), "2.png"),
        (lambda json_path, images: {"output": images / "2.png" / "sheet.png"}, "2.png: is a file, expected a folder"),
        (lambda json_path, images: {"output": images.rename(images.with_name("a.png"))}, "a.png: is a folder"),
        (lambda json_path, images: {"output": images / "sheet.txt"}, "expected a name that ends in .png"),
        (lambda json_path, images: {"config": "no_such_recipe"}, "no_such_recipe"),
    ],
    ids=[
        "no JSON",
        "bad JSON",
        "no images",
        "no image",
        "no output folder",
        "output is a folder",
        "bad ending",
        "no recipe",
    ],
)
def test_mistakes_are_told_in_one_line(data: tuple[Path, Path], tmp_path: Path, spoil, message: str) -> None:
    changes = spoil(*data)
    named = {"annotations": data[0], "images": data[1], "output": tmp_path / "sheet.png", "config": None}
    named |= changes if isinstance(changes, dict) else {}
    options = ["--config", named["config"]] if named["config"] else []
    result = run(named["annotations"], named["images"], "-o", named["output"], *options)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.rglob("*sheet*"))


@pytest.mark.parametrize("name", ["folder.png", "sheet.txt"])
def test_a_picture_that_cannot_be_written_is_told_before_the_work(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("dpipe.coco.CocoIndex.load", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "folder.png").mkdir()
    result = run(*data, "-o", tmp_path / name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / name}: ")


@pytest.mark.parametrize("ending", [".webp", ".jpg"])
def test_a_picture_too_large_for_its_format_is_told(tmp_path: Path, ending: str) -> None:
    with pytest.raises(InputError, match="1x66000 pixels are too many"):
        write_image(tmp_path / f"sheet{ending}", np.zeros((66000, 1, 3), dtype=np.uint8))
    assert not list(tmp_path.iterdir())


def test_all_mistakes_in_a_recipes_transforms_are_told(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "custom_imports: [no.such.module]\n"
        "data:\n  train_transforms:\n    - {type: Rotat, level: 5}\n    - {type: RandomFlip, probability: 1.0}\n"
        "    - {type: RandomFlip, prob: 2.0}\n    - {type: Resize, scale: [0, 5]}\n"
        "  test_transforms:\n    - {type: Resize, scal: [9, 5]}\n"
    )
    result = run(*data, "-o", tmp_path / "sheet.png", "--config", recipe)
    assert result.exit_code == 2
    title, *lines = result.stderr.splitlines()
    assert title == f"error: 7 problems in {recipe}:"
    for line, told in zip(
        lines,
        [
            "recipe.yaml:1: custom_imports.0: cannot import",
            "recipe.yaml:4: data.train_transforms.0.type: ",
            "recipe.yaml:5: data.train_transforms.1.probability: unknown argument of RandomFlip",
            "recipe.yaml:6: data.train_transforms.2: ",
            "recipe.yaml:7: data.train_transforms.3: ",
            "recipe.yaml:9: data.test_transforms.0.scal: unknown argument of Resize; did you mean 'scale'?",
            "recipe.yaml:9: data.test_transforms.0: Resize needs 'scale'",
        ],
        strict=True,
    ):
        assert told in line
    recipe.write_text("custom_imports: os.path\ndata:\n  train_transforms: []\n")
    result = run(*data, "-o", tmp_path / "sheet.png", "--config", recipe)
    assert "recipe.yaml:1: custom_imports: expected a list of modules" in result.stderr


def test_a_senseless_order_of_transforms_is_told_with_its_place(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  train_transforms:\n    - {type: Pad, size_divisor: 32}\n    - {type: RandomFlip}\n")
    result = run(*data, "-o", tmp_path / "sheet.png", "--config", recipe)
    assert result.exit_code == 2
    assert f"error: {recipe}:2: data.train_transforms: " in result.stderr


def test_a_recipe_without_transforms_is_told(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {type: X}\n")
    result = run(*data, "-o", tmp_path / "sheet.png", "--config", recipe)
    assert result.exit_code == 2
    assert "data.train_transforms" in result.stderr


def test_numbers_out_of_range_are_told(data: tuple[Path, Path]) -> None:
    index = CocoIndex.load(data[0])
    with pytest.raises(InputError, match="columns must be at least 1, got 0"):
        contact_sheet(index, data[1], columns=0)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, np.zeros((4, 4, 3), dtype=np.uint8))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.realdata
def test_both_backends_show_real_data_alike(data_root: Path) -> None:
    pytest.importorskip("nvidia.dali")
    root = data_root / "coco_mini"
    index = CocoIndex.load(root / "annotations" / "instances_val.json")
    sheets = [contact_sheet(index, root / "val", count=6, columns=3, backend=backend) for backend in ("opencv", "dali")]
    assert sheets[0].shape == sheets[1].shape
    assert np.abs(sheets[0].astype(int) - sheets[1]).mean() < 0.5


def test_the_next_sample_stands_in_for_a_bad_one(
    data: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--raw", "--columns", 1, "--count", 4, "-o", tmp_path / "sheet.png", "--html", tmp_path / "page.html"]
    assert run(*data, *options).exit_code == 0
    expected = cv2.imread(str(tmp_path / "sheet.png")).shape
    bad = next(iter(preview_samples(CocoIndex.load(data[0]), data[1], Augment([]), count=1))).target.file_name
    (data[1] / bad).write_bytes(b"")
    assert f"{bad}: the file is empty" in (failed := run(*data, *options)).stderr.replace(f" (sample {bad[0]})", "")
    assert failed.exit_code == 2
    result = run(*data, *options, "--on-bad-sample", "skip")
    assert result.exit_code == 0, result.output
    assert f"skipped {bad}: the file is empty" in caplog.text
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == expected[1]
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 4
    assert bad not in (tmp_path / "page.html").read_text()
