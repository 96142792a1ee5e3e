from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from converters.report import ConversionReport
from dpipe.cli import app
from dpipe.outlines.outline_masks import outline_masks


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def streets(write_cityscapes, street):
    return write_cityscapes(
        {split: {f"{split}/{split}_{seed}": street(seed) for seed in range(2)} for split in ("train", "val", "test")}
    )


def test_cityscapes_ends_with_a_table(run, streets, tmp_path):
    result = run("cityscapes", streets, "-o", tmp_path / "out", "--nproc", 1, "--splits", "train", "--splits", "val")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [word for word in lines[1].split() if word.isalpha()] == [
        *("split", "images", "instances", "masks", "crowd", "ignored", "categories")
    ]
    for split in ("train", "val"):
        (row,) = [line for line in lines if line.startswith(f"│ {split}")]
        assert row.split("│")[2].strip() == "2"
        path = tmp_path / "out" / f"instancesonly_filtered_gtFine_{split}.json"
        assert f"{split}: {path}" in lines
        assert path.is_file()
    assert len(os.listdir(tmp_path / "out")) == 2


def test_splits_in_a_row(run, streets, tmp_path):
    result = run("cityscapes", "--splits", "train", "val", streets, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_splits_in_a_row_where_files_have_their_names(run, streets, tmp_path, monkeypatch):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for line in (["--splits", "train", "val", streets.name], [streets.name, "--splits", "train", "val"]):
        result = run("cityscapes", "-o", tmp_path / "out", *line)
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "out").glob("*.json"))) == 2


@pytest.mark.parametrize("root", ["VOCdevkit", "VOC2012"])
def test_a_folder_of_voc_after_splits_and_years_is_the_root(
    run, write_voc, voc_object_xml, tmp_path, monkeypatch, root
):
    devkit = write_voc({"a": voc_object_xml("dog", (1, 1, 9, 9))}, {"train": ["a"], "val": ["a"]})
    monkeypatch.chdir(devkit.parent if root == "VOCdevkit" else devkit)
    for line in (["--splits", "train", "val", root], ["--years", "2012", root, "--splits", "train"]):
        result = run("voc", "-o", tmp_path / "out", *line)
        assert result.exit_code == 0, result.output


def test_splits_separated_by_commas(run, streets, tmp_path):
    assert run("cityscapes", streets, "-o", tmp_path / "out", "--splits", "val,test").exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == [
        f"instancesonly_filtered_gtFine_{split}.json" for split in ("test", "val")
    ]


def test_voc_with_its_options(run, write_voc, voc_object_xml, tmp_path):
    for year in ("VOC2007", "VOC2012"):
        root = write_voc({"a": voc_object_xml("dog", (0, 0, 9, 9))}, {"train": ["a"], "val": ["a"]}, year=year)
    result = run(
        *("voc", root, "-o", tmp_path / "out", "--years", "2007,2012"),
        *("--splits", "train", "--box-origin", "0", "--on-error", "skip"),
    )
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path / "out") == ["voc_2007_2012_train.json"]
    assert result.stderr == ""

    result = run("voc", root, "-o", tmp_path / "out", "--splits", "val")
    assert "2 boxes reached outside their image and were clipped" in result.stderr


@pytest.mark.parametrize(
    ("command", "line", "options"),
    [
        (
            "voc",
            "--years 2007 --apart --box-origin 0 --strict",
            {"years": ["2007"], "joined": False, "box_origin": 0, "strict": True},
        ),
        (
            "cityscapes",
            "--labels gtCoarse --source polygons --classes car --min-area 7",
            {"labels": "gtCoarse", "source": "polygons", "classes": ["car"], "min_area": 7},
        ),
    ],
)
def test_options_reach_the_converters(run, tmp_path, monkeypatch, command, line, options):
    def called(*arguments, **keywords):
        calls.append((arguments, keywords))
        return ConversionReport([])

    calls = []
    monkeypatch.setattr(f"converters.convert_{command}", called)
    common = "--splits val --masks polygon --nproc 3 --on-error skip --resume --dry-run"
    result = run(command, tmp_path, "-o", tmp_path / "out", *common.split(), *line.split())
    assert result.exit_code == 0, result.output
    options |= {"splits": ["val"], "outline": outline_masks, "nproc": 3, "on_error": "skip"}
    options |= {"resume": True, "dry_run": True, "show_progress": True}
    assert calls == [((tmp_path, tmp_path / "out"), options)]


def test_error_is_one_line_and_exit_code_2(run, streets, tmp_path):
    broken = streets / "gtFine/val/val/val_1_gtFine_instanceIds.png"
    broken.write_bytes(broken.read_bytes()[:-50])
    result = run("cityscapes", streets, "-o", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {broken}: cannot be read as an image (")
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(run, tmp_path):
    result = run("cityscapes", tmp_path / "nowhere", "--debug")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ConversionError"


def test_missing_root_lists_what_was_tried(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    result = run("cityscapes")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no Cityscapes data set found; tried: $CITYSCAPES_DATASET (not set), data/cityscapes (no such folder)\n",
    )
    result = run("voc")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no Pascal VOC data set found; tried: data/VOCdevkit (no such folder)\n",
    )


def test_output_that_is_a_file(run, streets, tmp_path):
    (tmp_path / "out").touch()
    result = run("cityscapes", streets, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'out'}: cannot be used as the output folder")
    assert len(result.stderr.splitlines()) == 1


def test_skip_lists_what_was_left_out_and_exits_0(run, streets, tmp_path):
    (streets / "gtFine/val/val/val_1_gtFine_instanceIds.png").unlink()
    result = run("cityscapes", streets, "-o", tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 0
    *_, first, second = result.stderr.splitlines()
    assert first == "left out 1 image because of errors:"
    assert "val_1_gtFine_instanceIds.png: is missing" in second


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux only")
def test_root_whose_name_is_not_utf_8(streets, tmp_path):
    root = streets.rename(tmp_path / os.fsdecode(b"s\xff"))
    command = [sys.executable, "-c", "from dpipe.cli import main; main()", "convert", "cityscapes", str(root)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as with most locales
    done = subprocess.run([*command, "--splits", "val"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"the split val has 2 images; Cityscapes published 500\n")
    assert rb"s\xff/annotations/instancesonly_filtered_gtFine_val.json" in done.stdout


def test_help_says_which_files_are_written(run):
    text = " ".join(run("voc", "--help").stdout.split())
    assert "voc_<years>_<split>.json" in text
    assert "--years 2007,2012 --splits trainval writes voc_2007_2012_trainval.json" in text
    assert "their ids do not depend on the splits chosen" in text
    text = " ".join(run("cityscapes", "--help").stdout.replace("│", " ").split())
    assert "(default: $CITYSCAPES_DATASET if set, else data/cityscapes)" in text


def test_import_stays_light():
    heavy = {"numpy", "PIL", "orjson", "defusedxml", "cityscapesscripts", "multiprocessing", "torch"}
    code = "import sys, converters, dpipe.commands.convert; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(done.stdout.split())


@pytest.fixture
def long_conversion(write_cityscapes, street, tmp_path):
    """Starts a conversion that takes many seconds, in a process group of its own, and waits until it has begun."""
    root = write_cityscapes({"train": {"x/x_0": street(0, 1024, 2048)}})
    for path in (root / "leftImg8bit/train/x/x_0_leftImg8bit.png", root / "gtFine/train/x/x_0_gtFine_instanceIds.png"):
        for number in range(1, 1000):
            os.link(path, path.with_name(path.name.replace("x_0", f"x_{number}")))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", "from dpipe.cli import main; main()", "convert", "cityscapes", str(root)]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out" / "new"), "--nproc", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "new").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    if group_is_alive(process):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def group_is_alive(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_group(process):
    deadline = time.monotonic() + 10
    while group_is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not group_is_alive(process), "processes were left behind"


@pytest.mark.skipif(not Path("/proc").exists(), reason="process groups as on Linux")
@pytest.mark.parametrize("seconds", [0.1, 0.7], ids=["while workers start", "at work"])
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_conversion_leaves_nothing_behind(long_conversion, tmp_path, stop, code, seconds):
    time.sleep(seconds)
    if stop is signal.SIGINT:
        os.killpg(long_conversion.pid, stop)  # Ctrl-C reaches all processes of the terminal
    else:
        long_conversion.send_signal(stop)
    stdout, stderr = long_conversion.communicate(timeout=20)
    assert long_conversion.returncode == code, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert os.listdir(tmp_path / "out") == []
    wait_for_group(long_conversion)


@pytest.mark.skipif(not Path("/proc").exists(), reason="process groups as on Linux")
def test_killed_conversion_takes_its_workers_along(long_conversion, tmp_path):
    time.sleep(0.7)
    long_conversion.kill()
    long_conversion.wait()
    wait_for_group(long_conversion)
    assert list((tmp_path / "out").glob("**/*.json")) == []


def test_cityscapes_with_its_options(run, streets, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "gtFine_trainvaltest.zip", "w") as file:
        for path in (streets / "gtFine").rglob("*.png"):
            file.write(path, path.relative_to(streets).as_posix())
    monkeypatch.chdir(tmp_path)
    options = ("--masks", "polygon", "--min-area", 5, "--classes", "person", "car", "--nproc", 1)
    for number, line in enumerate(
        (
            ("--splits", "val", "gtFine_trainvaltest.zip", *options),
            (streets, "--splits", "val", *options, "--labels", "gtFine", "--source", "instance-ids"),
        )
    ):
        result = run("cityscapes", *line, "-o", f"out{number}")
        assert result.exit_code == 0, result.output
    (one,), (other,) = (list((tmp_path / f"out{number}").iterdir()) for number in range(2))
    assert one.read_bytes() == other.read_bytes()
    document = json.loads(one.read_bytes())
    assert [category["name"] for category in document["categories"]] == ["person", "car"]
    assert any(isinstance(annotation["segmentation"], list) for annotation in document["annotations"])
    assert all(annotation["iscrowd"] or annotation["area"] >= 5 for annotation in document["annotations"])

    result = run("cityscapes", streets, "--labels", "gtCoarse")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {streets}: has no folder gtCoarse and no archive gtCoarse*.zip with one; it has gtFine: --labels "
        "gtFine\n",
    )


@pytest.mark.realdata
@pytest.mark.parametrize("masks", ["rle", "polygon"])
def test_what_check_says_of_real_streets(run, data_root, tmp_path, masks):
    result = run("cityscapes", data_root / "coco_streets", "-o", tmp_path, "--masks", masks)
    assert result.exit_code == 0, result.output
    for split in ("train", "val"):
        result = CliRunner().invoke(
            app,
            [
                "check",
                str(tmp_path / f"instancesonly_filtered_gtFine_{split}.json"),
                str(data_root / "coco_streets/leftImg8bit" / split),
            ],
        )
        assert result.exit_code == 0, result.output
        # Real photos hold few objects of some classes, and none of others.
        kinds = [line.split()[1] for line in result.output.splitlines() if line.startswith((" warning", " error"))]
        assert kinds == ["unused_category", "rare_category"]


@pytest.mark.realdata
def test_check_finds_nothing_in_real_boxes(run, data_root, tmp_path):
    result = run("voc", data_root / "bccd_voc", "-o", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    for split, images, boxes in (("train", 205, 2805), ("val", 87, 1138), ("trainval", 292, 3943), ("test", 72, 945)):
        result = CliRunner().invoke(
            app, ["check", str(tmp_path / f"voc_2007_{split}.json"), str(data_root / "bccd_voc")]
        )
        assert result.exit_code == 0, result.output
        assert result.output == f"{images} images, {boxes} annotations: 0 errors, 0 warnings\n"


@pytest.fixture
def repaired(write_voc, voc_object_xml):
    """A data set with a box that is clipped, and an image that cannot be used."""
    images = {"a": voc_object_xml("dog", (0, 1, 9, 9)), "b": voc_object_xml("dog", (1, 1, 9, 9)), "c": ""}
    for year in ("VOC2007", "VOC2012"):
        root = write_voc(images, {"train": ["a", "b", "c"]}, year=year)
    (root / "VOC2012/JPEGImages/c.jpg").write_bytes(b"")
    return root


def test_report_lists_everything(run, repaired, tmp_path):
    report = tmp_path / "report.json"
    result = run("voc", repaired, "-o", tmp_path / "out", "--on-error", "skip", "--apart", "--report", report)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    assert [split["images"] for split in found["splits"]] == [3, 2]
    assert [Path(split["path"]).name for split in found["splits"]] == ["voc_2007_train.json", "voc_2012_train.json"]
    assert [(repair["file"], repair["kind"]) for repair in found["repairs"]] == [
        (str(repaired / year / "Annotations/a.xml"), "clipped") for year in ("VOC2007", "VOC2012")
    ]
    assert len(found["skipped"]) == 1
    assert found["notes"][0].startswith("2 boxes reached outside their image")


def test_report_that_cannot_be_written_ends_the_command_at_once(run, repaired, tmp_path):
    (tmp_path / "file").touch()
    result = run("voc", repaired, "-o", tmp_path / "out", "--report", tmp_path / "file" / "report.json")
    assert result.exit_code == 2
    assert "file: is a file, expected a folder to write to" in result.stderr
    assert not (tmp_path / "out").exists()


def test_strict_refuses_in_one_line(run, repaired, tmp_path):
    result = run("voc", repaired, "-o", tmp_path / "out", "--years", "2007", "--strict")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith("a.xml: object 1 ('dog'): edges -1 0 9 9, image 40x30 (clipped); refused, as --strict is set")


def test_dry_run_says_what_would_be_replaced(run, repaired, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/voc_2012_train.json").touch()
    result = run("voc", repaired, "-o", tmp_path / "out", "--apart", "--dry-run")
    assert result.exit_code == 0, result.output
    path = tmp_path / "out/voc_20{}_train.json"
    assert result.stdout.splitlines() == [
        f"train: 3 images would be converted into {str(path).format('07')}",
        f"train: 3 images would be converted into {str(path).format('12')}, replacing the file that is there",
    ]
    assert (tmp_path / "out/voc_2012_train.json").read_bytes() == b""


def test_an_interrupted_run_tells_how_to_go_on(run, repaired, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("converters.voc.convert.convert_image", interrupt)
    result = run("voc", repaired, "-o", tmp_path / "out", "--nproc", "1", "--resume")
    assert result.exit_code == 130
    assert result.stderr == "what was done is kept: the same command goes on from there\ninterrupted\n"
