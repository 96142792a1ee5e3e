import math
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpipe.backends import base, choose, opencv
from dpipe.backends.dali_options import DaliOptions
from dpipe.coco import CocoIndex
from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import decode_image
from dpipe.loader import Batch, DetectionLoader
from dpipe.operations.albumentations_op import Albumentations
from dpipe.operations.geometric import RandomFlip
from dpipe.operations.operation import Operation
from dpipe.plan import Draft
from dpipe.policy import Augment
from dpipe.polygons import Polygons

WriteDataset = Callable[..., tuple[CocoIndex, Path]]
Dataset = tuple[CocoIndex, Path]

AUGMENT: list[dict[str, Any]] = [
    {
        "type": "AutoAugment",
        "policies": [
            [{"type": "Rotate", "level": 5, "prob": 0.5, "scale": 1, "img_fill_val": [124, 116, 104]}],
            [{"type": "Rotate", "level": 7}, {"type": "Translate", "level": 5, "max_translate_offset": 20}],
        ],
    },
    {"type": "Resize", "scale": [[96, 48], [96, 72]]},
    {"type": "RandomFlip"},
    {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
    {"type": "Pad", "size_divisor": 32},
]


@pytest.fixture
def dataset(write_dataset: WriteDataset, noise_images: list[np.ndarray]) -> Dataset:
    """Eleven images; all but the last have a box with a polygon, the last has a crowd only."""
    annotations = [
        {
            "image_id": number,
            "bbox": [5, 6, 20, 16],
            "segmentation": [[5, 6, 25, 6, 25, 22, 5, 22]],
            "iscrowd": int(number == 10),
        }
        for number in range(11)
    ]
    return write_dataset(noise_images, annotations)


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the last bit."""
    pairs = zip(first.targets, second.targets, strict=True)
    return torch.equal(first.images, second.images) and all(same_target(*pair) for pair in pairs)


def all_same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    """Whether two lists of batches are equal, in number too."""
    return all(same(*pair) for pair in zip(first, second, strict=True))


def same_target(first: Any, second: Any) -> bool:
    fields = ["boxes", "labels", "annotation_ids", "has_mask", "ignore_boxes"]
    return (
        (first.sample, first.image_id, first.size) == (second.sample, second.image_id, second.size)
        and np.array_equal(first.matrix, second.matrix)
        and all(torch.equal(getattr(first, field), getattr(second, field)) for field in fields)
        and np.array_equal(first.masks.vertices, second.masks.vertices)
    )


def samples(batches: list[Batch]) -> list[int]:
    return [target.sample for batch in batches for target in batch.targets]


def threads_of_dpipe() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpipe")]


def test_an_epoch_has_every_image_with_its_own_target(dataset: Dataset) -> None:
    index, folder = dataset
    loader = DetectionLoader(index, folder, augment=[], batch_size=3, pad_last=False, repeat=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    assert sorted(samples(batches)) == list(range(22))
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert len(batch) == len(batch.targets) == len(batch.images)
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width = target.size
            assert (image[0, :height, :width] == target.image_id).all()
            assert target.image_id == target.sample % 11
            assert target.file_name == f"{target.image_id:03d}.png"
            assert isinstance(target.masks, Polygons)
            assert len(target.boxes) == len(target.masks) == int(target.image_id != 10)
            assert len(target.ignore_boxes) == int(target.image_id == 10)


def test_shuffled_batches_hold_one_aspect(dataset: Dataset) -> None:
    index, folder = dataset
    batches = list(DetectionLoader(index, folder, augment=[], batch_size=2, pad_last=False))
    landscape = [[target.size[1] >= target.size[0] for target in batch.targets] for batch in batches]
    assert sum(len(set(batch)) > 1 for batch in landscape) <= 1
    assert len({tuple(samples(list(DetectionLoader(index, folder, augment=[], seed=seed)))) for seed in range(3)}) == 3


def test_evaluation_goes_in_order_once(dataset: Dataset) -> None:
    index, folder = dataset
    loader = DetectionLoader(index, folder, augment=AUGMENT[1:2], batch_size=4, shuffle=False, pad_last=False)
    assert samples(list(loader)) == list(range(11))


def test_images_without_instances_may_be_left_out(dataset: Dataset) -> None:
    index, folder = dataset
    batches = list(DetectionLoader(index, folder, augment=[], filter_empty=True, repeat=2))
    assert sorted(samples(batches)) == list(range(20))
    assert {target.image_id for batch in batches for target in batch.targets} == set(range(10))


def test_groups_are_those_of_the_images_that_are_left(write_dataset: WriteDataset) -> None:
    # Every second image is empty; of those that are left, the first half is landscape.
    sizes = [(10, 20) if number < 16 else (20, 10) for number in range(32)]
    index, folder = write_dataset(
        [np.zeros((*size, 3), np.uint8) for size in sizes],
        [{"image_id": number, "bbox": [1, 1, 8, 8]} for number in range(0, 32, 2)],
    )
    loader = DetectionLoader(index, folder, augment=[], batch_size=4, filter_empty=True)
    batches = list(loader)
    assert len(batches) == 4
    assert {target.image_id for batch in batches for target in batch.targets} == set(range(0, 32, 2))
    assert all(len({target.size for target in batch.targets}) == 1 for batch in batches)


def test_how_boxes_are_made_and_kept_is_passed_on(write_dataset: WriteDataset) -> None:
    # Diamonds of growing size: turned by 45 degrees they are squares, the corners of their boxes reach twice as far.
    sides = np.arange(4, 20, 2)
    diamonds = [[50, 50 - s / 2, 50 + s / 2, 50, 50, 50 + s / 2, 50 - s / 2, 50] for s in sides]
    index, folder = write_dataset(
        [np.zeros((100, 100, 3), np.uint8)],
        [
            {"image_id": 0, "bbox": [50 - s / 2, 50 - s / 2, s, s], "segmentation": [diamond]}
            for s, diamond in zip(sides.tolist(), diamonds, strict=True)
        ],
    )
    augment: list[Any] = [{"type": "Rotate", "level": 10, "prob": 1, "max_rotate_angle": 45}]

    def widths(**options: Any) -> np.ndarray:
        (batch,) = DetectionLoader(index, folder, augment=augment, **options)
        boxes = batch.targets[0].boxes
        return (boxes[:, 2] - boxes[:, 0]).numpy()

    np.testing.assert_allclose(widths(), sides / np.sqrt(2), rtol=1e-4)
    np.testing.assert_allclose(widths(boxes_from="corners"), sides * np.sqrt(2), rtol=1e-4)
    np.testing.assert_allclose(widths(min_size=9), sides[5:] / np.sqrt(2), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "prefetch"),
    [
        ({"threads": 1}, 2),
        ({"threads": 16}, 32),
        ({"threads": 16, "batch_size": 4}, 8),
        ({"threads": 17, "batch_size": 4}, 9),
        ({"threads": 16, "batch_size": 32}, 2),
        ({"threads": 16, "batch_size": 4, "backend": "dali"}, 4),
        ({"threads": 16, "prefetch": 1}, 1),
        ({"threads": 16, "prefetch": 0}, 0),
    ],
)
def test_as_much_is_read_ahead_as_keeps_all_threads_busy(
    dataset: Dataset, options: dict[str, Any], prefetch: int
) -> None:
    index, folder = dataset
    backend: Any = DetectionLoader(index, folder, augment=[], **options).backend
    assert (backend.threads, backend.prefetch) == (options["threads"], prefetch)


def test_little_is_read_ahead_into_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fake = SimpleNamespace(DaliBackend=lambda *_, prefetch, **__: made.append(prefetch))
    monkeypatch.setitem(sys.modules, "dpipe.backends.dali", fake)  # type: ignore[arg-type]
    for prefetch in (None, 0, 7):
        options: dict[str, Any] = {"threads": 64, "prefetch": prefetch, "batch_size": 2}
        choose.make_backend("dali", torch.device("cuda", 0), [], Augment([]), **options)
    assert made == [3, 0, 7]


def test_all_threads_decode_at_batch_size_one(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    index, folder = dataset
    all_there = threading.Barrier(6)

    def decode(*arguments: Any) -> np.ndarray:
        all_there.wait(timeout=30)  # an error unless six images are in work at once
        return decode_image(*arguments)

    monkeypatch.setattr(opencv, "decode_image", decode)
    assert len(list(DetectionLoader(index, folder, augment=[], threads=6, repeat=6))) == 66


@pytest.mark.parametrize(
    ("cores", "world_size", "local", "threads"),
    [(8, 1, None, 8), (8, 4, None, 2), (8, 3, None, 2), (2, 4, None, 1), (8, 16, "4", 2), (8, 2, "x", 4)],
)
def test_processes_share_the_cores(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, cores: int, world_size: int, local: str | None, threads: int
) -> None:
    index, folder = dataset
    monkeypatch.setattr(base, "usable_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    backend: Any = DetectionLoader(index, folder, augment=[], world_size=world_size).backend
    assert backend.threads == threads
    backend = DetectionLoader(index, folder, augment=[], world_size=world_size, threads=7).backend
    assert backend.threads == 7


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 0}, {"threads": 4, "prefetch": 5}])
def test_batches_do_not_depend_on_threads(dataset: Dataset, options: dict[str, int]) -> None:
    index, folder = dataset
    first = list(DetectionLoader(index, folder, augment=AUGMENT, batch_size=2, threads=2))
    second = list(DetectionLoader(index, folder, augment=AUGMENT, batch_size=2, **options))  # type: ignore[arg-type]
    assert all_same(first, second)


def test_epochs_differ_and_come_again(dataset: Dataset) -> None:
    index, folder = dataset
    loader = DetectionLoader(index, folder, augment=AUGMENT, batch_size=11)
    (first,), (second,) = list(loader), list(loader)
    assert loader.state_dict()["epoch"] == 2
    assert not torch.equal(first.images[0, :, :32, :32], second.images[0, :, :32, :32])
    loader.set_epoch(1)
    (again,) = list(loader)
    assert same(again, second)


@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_it_resumes_with_the_batch_that_would_have_come(dataset: Dataset, taken: int) -> None:
    index, folder = dataset
    options: dict[str, Any] = {"augment": AUGMENT, "batch_size": 2, "prefetch": 3, "seed": 5}
    whole = DetectionLoader(index, folder, **options)
    expected = [*whole, *whole]

    killed = DetectionLoader(index, folder, **options)
    iterator = iter(killed)
    for _ in range(taken):
        next(iterator)
    state = killed.state_dict()
    assert state["consumed"] == ([[2, taken]] if taken else [])

    resumed = DetectionLoader(index, folder, **options)
    resumed.load_state_dict(state)
    rest = [*resumed, *resumed]
    assert all_same(rest, expected[taken:])
    # The loader that was interrupted goes on as well.
    assert all_same(iterator, expected[taken:6])


def test_an_epoch_in_three_parts_of_other_batch_sizes(dataset: Dataset) -> None:
    index, folder = dataset
    state: dict[str, Any] = {}
    seen: list[int] = []
    for batch_size, taken in ((2, 1), (3, 2), (1, 3)):
        loader = DetectionLoader(index, folder, augment=[], batch_size=batch_size, pad_last=False)
        loader.load_state_dict(state or loader.state_dict())
        iterator = iter(loader)
        seen += [target.sample for _ in range(taken) for target in next(iterator).targets]
        state = loader.state_dict()
    assert state["consumed"] == [[2, 1], [3, 2], [1, 3]]
    assert next(iterator, None) is None
    assert sorted(seen) == list(range(11))


def test_a_state_of_other_images_is_refused(dataset: Dataset) -> None:
    index, folder = dataset
    options: dict[str, Any] = {"augment": [], "shuffle": False}
    state = DetectionLoader(index, folder, **options).state_dict()
    renamed = replace(index, file_names=[*index.file_names[:-1], "last.png"])
    renumbered = replace(index, image_ids=index.image_ids + 1)
    reordered = replace(index, image_ids=index.image_ids[::-1], file_names=index.file_names[::-1])
    for other in (renamed, renumbered, reordered):
        with pytest.raises(
            InputError, match=r"instances\.json: has not the images that the loader's state was saved"
        ) as caught:
            DetectionLoader(other, folder, **options).load_state_dict(state)
        assert "\n" not in str(caught.value)
    DetectionLoader(replace(index), folder, **options).load_state_dict(state)
    # The last one is empty: where such are left out, its name is of no account.
    state = DetectionLoader(index, folder, filter_empty=True, **options).state_dict()
    DetectionLoader(renamed, folder, filter_empty=True, **options).load_state_dict(state)


def test_a_state_loads_without_running_anything(dataset: Dataset, tmp_path: Path) -> None:
    index, folder = dataset
    for group_by_aspect in (True, False):
        loader = DetectionLoader(index, folder, augment=[], group_by_aspect=group_by_aspect)
        next(iter(loader))
        torch.save(loader.state_dict(), tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == loader.state_dict()


def test_two_ranks_see_what_one_would(dataset: Dataset) -> None:
    index, folder = dataset
    one = list(DetectionLoader(index, folder, augment=AUGMENT, batch_size=4))
    ranks = [DetectionLoader(index, folder, augment=AUGMENT, batch_size=2, rank=r, world_size=2) for r in range(2)]
    two = [list(loader) for loader in ranks]
    assert len(one) == len(two[0]) == len(two[1]) == 3
    for whole, *halves in zip(one, *two, strict=True):
        targets = [target for half in halves for target in half.targets]
        images = [image for half in halves for image in half.images]
        for image, target, expected, reference in zip(images, targets, whole.targets, whole.images, strict=True):
            assert same_target(target, expected)
            height, width = target.size
            assert torch.equal(image[:, :height, :width], reference[:, :height, :width])


def test_breaking_off_leaves_no_threads_and_begins_anew(dataset: Dataset) -> None:
    index, folder = dataset
    loader = DetectionLoader(index, folder, augment=AUGMENT, batch_size=1, threads=3)
    seen = []
    for batch in loader:
        seen.append(batch)
        assert threads_of_dpipe()
        if len(seen) == 4:
            break
    del batch
    assert not threads_of_dpipe()
    assert loader.state_dict()["consumed"] == [[1, 4]]
    again = list(loader)
    assert all_same(again[:4], seen)
    assert sorted(samples(again)) == list(range(11))
    assert not threads_of_dpipe()
    # A trainer that counts batches does not ask for the end of an epoch: it is over all the same.
    iterator = iter(loader)
    second = [next(iterator) for _ in range(11)]
    assert loader.state_dict()["epoch"] == 1
    third = list(loader)
    assert loader.state_dict()["epoch"] == 3
    assert samples(second) != samples(third)


def test_a_bad_image_is_named_at_its_batch(dataset: Dataset) -> None:
    index, folder = dataset
    bad = folder / "004.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    loader = DetectionLoader(index, folder, augment=AUGMENT, batch_size=2, shuffle=False, prefetch=4)
    seen: list[Batch] = []
    with pytest.raises(BadSampleError, match=r"images/004\.png \(sample 4\): truncated PNG"):
        seen.extend(loader)
    assert samples(seen) == [0, 1, 2, 3]
    assert loader.state_dict()["consumed"] == [[2, 2]]
    assert not threads_of_dpipe()
    (folder / "000.png").unlink()
    with pytest.raises(BadSampleError, match=r"000\.png \(sample 0\): no such image file"):
        list(DetectionLoader(index, folder, augment=[], shuffle=False))


def test_batches_move_to_a_device(dataset: Dataset) -> None:
    index, folder = dataset
    (batch, *_) = DetectionLoader(index, folder, augment=AUGMENT, batch_size=2)
    moved = batch.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.targets[0].boxes.device.type == moved.targets[0].ignore_boxes.device.type == "meta"
    assert moved.targets[0].masks is batch.targets[0].masks
    assert moved.targets[0].file_name == batch.targets[0].file_name


def test_auto_is_opencv_on_the_cpu_and_dali_on_a_gpu(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    index, folder = dataset
    assert type(DetectionLoader(index, folder, augment=[]).backend).__name__ == "OpenCVBackend"
    made: list[str] = []
    monkeypatch.setattr(
        "dpipe.backends.opencv.OpenCVBackend", lambda *_, pin_memory, **__: made.append(f"opencv {pin_memory}")
    )
    fake = SimpleNamespace(DaliBackend=lambda *_, device, **__: made.append(f"dali {device}"))
    monkeypatch.setitem(sys.modules, "dpipe.backends.dali", fake)  # type: ignore[arg-type]

    def auto(*operations: Any) -> str:
        options: dict[str, Any] = {"threads": 1, "prefetch": 1, "batch_size": 1, "dali": DaliOptions()}
        choose.make_backend("auto", torch.device("cuda", 1), [], Augment(operations), **options)
        return made.pop()

    monkeypatch.setattr(choose, "dali_imports", lambda: True)
    assert auto() == "dali cuda:1"
    # Which DALI lacks: a recipe that runs on a CPU runs on a GPU too.
    assert auto(Albumentations([{"type": "Blur"}])) == "opencv True"
    monkeypatch.setattr(choose, "dali_imports", lambda: False)
    assert auto() == "opencv True"


def test_cuda_is_the_gpu_that_is_current_when_the_loader_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name, expected in (("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        assert choose.checked_device(name) == torch.device(expected)


@pytest.mark.gpu
def test_opencv_batches_reach_the_gpu_whole_while_it_computes(dataset: Dataset) -> None:
    index, folder = dataset
    options: dict[str, Any] = {"augment": AUGMENT, "batch_size": 2, "backend": "opencv", "prefetch": 3}
    expected = list(DetectionLoader(index, folder, **options))
    loader = DetectionLoader(index, folder, device="cuda", **options)
    assert loader.backend.pin_memory  # type: ignore[attr-defined]
    busy = torch.rand(2048, 2048, device="cuda")
    batches = []
    for batch in loader:
        for _ in range(20):  # kernels that are queued before the next copies
            busy = busy @ busy / busy.norm()
        assert batch.images.device.type == batch.targets[0].boxes.device.type == "cuda"
        batches.append(batch)
    assert all_same([batch.to("cpu") for batch in batches], expected)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_normalised_images_come_in_half_precision(dataset: Dataset, name: Any) -> None:
    index, folder = dataset
    whole = DetectionLoader(index, folder, augment=AUGMENT, batch_size=4)
    half = DetectionLoader(index, folder, augment=AUGMENT, batch_size=4, dtype=name)
    for expected, batch in zip(whole, half, strict=True):
        assert batch.images.dtype == getattr(torch, name)
        assert torch.equal(batch.images, expected.images.to(batch.images.dtype))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets[0].boxes.dtype == torch.float32


def test_operations_that_look_at_boxes_are_given_those_of_the_objects(write_dataset: WriteDataset) -> None:
    rows = [
        {"image_id": 1, "bbox": [1, 2, 10, 20]},
        {"image_id": 1, "bbox": [3, 4, 5, 6], "iscrowd": 1},
        {"image_id": 1, "bbox": [7, 8, 9, 10]},
    ]
    index, folder = write_dataset([np.zeros((40, 60, 3), np.uint8)] * 2, rows)
    seen = {}

    @dataclass(frozen=True)
    class Look(Operation):
        needs_boxes = True

        def apply(self, draft: Draft) -> None:
            seen[len(seen)] = draft.boxes.tolist()

    loader = DetectionLoader(index, folder, augment=[Look()], shuffle=False)
    for sample in range(2):
        loader.plan(sample, epoch=0)
    assert seen == {0: [], 1: [[1, 2, 11, 22], [7, 8, 16, 18]]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype: expected 'float32' or 'float16' or 'bfloat16', got 'float64'"),
        ({"dtype": "float16"}, "dtype float16 is the type of normalised images: expected a Normalize"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample: expected 'fail' or 'skip', got 'ignore'"),
        ({"backend": "opencv", "dali": DaliOptions()}, "options of DALI were given with the opencv backend"),
        ({"backend": "pil"}, "backend: expected 'auto' or 'opencv' or 'dali', got 'pil'"),
        ({"device": "gpu"}, "unknown device 'gpu': expected cpu, cuda"),
        ({"device": "mps"}, "device 'mps' is not supported"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not there: this machine has \d+ CUDA devices"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"prefetch": -1}, "prefetch must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"boxes_from": "masks"}, "boxes_from: expected 'polygons' or 'corners', got 'masks'"),
        ({"min_size": math.nan}, "min_size must be a number of pixels of at least 0, got nan"),
        ({"min_size": math.inf}, "min_size must be a number of pixels of at least 0, got inf"),
        ({"min_size": -1}, "min_size must be a number of pixels of at least 0, got -1"),
        ({"min_size": "1"}, "DetectionLoader: min_size: expected a number, got '1'"),
        ({"index": "train.json"}, "DetectionLoader: index: expected CocoIndex, got 'train.json'"),
        ({"index": None}, "DetectionLoader: index: expected CocoIndex, got None"),
        ({"index": {}}, "DetectionLoader: index: expected CocoIndex, got {}"),
        ({"images": None}, "DetectionLoader: images: expected a string or a path, got None"),
        ({"device": None}, "DetectionLoader: device: expected a string or device, got None"),
        ({"augment": RandomFlip()}, "DetectionLoader: augment: expected Augment or a list, got"),
        ({"augment": None}, "DetectionLoader: augment: expected Augment or a list, got None"),
        ({"augment": "RandomFlip"}, "DetectionLoader: augment: expected Augment or a list, got"),
        ({"batch_size": "2"}, "DetectionLoader: batch_size: expected an integer, got '2'"),
        ({"shuffle": "no"}, "DetectionLoader: shuffle: expected true or false, got 'no'"),
        ({"filter_empty": "false"}, "DetectionLoader: filter_empty: expected true or false, got 'false'"),
        ({"threads": 1.5}, "DetectionLoader: threads: expected an integer or None, got 1.5"),
        ({"dali": {}}, "DetectionLoader: dali: expected DaliOptions or None, got {}"),
        ({"augment": [{"type": "Resize", "scale": [0, 5]}]}, "Resize: scale must be a pair"),
        ({"images": "nowhere"}, "nowhere: no such folder of images"),
    ],
)
def test_wrong_arguments(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    index, folder = dataset
    with pytest.raises(InputError, match=message):
        DetectionLoader(**{"index": index, "images": folder, "augment": [], **options})


def test_arguments_of_another_right_type(dataset: Dataset) -> None:
    index, folder = dataset
    numbers: dict[str, Any] = {"batch_size": np.int64(2), "min_size": np.float32(1), "shuffle": np.bool_(True)}
    loader = DetectionLoader(index, str(folder), augment=(RandomFlip(),), device=torch.device("cpu"), **numbers)
    assert len(next(iter(loader))) == 2


@pytest.mark.parametrize(("sample", "epoch"), [("x", 0), (-1, 0), (0, "x"), (0, None)])
def test_plans_of_wrong_numbers(dataset: Dataset, sample: Any, epoch: Any) -> None:
    index, folder = dataset
    with pytest.raises(InputError, match=r"(sample|epoch) .* is out of range: expected an integer"):
        DetectionLoader(index, folder, augment=[]).plan(sample, epoch)


@pytest.mark.parametrize("state", [None, "x", [], 3])
def test_a_state_that_is_no_mapping(dataset: Dataset, state: Any) -> None:
    index, folder = dataset
    with pytest.raises(InputError, match="loader state: expected the mapping that state_dict returns, got"):
        DetectionLoader(index, folder, augment=[]).load_state_dict(state)


def test_a_state_tells_what_was_changed(dataset: Dataset) -> None:
    index, folder = dataset
    state = DetectionLoader(index, folder, augment=[]).state_dict()
    loader = DetectionLoader(index, folder, augment=[], group_by_aspect=False)
    with pytest.raises(InputError, match="saved with group_by_aspect True, here it is False: it cannot go on"):
        loader.load_state_dict(state)
    loader = DetectionLoader(index, folder, augment=[], filter_empty=True)
    with pytest.raises(InputError, match="saved with filter_empty False, here it is True: it cannot go on"):
        loader.load_state_dict(state)
    with pytest.raises(InputError, match="loader state lacks images: expected what state_dict returns"):
        loader.load_state_dict({name: value for name, value in state.items() if name != "images"})
    with pytest.raises(InputError, match=r"loader state lacks consumed, epoch, .*: expected what state_dict returns"):
        loader.load_state_dict({})
    # Without shuffling nothing is grouped.
    plain = DetectionLoader(index, folder, augment=[], shuffle=False).state_dict()
    DetectionLoader(index, folder, augment=[], shuffle=False, group_by_aspect=False).load_state_dict(plain)


def test_no_images(write_dataset: WriteDataset) -> None:
    index, folder = write_dataset([np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(InputError, match=r"\.json: expected at least one image with an instance to learn from"):
        DetectionLoader(index, folder, augment=[], filter_empty=True)


@pytest.mark.realdata
def test_real_images_with_one_thread_and_with_two(data_root: Path) -> None:
    folder = data_root / "coco_mini"
    index = CocoIndex.load(folder / "annotations" / "instances_val.json")
    augment = [AUGMENT[0], {"type": "Resize", "scale": [[640, 320], [640, 400]]}, *AUGMENT[2:]]
    loaders = [
        DetectionLoader(index, folder / "val", augment=augment, batch_size=4, threads=threads) for threads in (1, 2)
    ]
    instances = 0
    for first, second in zip(*loaders, strict=True):
        assert same(first, second)
        assert first.images.shape[2] % 32 == first.images.shape[3] % 32 == 0
        for target in first.targets:
            instances += len(target.boxes)
            assert isinstance(target.masks, Polygons)
            assert len(target.boxes) == len(target.labels) == len(target.masks) == len(target.has_mask)
            height, width = target.size
            assert (target.boxes[:, :2] >= 0).all()
            assert (target.boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
            sides = target.boxes[:, 2:] - target.boxes[:, :2]
            assert (target.masks.areas() <= sides.prod(dim=1).numpy() * (1 + 1e-4)).all()
    assert instances > 200
