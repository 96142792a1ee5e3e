"""The peak of memory does not grow with the data set, apart from the annotations themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory as on Linux")

FEW, MANY = 16, 64
PROGRAM = """
import resource, sys
from pathlib import Path
import converters.voc.convert

converters.voc.convert.FILES_PER_PROCESS = 8
root, output, name, nproc = sys.argv[1:]
report = getattr(converters, f"convert_{name}")(root, output, nproc=int(nproc))
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(sum(resource.getrusage(who).ru_minflt for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
print(sum(split.path.stat().st_size for split in report.splits) >> 10)
"""


def peaks(root, output, name, nproc):
    """Returns the peaks of a conversion and of its workers (KiB), their page faults, and how much was written (KiB)."""
    command = [sys.executable, "-c", PROGRAM, str(root), str(output), name, str(nproc)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return map(int, subprocess.run(command, capture_output=True, check=True, env=environment).stdout.split())


def multiplied(files, number):
    """Gives each file of one image further names, as links."""
    for path in files:
        for copy in range(1, number):
            os.link(path, path.with_name(path.name.replace("one", f"one{copy}")))


@pytest.fixture
def many_cityscapes(write_cityscapes, street, tmp_path):
    def write(number, labels=None):
        labels = street(0, 512, 1024) if labels is None else labels
        root = write_cityscapes({"train": {"a/one": labels}}, tmp_path / str(number))
        multiplied(list(root.rglob("*.png")), number)
        return root

    return write


@pytest.fixture
def many_voc(write_voc, voc_object_xml, tmp_path):
    """Images of noise: a megabyte each, in memory and on the disk."""

    def write(number):
        noise = np.random.default_rng(0).integers(0, 256, (1 << 18,), np.uint8)
        root = write_voc({"one": voc_object_xml("dog", (1, 1, 9, 9))}, {}, root=tmp_path / str(number))
        year = root / "VOC2012"
        (image,) = (year / "JPEGImages").iterdir()
        data = image.read_bytes()
        image.write_bytes(data[:-2] + noise.tobytes() * 4 + data[-2:])
        multiplied([*(year / "Annotations").iterdir(), image], number)
        return root

    return write


def packed(root, archive):
    """Packs a data set without a second copy on the disk being kept."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in files:
                file.write(path, path.relative_to(root).as_posix())
    else:
        with tarfile.open(archive, "w", dereference=True) as file:
            for path in files:
                file.inodes.clear()  # else a link would be packed
                file.add(path, path.relative_to(root).as_posix())
    return archive


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(("name", "form"), [("cityscapes", ""), ("cityscapes", ".zip"), ("voc", ""), ("voc", ".tar")])
def test_images_do_not_pile_up(name, form, nproc, many_cityscapes, many_voc, tmp_path):
    found = []
    for number in (FEW, MANY):
        root = {"cityscapes": many_cityscapes, "voc": many_voc}[name](number)
        if form:
            root = packed(root, tmp_path / f"{number}{form}")
        found.append(tuple(peaks(root, tmp_path / f"out{number}", name, nproc)))
    (few, few_of_worker, *_), (many, many_of_worker, *_) = found
    limit = 12 << 10  # 48 images have four times as much
    assert many - few < limit
    assert many_of_worker - few_of_worker < limit


@pytest.mark.parametrize("nproc", [1, 2])
def test_the_memory_of_an_image_is_used_again(many_cityscapes, tmp_path, nproc):
    (_, _, few, _), (_, _, many, _) = (
        peaks(many_cityscapes(number), tmp_path / f"out{number}", "cityscapes", nproc) for number in (FEW, MANY)
    )
    assert many - few < 100 * (MANY - FEW)  # an image has 256 pages


def test_annotations_take_little_more_than_their_text(many_cityscapes, tmp_path):
    rows, columns = np.mgrid[:120, :200]
    labels = np.where((rows % 4 < 3) & (columns % 5 < 4), 26000 + rows // 4 * 40 + columns // 5, 0)
    labels[labels > 26999] = 0
    found = [peaks(many_cityscapes(number, labels), tmp_path / f"out{number}", "cityscapes", 1) for number in (1, MANY)]
    (few, _, _, small), (many, _, _, large) = found
    assert large - small > 6 << 10
    assert many - few < 2 * (large - small)
