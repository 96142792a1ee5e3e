"""The recipe of cascade_augfpn_autoaug.yaml on street images: dpipe's OpenCV backend against what others use.

    OMP_NUM_THREADS=1 python benchmarks/pipelines.py --data cache --json pipelines.json

All contenders read the same files and get the same drawn parameters, taken from dpipe's own plans; each hands out
padded images, boxes and instance masks in its own form (docs/benchmarks.md says how each is used). Rounds are
interleaved, so that what else the machine does hits all alike; a figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contenders.albumentations import Albumentations
from contenders.chain import BitmapMasks, Chain, PolygonMasks
from contenders.fused import Fused
from contenders.ours import Ours
from contenders.torchvision_v2 import TorchvisionV2
from machine import describe, on_cores
from rich.console import Console
from rich.table import Table
from samples import Contender, Output, Sample, never_cut, steps_of
from street_photos import WIDE, Streets, make_streets

from dpipe import Augment, CocoIndex
from dpipe.geometry import transform_boxes
from dpipe.recipes import load_recipe

RECIPE = "cascade_augfpn_autoaug"
FORMATS = ("jpeg", "png")
TARGETS = {
    ("large", "jpeg"): {
        "torchvision.transforms.v2": 40,
        "albumentations": 15,
        "chain with polygons": 1.7,
        "fused prototype": 0.85,
        "dpipe": 1.85,
    },
    ("large", "png"): {"torchvision.transforms.v2": 10, "chain with polygons": 1.2},
    ("small", "jpeg"): {"torchvision.transforms.v2": 5, "albumentations": 3, "chain with polygons": 1.3},
}
"""What dpipe is to reach on one core, as a multiple of the peer; its own entry is two threads over one."""
AGREE = 1.0  # pixels
"""How far boxes may lie apart: half a pixel of OpenMMLab's convention, enlarged by the resize of small images."""


@dataclass(frozen=True)
class Setting:
    """One input and one kind of output: a table of its own."""

    width: int
    height: int
    image_format: str
    output: str  # uint8 or float32

    @property
    def title(self) -> str:
        """As above the table."""
        return f"{self.width}x{self.height} {self.image_format.upper()}, {self.output} out"

    @property
    def targets(self) -> dict[str, float]:
        """Multiples to reach, by peer; they were set for uint8."""
        if self.output != "uint8":
            return {}
        size = "large" if self.width * self.height > WIDE else "small"
        return TARGETS.get((size, self.image_format), {})


def main() -> None:
    """Reads the command line, measures, prints the tables and writes the JSON."""
    args = _arguments()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or Path(scratch)
        report: dict[str, Any] = {
            "machine": describe(),
            "recipe": RECIPE,
            "rounds": args.rounds,
            "images": args.images,
            "settings": [],
        }
        console.print(report["machine"])
        for width, height in args.sizes:
            for image_format in args.formats:
                setting = Setting(width, height, image_format, "float32" if args.float else "uint8")
                result = measure(setting, folder, args.images, args.rounds)
                show(setting, result, console)
                report["settings"].append(result)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(setting: Setting, folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Measures all contenders on one input.

    Returns:
        What goes into the JSON: rates of each contender, ratios, output sizes, and how far boxes lie apart.

    Raises:
        SystemExit: If the boxes or sizes of a contender are not those of the others: it does other work.
    """
    streets = make_streets(folder, setting.width, setting.height, images, setting.image_format)
    transforms = load_recipe(RECIPE).values["data"]["train_transforms"]
    recipe = Augment(transforms)
    augment = recipe
    if setting.output == "uint8":
        augment = Augment([transform for transform in transforms if transform["type"] != "Normalize"])
    index = CocoIndex.load(streets.annotations)
    rounds_of_samples = draw_rounds(index, streets, augment, rounds + 1)
    contenders = make_contenders(index, streets.images, augment)
    if setting.output == "uint8":  # the target names the chain with all of its steps, floats among them
        contenders.append(Chain(PolygonMasks, recipe.normalize, "chain with polygons"))

    # The first round warms up, and shows that all do the same.
    agreement = compare(Ours(index, streets.images, augment, boxes_from="corners"), contenders, rounds_of_samples[0])
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    cpu: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for epoch, samples in enumerate(rounds_of_samples[1:], 1):
        first = epoch % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            rate, milliseconds = _time(contender, samples, epoch)
            rates[contender.name].append(rate)
            cpu[contender.name].append(milliseconds)

    singles = [contender.name for contender in contenders if contender.threads == 1]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    drawn = [sample for samples in rounds_of_samples[1:] for sample in samples]
    outputs = np.array([sample.steps.padded for sample in drawn])
    return {
        "input": {
            "size": [setting.width, setting.height],
            "format": setting.image_format,
            "source": streets.source,
            "megabytes": round(streets.megabytes, 2),
            "objects": len(index.labels) / len(index),
        },
        "output": setting.output,
        "output_sizes": {"smallest": outputs.min(axis=0).tolist()[::-1], "largest": outputs.max(axis=0).tolist()[::-1]},
        "share_with_warp": float(np.mean([sample.steps.warps > 0 for sample in drawn])),
        "images_per_second": medians,
        "cpu_milliseconds": {name: statistics.median(values) for name, values in cpu.items()},
        "rounds": rates,
        "agreement": agreement,
        "ratios": _ratios(medians, singles[1:], setting.targets),
    }


def draw_rounds(index: CocoIndex, streets: Streets, augment: Augment, rounds: int) -> list[list[Sample]]:
    """Each round's samples, with the plans that our loader draws in the epoch of that number."""
    segmentations = {
        one["id"]: one["segmentation"] for one in json.loads(streets.annotations.read_text())["annotations"]
    }
    rings = [[np.array(ring) for ring in segmentations[number]] for number in index.annotation_ids.tolist()]
    result = []
    for epoch in range(rounds):
        samples = []
        for image, name in enumerate(index.file_names):
            rows = slice(int(index.offsets[image]), int(index.offsets[image + 1]))
            size = (int(index.heights[image]), int(index.widths[image]))
            plan = augment.draw(size, seed=0, epoch=epoch, sample=image)
            samples.append(
                Sample(
                    path=streets.images / name,
                    boxes=np.array(index.boxes[rows]),
                    labels=np.array(index.labels[rows]),
                    ids=np.array(index.annotation_ids[rows]),
                    rings=rings[rows],
                    matrix=plan.matrix,
                    steps=steps_of(plan, augment.size_divisor),
                )
            )
        result.append(samples)
    return result


def make_contenders(index: CocoIndex, images: Path, augment: Augment) -> list[Contender]:
    """All that are compared, ours first."""
    normalize, divisor = augment.normalize, augment.size_divisor
    contenders: list[Contender] = []
    for threads in (1, 2):
        with on_cores(threads):  # what a loader starts when it is made stays on its cores too
            contenders.append(Ours(index, images, augment, threads))
    contenders += [Fused(normalize), Fused(normalize, threads=2)]
    polygons = "chain with polygons" + (", uint8" if normalize is None else "")
    contenders += [Chain(PolygonMasks, normalize, polygons), Chain(BitmapMasks, normalize, "chain with bitmaps")]
    contenders += [Albumentations(normalize, divisor), TorchvisionV2(normalize)]
    return contenders


def compare(reference: Ours, contenders: Sequence[Contender], samples: Sequence[Sample]) -> dict[str, Any]:
    """Holds sizes, and boxes computed from corners, against ours.

    Returns:
        For each contender, how many boxes were compared and the largest distance of two edges, in pixels.

    Raises:
        SystemExit: If they differ.
    """
    ours = {sample.path: output for sample, output in zip(samples, reference.run(samples, 0), strict=True)}
    result: dict[str, Any] = {}
    for contender in contenders:
        if isinstance(contender, Ours):
            for _ in contender.run(samples, 0):
                pass
            continue
        distances = [np.zeros(0)]
        mine = spread(samples, contender.share, 0)
        for sample, theirs in zip(mine, contender.run(mine, 0), strict=True):
            expected = ours[sample.path]
            if _size(theirs.image) != sample.steps.padded or _size(expected.image) != sample.steps.padded:
                raise SystemExit(f"{contender.name}: {sample.path.name} became {_size(theirs.image)} pixels")
            # Thin boxes may be kept by one and dropped by another.
            wanted = sample.ids[never_cut(sample) & (_smaller_side(sample) > 2)]
            distances.append(np.abs(_pick(theirs, wanted) - _pick(expected, wanted)).max(axis=1, initial=0))
        apart = np.concatenate(distances)
        result[contender.name] = {"boxes": len(apart), "largest_distance": round(float(apart.max(initial=0)), 3)}
        if not len(apart) or apart.max() > AGREE:
            raise SystemExit(f"{contender.name}: its boxes lie {apart.max(initial=np.inf):.2f} pixels from ours")
    return result


def spread(samples: Sequence[Sample], share: int, epoch: int) -> list[Sample]:
    """One of ``share`` samples, with the steps as mixed as in all: each figure is for the same mixture."""
    by_steps = sorted(samples, key=lambda sample: (sample.steps.warps, sample.steps.size))
    return by_steps[epoch % min(share, len(by_steps)) :: share]


def _time(contender: Contender, samples: Sequence[Sample], epoch: int) -> tuple[float, float]:
    """Times one round on as many cores as the contender has threads.

    Returns:
        Images a second, and the milliseconds that all threads together computed for an image: what else a machine does
        disturbs them less.
    """
    mine = samples if contender.share == 1 else spread(samples, contender.share, epoch)
    with on_cores(contender.threads):
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in contender.run(mine, epoch):
            pass
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return len(mine) / seconds, 1e3 * cpu_seconds / len(mine)


def _size(image: Any) -> tuple[int, int]:
    """Height and width of an array or a tensor, channels last or first."""
    shape = tuple(image.shape)
    return shape[:2] if shape[2] == 3 else shape[1:]


def _smaller_side(sample: Sample) -> np.ndarray:
    """In pixels of the output, (n,)."""
    boxes = transform_boxes(sample.boxes, sample.matrix)
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)


def _pick(output: Output, ids: np.ndarray) -> np.ndarray:
    """The boxes of some objects, (n, 4), infinite where one is missing."""
    places = {number: place for place, number in enumerate(output.ids.tolist())}
    missing = np.full(4, np.inf)
    return np.array([output.boxes[places[one]] if one in places else missing for one in ids.tolist()]).reshape(-1, 4)


def _ratios(medians: dict[str, float], peers: Sequence[str], targets: dict[str, float]) -> list[dict[str, Any]]:
    """What the tables show: ours over each peer's, two threads over one, and whether that reaches the target."""
    ours = medians["dpipe"]
    ratios = {"dpipe": medians["dpipe, 2 threads"] / ours, **{peer: ours / medians[peer] for peer in peers}}
    return [
        {"peer": peer, "ratio": ratio, "target": targets.get(peer), "reached": ratio >= targets.get(peer, 0)}
        for peer, ratio in ratios.items()
    ]


def show(setting: Setting, result: dict[str, Any], console: Console) -> None:
    """Prints one setting's table."""
    largest = result["output_sizes"]["largest"]
    table = Table(
        title=f"{setting.title} (up to {largest[0]}x{largest[1]}, files of {result['input']['megabytes']} MB)"
    )
    for column in ("", "images/s", "CPU time", "dpipe is", "target", "", "boxes apart"):
        table.add_column(column, justify="right" if column else "left")
    ratios = {ratio["peer"]: ratio for ratio in result["ratios"]}
    for name, rate in result["images_per_second"].items():
        ratio = ratios.get(name) if name != "dpipe" else None
        if name == "dpipe, 2 threads":
            ratio = ratios["dpipe"]
        apart = result["agreement"].get(name)
        table.add_row(
            name,
            f"{rate:.1f}",
            f"{result['cpu_milliseconds'][name]:.1f} ms",
            "" if ratio is None else f"{ratio['ratio']:.2f}x" + (" of one" if name.startswith("dpipe") else ""),
            "" if ratio is None or ratio["target"] is None else f"{ratio['target']}x",
            "" if ratio is None or ratio["target"] is None else ("reached" if ratio["reached"] else "missed"),
            "" if apart is None else f"{apart['largest_distance']:.2f} px",
        )
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder to keep the images in (default: made anew, not kept)")
    parser.add_argument("--images", type=int, default=24, help="images of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (default: %(default)s)")
    parser.add_argument(
        "--sizes", type=_size_argument, nargs="+", default=[(2048, 1024), (640, 480)], help="WIDTHxHEIGHT of images"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="files to read")
    parser.add_argument("--float", action="store_true", help="hand out normalised float32 instead of uint8")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


def _size_argument(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    main()
