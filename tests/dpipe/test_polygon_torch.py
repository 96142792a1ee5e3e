"""Bitmaps and grids as tensors: those of numpy, on every device, to the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dpipe import geometry as g
from dpipe.errors import InputError
from dpipe.outlines import polygon_torch
from dpipe.outlines.polygon_torch import bitmaps_on, grids_on
from dpipe.polygons import Polygons

HEIGHT, WIDTH = 40, 50


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Operations whose result is left to chance raise an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def noise(rng: np.random.Generator, share: float) -> dict[str, object]:
    """Run lengths of single pixels, parts and holes, blown up to squares of three pixels."""
    small = rng.random((HEIGHT // 4, WIDTH // 5)) < share
    flat = np.kron(small, np.ones((4, 5))).astype(np.int8).flatten(order="F")
    bounds = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *bounds, len(flat)]).tolist()}


def mixture(seed: int) -> Polygons:
    """Rings on whole and on any coordinates that cross themselves, each other and the border; holes; nothing."""
    rng = np.random.default_rng(seed)
    several = []
    for number in range(24):
        rings = rng.uniform(-10, 60, (1 + number % 3, 2 * rng.integers(3, 9)))
        several.append((np.round(rings) if number % 2 else rings).tolist())
    traced = Polygons.from_coco([noise(rng, share) for share in (0.1, 0.5, 0.9)])
    turned = traced.transform(g.rotation(rng.uniform(0, 360), (25, 20)))
    return Polygons.concatenate([Polygons.empty(1), Polygons.from_coco(several), turned, traced, Polygons.empty(1)])


def look(polygons: Polygons, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on and beside instances, some of them without extent."""
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, len(polygons), 90)
    boxes = polygons.boxes()[instances] + rng.normal(0, 4, (90, 4)).astype(np.float32)
    boxes[:3, 2] = boxes[:3, 0]
    boxes[3:6, 3] = boxes[3:6, 1] - 2
    return boxes, instances


@pytest.mark.parametrize("seed", range(4))
def test_bitmaps_are_those_of_numpy(device: str, seed: int) -> None:
    polygons = mixture(seed)
    made = bitmaps_on(polygons, HEIGHT, WIDTH, device)
    assert made.device.type == device
    assert made.dtype == torch.uint8
    np.testing.assert_array_equal(made.cpu().numpy(), polygons.to_bitmaps(HEIGHT, WIDTH))
    alone = polygons.select(np.flatnonzero(np.diff(polygons.instance_offsets) <= 1))
    np.testing.assert_array_equal(bitmaps_on(alone, 9, 21, device).cpu().numpy(), alone.to_bitmaps(9, 21))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 7, 28])
def test_grids_are_those_of_numpy(device: str, seed: int, size: int) -> None:
    polygons = mixture(seed)
    boxes, instances = look(polygons, seed)
    made = grids_on(polygons, torch.tensor(boxes, device=device), torch.tensor(instances, device=device), size)
    assert made.device.type == device
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.cpu().numpy(), polygons.to_grids(boxes, instances, size), atol=1e-6)


def test_grids_are_the_same_bits_in_any_order_and_in_pieces(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = mixture(7)
    boxes, instances = (torch.tensor(values, device=device) for values in look(polygons, 7))
    whole = grids_on(polygons, boxes, instances, 28)
    assert torch.equal(grids_on(polygons, boxes, instances, 28), whole)
    vertices = polygons.vertices.copy()
    for begin, end in zip(polygons.ring_offsets[:-1], polygons.ring_offsets[1:], strict=True):
        vertices[begin:end] = np.roll(vertices[begin:end], 3, axis=0)
    rolled = Polygons(vertices, polygons.ring_offsets, polygons.instance_offsets, polygons.holes)
    # The areas of rings, whose signs decide, are sums of float64; no ring here is near zero.
    assert torch.equal(grids_on(rolled, boxes, instances, 28), whole)
    monkeypatch.setattr(polygon_torch, "GRID_EDGES", 50)
    assert torch.equal(grids_on(polygons, boxes, instances, 28), whole)
    monkeypatch.setattr(polygon_torch, "GRID_EDGES", 1 << 20)
    monkeypatch.setattr(polygon_torch, "GRID_CELLS", 1 << 14)
    assert torch.equal(grids_on(polygons, boxes, instances, 28), whole)


def test_nothing_gives_nothing(device: str) -> None:
    for count in (0, 2):
        empty = Polygons.empty(count)
        assert bitmaps_on(empty, 3, 4, device).shape == (count, 3, 4)
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * count, device=device).reshape(-1, 4)
        grids = grids_on(empty, boxes, torch.arange(count, device=device), 5)
        assert grids.shape == (count, 5, 5)
        assert not grids.any()
    square = Polygons.from_coco([[[0, 0, 4, 0, 4, 4, 0, 4]]])
    assert grids_on(square, torch.zeros((0, 4), device=device), torch.zeros(0, dtype=torch.int64), 5).shape == (0, 5, 5)
    assert bitmaps_on(square, 0, 4, device).shape == (1, 0, 4)
    assert bitmaps_on(square, 4, 0, device).shape == (1, 4, 0)
    outside = torch.full((2, 4), 9.0, device=device) + torch.tensor([0, 0, 5, 5.0], device=device)
    assert not grids_on(square, outside, torch.zeros(2, dtype=torch.int64, device=device), 5).any()


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    ("boxes", "instances", "size", "message"),
    [
        (2, [0], 7, "expected an instance for each of the 2 boxes, got 1"),
        (1, [0, 1], 7, "expected an instance for each of the 1 boxes, got 2"),
        (0, [0], 7, "expected an instance for each of the 0 boxes, got 1"),
        (2, [0, 2], 7, r"expected the numbers of instances in 0\.\.1, as there are 2"),
        (2, [-1, 0], 7, r"expected the numbers of instances in 0\.\.1, as there are 2"),
        (2, [0, 1], 0, "expected a size of at least 1 cell, got 0"),
    ],
)
def test_wrong_grids_are_refused_alike_on_all_devices(
    device: str, boxes: int, instances: list[int], size: int, message: str, empty: bool
) -> None:
    square = [[0, 0, 8, 0, 8, 8, 0, 8]]
    polygons = Polygons.from_coco([[], []] if empty else [square, square], np.full((2, 2), 9))
    table = np.tile([0.0, 0.0, 8.0, 8.0], (boxes, 1))
    with pytest.raises(InputError, match=f"^grids: {message}$"):
        polygons.to_grids(table, instances, size)
    with pytest.raises(InputError, match=f"^grids: {message}$"):
        grids_on(polygons, torch.from_numpy(table).to(device), torch.tensor(instances, device=device), size)


def test_bitmaps_on_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match="device 'cuda:99' is not there"):
        bitmaps_on(Polygons.empty(), 3, 4, "cuda:99")
