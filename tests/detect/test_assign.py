"""Assigner and sampler: thresholds, ties, ignore regions, reproducible draws, empty images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detect.models.assign import NEGATIVE, NEITHER, Assignment, MaxIoUAssigner, RandomSampler, sample_rois

NONE = torch.zeros(0, 4)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def assign(assigner, priors, gts, ignored=NONE):
    return assigner.assign(priors, gts, ignored).gt_indices.tolist()


def test_thresholds_are_inclusive_for_positives_and_exclusive_for_negatives():
    gts = boxes((0, 0, 10, 10))
    priors = boxes((0, 0, 10, 7), (0, 0, 10, 6), (0, 0, 10, 3), (0, 0, 10, 2.9), (50, 50, 60, 60))
    assigner = MaxIoUAssigner(0.7, 0.3, match_low_quality=False)
    assert assign(assigner, priors, gts) == [0, NEITHER, NEITHER, NEGATIVE, NEGATIVE]


def test_low_quality_matches_take_every_tie_above_the_minimum():
    priors = boxes((0, 0, 10, 10), (2, 0, 12, 10), (30, 0, 40, 10))
    gts = boxes((5, 0, 7, 10), (38, 0, 70, 10))  # the first lies inside two priors alike, the second touches one
    assert assign(MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.15), priors, gts) == [0, 0, NEGATIVE]
    assert assign(MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.04), priors, gts) == [0, 0, 1]
    assert assign(MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3), priors, gts) == [NEGATIVE] * 3
    assert assign(MaxIoUAssigner(0.7, 0.3, match_low_quality=False), priors, gts) == [NEGATIVE] * 3


def test_the_least_overlap_of_a_low_quality_match_is_enough():
    priors, gts = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 5))
    assert assign(MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.5), priors, gts) == [0]
    assert assign(MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.51), priors, gts) == [NEITHER]


def test_low_quality_match_overrides_a_better_one_and_the_last_ground_truth_wins():
    priors = boxes((0, 0, 10, 10))
    gts = boxes((0, 0, 10, 9), (0, 0, 10, 8))  # both have this prior as their best
    assert assign(MaxIoUAssigner(0.7, 0.3), priors, gts) == [1]
    assert assign(MaxIoUAssigner(0.7, 0.3, match_low_quality=False), priors, gts) == [0]


def test_ignore_regions_spare_by_the_share_of_the_prior():
    gts = boxes((0, 0, 10, 10))
    priors = boxes((0, 0, 10, 10), (100, 0, 110, 10), (104, 0, 114, 10), (200, 0, 210, 10))
    region = boxes((100, 0, 110, 10))
    assert assign(MaxIoUAssigner(0.5, 0.5, ignore_iof_thr=0.5), priors, gts, region) == [0, NEITHER, NEITHER, NEGATIVE]
    assert assign(MaxIoUAssigner(0.5, 0.5, ignore_iof_thr=0.6), priors, gts, region) == [0, NEITHER, NEGATIVE, NEGATIVE]
    assert assign(MaxIoUAssigner(0.5, 0.5), priors, gts, region) == [0, NEGATIVE, NEGATIVE, NEGATIVE]
    no_objects = assign(MaxIoUAssigner(0.5, 0.5, ignore_iof_thr=0.5), priors, NONE, region)
    assert no_objects == [NEGATIVE, NEITHER, NEITHER, NEGATIVE]


def test_nothing_to_assign():
    assigner = MaxIoUAssigner(0.7, 0.3)
    assert assign(assigner, boxes((0, 0, 1, 1)), NONE) == [NEGATIVE]
    assert assign(assigner, NONE, boxes((0, 0, 1, 1))) == []
    assert assign(assigner, NONE, NONE) == []


def assignment(positives, negatives, neither=0):
    indices = torch.cat([torch.zeros(positives), torch.full((negatives,), NEGATIVE), torch.full((neither,), NEITHER)])
    return Assignment(indices.long(), torch.zeros(len(indices)))


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ((100, 1000, 7), (64, 192)),
        ((10, 1000, 7), (10, 246)),
        ((100, 20, 7), (64, 20)),
        ((0, 5, 0), (0, 5)),
        ((0, 0, 3), (0, 0)),
    ],
)
def test_sampler_fills_up_with_negatives(available, expected):
    positives, negatives = RandomSampler(256, 0.25).choose(assignment(*available))
    assert (len(positives), len(negatives)) == expected
    assert positives.tolist() == sorted(set(positives.tolist()))
    assert negatives.tolist() == sorted(set(negatives.tolist()))
    assert all(i < available[0] for i in positives)
    assert all(available[0] <= i < available[0] + available[1] for i in negatives)


def test_sampler_repeats_with_the_seed_only():
    sampler, given = RandomSampler(32, 0.5), assignment(200, 200)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.cat(sampler.choose(given)).tolist())
    assert draws[0] == draws[1] != draws[2]


def target(gts, labels, ignored=NONE):
    return SimpleNamespace(boxes=gts, labels=torch.tensor(labels, dtype=torch.int64), ignore_boxes=ignored)


def test_ground_truths_come_first_and_match_themselves():
    gts = boxes((0, 0, 10, 10), (20, 20, 40, 40))
    proposals = boxes((50, 50, 60, 60), (21, 20, 40, 40))
    assigner = MaxIoUAssigner(0.5, 0.5, match_low_quality=False)
    samples = sample_rois(assigner, RandomSampler(512, 0.25), proposals, target(gts, [4, 2]))
    torch.testing.assert_close(samples.boxes, torch.cat([gts, proposals[1:], proposals[:1]]))
    assert samples.gt_indices.tolist() == [0, 1, 1]
    assert samples.gt_labels.tolist() == [4, 2, 2]
    assert samples.is_gt.tolist() == [True, True, False]
    torch.testing.assert_close(samples.positive_boxes, samples.boxes[:3])
    torch.testing.assert_close(samples.gt_boxes, gts[[0, 1, 1]])
    without = sample_rois(assigner, RandomSampler(512, 0.25, add_gt_as_proposals=False), proposals, target(gts, [4, 2]))
    assert without.is_gt.tolist() == [False]


def test_ground_truths_fit_themselves_wholly():
    seen = []

    class Noting(RandomSampler):
        def choose(self, assignment):
            seen.append(assignment.max_ious.tolist())
            return super().choose(assignment)

    proposals, gts = boxes((0, 0, 10, 5), (50, 50, 60, 60)), boxes((0, 0, 10, 10), (20, 20, 40, 40))
    sample_rois(MaxIoUAssigner(0.5, 0.5), Noting(8, 0.5), proposals, target(gts, [0, 1]))
    assert seen == [[1, 1, 0.5, 0]]


def test_sampling_without_objects_or_proposals():
    assigner, sampler = MaxIoUAssigner(0.5, 0.5), RandomSampler(512, 0.25)
    assert len(sample_rois(assigner, sampler, NONE, target(NONE, [])).boxes) == 0
    assert sample_rois(assigner, sampler, boxes((0, 0, 5, 5)), target(NONE, [])).num_positives == 0
    assert sample_rois(assigner, sampler, NONE, target(boxes((0, 0, 5, 5)), [1])).num_positives == 1


def by_the_definition(assigner, priors, gts):
    """The assignment from whole tables, the overlap of each pair as it is written down in papers."""
    corners = torch.max(gts[:, None, :2], priors[:, :2]), torch.min(gts[:, None, 2:], priors[:, 2:])
    intersections = (corners[1] - corners[0]).clamp(min=0).prod(dim=-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(dim=-1) for b in (gts, priors)]
    ious = intersections / (areas[0][:, None] + areas[1] - intersections).clamp(min=1e-6)
    best, indices = ious.max(dim=0)
    indices = torch.where(best >= assigner.pos_iou_thr, indices, NEITHER)
    indices = torch.where(best < assigner.neg_iou_thr, NEGATIVE, indices)
    for number, row in enumerate(ious):
        if row.max() >= assigner.min_pos_iou:
            indices[row == row.max()] = number
    return indices, best


@pytest.mark.parametrize("block", [1, 1000, 2**21])
def test_blocks_change_no_bit(monkeypatch, block):
    """On a coarse lattice, where many overlaps are exactly alike."""
    monkeypatch.setattr("detect.models.boxes.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(3040, 2, generator=generator) * 20).round() * 8
    sizes = (torch.rand(3040, 2, generator=generator) * 5).round() * 8
    gts, priors = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1).split([40, 3000])
    assigner = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.2)
    found = assigner.assign(priors, gts, NONE)
    indices, best = by_the_definition(assigner, priors, gts)
    assert torch.equal(found.gt_indices, indices)
    assert torch.equal(found.max_ious, best)
    assert len(indices.unique()) > 30


class LargestTensor(TorchDispatchMode):
    """Notes the most bytes that any one tensor made meanwhile has."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and all(tensor.stride()):
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


def test_no_table_larger_than_that_of_overlaps_is_made():
    """Half a million anchors and hundreds of objects would fill the memory else."""
    priors, gts = torch.rand(20_000, 4).sort(dim=1).values, torch.rand(50, 4).sort(dim=1).values
    with LargestTensor() as largest:
        MaxIoUAssigner(0.7, 0.3).assign(priors, gts, NONE)
    assert largest.bytes == 4 * 20_000 * 50
