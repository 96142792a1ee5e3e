"""Pixel-level transforms of albumentations: drawn by the plan, the same in any thread, and checked by name."""

import inspect
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import albumentations as A
import numpy as np
import pytest

from dpipe.backends.opencv import OpenCVBackend
from dpipe.errors import InputError
from dpipe.images.photometric import apply_photometric
from dpipe.operations.albumentations_op import Albumentations, AlbumentationsStep
from dpipe.operations.colours import Brightness, Color
from dpipe.operations.geometric import RandomFlip
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, AutoAugment, RandAugment

NOISE = {"type": "GaussNoise", "p": 1.0, "std_range": [0.1, 0.2]}
INVERT = {"type": "InvertImg", "p": 1.0}
SIZE = (60, 80)

# What albumentations can do to pixels, but for what needs other images or makes no uint8 RGB of uint8 RGB.
ELSEWHERE = {
    "FDA",
    "FromFloat",
    "HistogramMatching",
    "Normalize",
    "PixelDistributionAdaptation",
    "TextImage",
    "ToFloat",
}
PIXEL_LEVEL = sorted(
    name
    for name, value in vars(A).items()
    if inspect.isclass(value) and issubclass(value, A.ImageOnlyTransform) and value is not A.ImageOnlyTransform
)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def draw(transforms: list[dict[str, Any]], sample: int = 0, **numbers: int) -> SamplePlan:
    augment = Augment([{"type": "Albumentations", "transforms": transforms}])
    return augment.draw(SIZE, **{"seed": 0, "epoch": 0, "sample": sample, **numbers})


def run(transforms: list[dict[str, Any]], image: np.ndarray, sample: int = 0, **numbers: int) -> np.ndarray:
    return apply_photometric(image, draw(transforms, sample, **numbers).photometric)


def test_a_transform_does_what_albumentations_does(image: np.ndarray) -> None:
    brighter = {
        "type": "RandomBrightnessContrast",
        "brightness_limit": [0.2, 0.2],
        "contrast_limit": [0.1, 0.1],
        "p": 1,
    }
    theirs = A.RandomBrightnessContrast((0.2, 0.2), (0.1, 0.1), p=1)(image=image)["image"]
    np.testing.assert_array_equal(run([brighter], image), theirs)
    np.testing.assert_array_equal(run([brighter, INVERT], image), 255 - theirs)


@pytest.mark.parametrize("name", sorted(set(PIXEL_LEVEL) - ELSEWHERE))
@pytest.mark.filterwarnings("ignore:The image is already an RGB")
def test_every_pixel_level_transform_is_a_function_of_the_plan(name: str, image: np.ndarray) -> None:
    before = image.copy()
    transform = [{"type": name, "p": 1.0}]
    result = run(transform, image, sample=3)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)
    # Built anew, and with other random numbers drawn elsewhere.
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(run(transform, image, sample=3), result)


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_cannot_work_here_says_so(name: str) -> None:
    with pytest.raises(InputError, match=rf"^Albumentations: transform 0, {name}: ") as error:
        Albumentations([{"type": name}])
    assert "\n" not in str(error.value)


def test_results_differ_by_seed_epoch_and_sample_alone(image: np.ndarray) -> None:
    results = [run([NOISE], image, **numbers) for numbers in ({}, {"seed": 1}, {"epoch": 1}, {"sample": 1})]
    assert len({result.tobytes() for result in results}) == 4
    np.testing.assert_array_equal(run([NOISE], image), results[0])


def test_each_transform_draws_for_itself(image: np.ndarray) -> None:
    # Two chances of one half: both happen in a quarter of the samples, not in a half.
    lower, cut = {"type": "Solarize", "threshold_range": [0, 0]}, {"type": "Posterize", "num_bits": 1}
    dark = np.full((4, 4, 3), 1, dtype=np.uint8)  # 254 when inverted; 0 or 128 when cut to one bit
    step = draw([{**lower, "p": 0.5}, {**cut, "p": 0.5}]).photometric[0]
    assert isinstance(step, AlbumentationsStep)
    seen = [int(step.pipelines(dark, seed)[0, 0, 0]) for seed in range(1000)]
    for value in (1, 254, 0, 128):
        assert seen.count(value) / 1000 == pytest.approx(0.25, abs=0.05)


def test_threads_do_not_disturb_each_other(image: np.ndarray) -> None:
    augment = Augment([Albumentations([{"type": "OneOf", "transforms": [NOISE, {"type": "ISONoise"}], "p": 0.9}])])
    plans = [augment.draw(SIZE, seed=0, epoch=0, sample=sample) for sample in range(60)]
    alone = [apply_photometric(image, plan.photometric) for plan in plans]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda plan: apply_photometric(image, plan.photometric), [*plans, *plans[::-1]]))
    for result, expected in zip(together, [*alone, *alone[::-1]], strict=True):
        np.testing.assert_array_equal(result, expected)


def test_threads_have_transforms_of_their_own(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    both = threading.Barrier(2)

    def apply(self: Any, image: np.ndarray, **options: Any) -> np.ndarray:
        seen.append(self)
        if len(seen) > 1:
            both.wait(timeout=30)
        return image

    monkeypatch.setattr(A.InvertImg, "apply", apply)
    step = draw([INVERT]).photometric[0]
    assert callable(step)
    seen.clear()  # of the trial
    step(image)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(step, [image, image]))
    assert seen[1] is not seen[2]


def test_transforms_are_built_once_for_all_images(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment([Albumentations([NOISE])])
    built: list[Any] = []
    compose = A.Compose

    def build(transforms: list[Any]) -> Any:
        built.append(compose(transforms))
        return built[-1]

    monkeypatch.setattr(A, "Compose", build)
    for sample in range(5):
        apply_photometric(image, augment.draw(SIZE, seed=0, epoch=0, sample=sample).photometric)
    assert len(built) == 1


def test_steps_mix_with_other_photometric_operations_in_order(image: np.ndarray) -> None:
    augment = Augment([Brightness(8, prob=1), RandomFlip(1.0), Albumentations([INVERT]), Color(1, prob=1)])
    plan = augment.draw(SIZE, seed=0, epoch=0, sample=0)
    bright, color = plan.photometric[0], plan.photometric[2]
    expected = apply_photometric(255 - apply_photometric(image, [bright]), [color])
    np.testing.assert_array_equal(apply_photometric(image, plan.photometric), expected)


def test_groups(image: np.ndarray) -> None:
    cut = {"type": "Posterize", "num_bits": 1, "p": 1.0}
    group = {"type": "OneOf", "p": 1.0, "transforms": [INVERT, {"type": "Sequential", "p": 1.0, "transforms": [cut]}]}
    seen = [run([group], image, sample=sample) for sample in range(40)]
    inverted = [np.array_equal(result, 255 - image) for result in seen]
    posterised = [np.array_equal(result, image & 128) for result in seen]
    assert sum(inverted) + sum(posterised) == 40
    assert 10 < sum(inverted) < 30
    both = {"type": "SomeOf", "n": 2, "p": 1.0, "transforms": [INVERT, cut]}
    np.testing.assert_array_equal(run([both], image), (255 - image) & 128)


def test_policies_hold_it_and_tell(image: np.ndarray) -> None:
    operation = Albumentations([INVERT])
    for policy in (AutoAugment([[operation]]), RandAugment(5, num_ops=1, operations=[operation])):
        augment = Augment([policy])
        assert operation in list(augment.every_operation())
        plan = augment.draw(SIZE, seed=0, epoch=0, sample=0)
        np.testing.assert_array_equal(apply_photometric(image, plan.photometric), 255 - image)


def test_the_backend_applies_it_after_the_warp(tmp_path: Any, image: np.ndarray) -> None:
    import cv2

    path = tmp_path / "0.png"
    cv2.imwrite(str(path), image[..., ::-1])
    augment = Augment([{"type": "Albumentations", "transforms": [INVERT]}, RandomFlip(1.0)])
    plan = augment.draw(SIZE, seed=0, epoch=0, sample=0)
    (batch,) = OpenCVBackend([path], augment).stream([[plan]])
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), 255 - image[:, ::-1])


def test_the_backend_names_the_image_that_a_transform_fails_on(tmp_path: Any) -> None:
    import cv2

    path = tmp_path / "thin.png"
    cv2.imwrite(str(path), np.zeros((1, 9, 3), np.uint8))
    augment = Augment([{"type": "Albumentations", "transforms": [{"type": "Superpixels", "p": 1}]}])
    stream = OpenCVBackend([path], augment).stream([[augment.draw((1, 9), seed=0, epoch=0, sample=4, image=0)]])
    with pytest.raises(InputError, match=r"thin\.png \(sample 4\): Albumentations \(Superpixels\): fails on .* 9x1"):
        next(stream)


def test_plans_can_be_sent_to_another_process(image: np.ndarray) -> None:
    steps = draw([NOISE]).photometric
    expected = apply_photometric(image, steps)
    np.testing.assert_array_equal(apply_photometric(image, pickle.loads(pickle.dumps(steps))), expected)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([], r"transforms must be a list of mappings, got \[\]"),
        ([{}], "transform 0: expected a mapping with `type`, the name of a transform, got {}"),
        ([INVERT, "Blur"], 'transform 1: expected a mapping with `type`, .* got "Blur"'),
        ([{"type": "GaussNois"}], "transform 0, GaussNois: albumentations has no pixel-level .* mean 'GaussNoise'"),
        ([{"type": "os"}], "transform 0, os: albumentations has no pixel-level transform of that name$"),
        ([{"type": "Compose", "transforms": [INVERT]}], "transform 0, Compose: albumentations has no pixel-level"),
        ([{"type": "Rotate"}], "transform 0, Rotate: changes boxes and masks too, .* use dpipe's own operations"),
        ([{"type": "CoarseDropout"}], "transform 0, CoarseDropout: changes boxes and masks too"),
        (
            [{"type": "GaussNoise", "std_rang": [1, 2]}],
            "GaussNoise: unknown argument 'std_rang'; did you mean 'std_range'",
        ),
        ([{"type": "GaussNoise", "std_range": [3, 4]}], r"GaussNoise: std_range: .* got \[3, 4\]$"),
        ([{"type": "GaussNoise", "std_range": "x"}], 'GaussNoise: std_range: expected a list, got "x"$'),
        ([{"type": "Blur", "p": 2}], "Blur: p: expected a value less than or equal to 1, got 2"),
        ([{"type": "Blur", "blur_limit": [4, 8]}], "Blur: blur_limit: .*must be odd"),
        ([{"type": "ToGray", "num_output_channels": 1}], r"ToGray: makes uint8 of shape \(128, 160\) of an image"),
        ([{"type": "OneOf"}], "OneOf: needs transforms, a list of mappings, got null"),
        ([{"type": "OneOf", "transforms": [{"type": "Blurr"}]}], "OneOf, transform 0, Blurr: .* mean 'Blur'"),
        ([{"type": "OneOf", "transforms": [{"type": "Blur", "p": 0}]}], "OneOf: draws transforms in proportion"),
        ([{"type": "OneOf", "p": 5, "transforms": [INVERT]}], r"OneOf: p must lie in 0\.\.1, got 5"),
        ([{"type": "SomeOf", "n": 0, "transforms": [INVERT]}], "SomeOf: n must be an integer above 0, got 0"),
        ([{"type": "SomeOf", "m": 1, "transforms": [INVERT]}], "SomeOf: unknown argument 'm'"),
    ],
)
def test_wrong_transforms(transforms: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^Albumentations: .*{message}") as error:
        Albumentations(transforms)
    assert "\n" not in str(error.value)


def test_a_transform_that_fails_on_an_image_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step = draw([INVERT]).photometric[0]
    assert callable(step)
    monkeypatch.setattr(A.InvertImg, "apply", lambda *arguments, **options: 1 / 0)
    with pytest.raises(
        InputError, match=r"^Albumentations \(InvertImg\): fails on an image of 7x5 .*: division by zero$"
    ):
        step(np.zeros((5, 7, 3), np.uint8))
    monkeypatch.setattr(A.InvertImg, "apply", lambda self, image, **options: image[:2])
    with pytest.raises(InputError, match=r"makes uint8 of shape \(2, 5, 3\) of an image of shape \(5, 5, 3\)"):
        step(np.zeros((5, 5, 3), np.uint8))


def test_albumentations_is_imported_late_and_asks_no_network() -> None:
    code = """
import socket, sys
asked = []
socket.getaddrinfo = lambda host, *a, **k: asked.append(host) or []
from dpipe import Albumentations, Augment, Rotate
Augment([Rotate(5), {"type": "Resize", "scale": [20, 20]}])
assert "albumentations" not in sys.modules
Albumentations([{"type": "InvertImg"}])
assert "albumentations" in sys.modules
assert not asked, asked
"""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
