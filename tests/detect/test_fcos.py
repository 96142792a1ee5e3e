"""FCOS beyond its reference case: which point answers for which box, options, proposals, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detect.models.dense_heads.fcos import FCOSHead, FCOSOutputs
from detect.models.dense_heads.fcos_targets import assign_points, centerness, level_points
from detect.models.losses import GIoULoss
from detect.models.ranks import mean_over_ranks
from dpipe.errors import InputError

ANY_DISTANCE = (-1.0, 1e8)


def assign(points, boxes, ranges=ANY_DISTANCE, radii=None, labels=None):
    """Labels and distances of points for boxes of the classes 0, 1, ...; class 9 is the background."""
    points = torch.tensor(points, dtype=torch.float32)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    ranges = torch.tensor(ranges).expand(len(points), 2)
    radii = None if radii is None else torch.full((len(points),), radii)
    found = assign_points(points, ranges, radii, boxes, labels, 9)
    return found.labels.tolist(), found.distances


def test_points_are_the_centres_of_cells():
    coarse = level_points([(2, 3)], [8], torch.device("cpu"))[0]
    assert coarse.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    fine, coarse = level_points([(1, 1), (1, 2)], [4, 8], torch.device("cpu"))
    assert (fine.tolist(), coarse.tolist()) == ([[2, 2]], [[4, 4], [12, 4]])


def test_a_point_answers_for_the_box_that_it_is_strictly_inside_of():
    points = [[10, 15], [10.5, 15], [20, 15], [15, 10], [15, 20], [15, 12], [0, 0]]
    labels, distances = assign(points, [[10, 10, 20, 20]])
    assert labels == [9, 0, 9, 9, 9, 0, 9]
    assert distances[1].tolist() == [0.5, 5, 9.5, 5]
    assert distances[5].tolist() == [5, 2, 5, 8]


@pytest.mark.parametrize(
    ("box", "label"), [((0, 0, 74, 20), 0), ((0, 0, 75, 20), 9), ((0, 0, 42, 20), 0), ((5, 0, 41, 20), 9)]
)
def test_ranges_hold_for_the_farthest_edge_and_include_their_ends(box, label):
    """The point is 32 to 64 pixels from the farthest edge, both included."""
    assert assign([[10, 10]], [box], ranges=(32.0, 64.0))[0] == [label]


def test_the_smallest_of_several_boxes_wins():
    boxes = [[0, 0, 100, 100], [30, 30, 70, 70], [0, 40, 100, 60]]
    assert assign([[50, 50], [50, 35], [10, 50], [10, 10]], boxes, labels=[4, 5, 6])[0] == [5, 5, 6, 4]


def test_centre_sampling_keeps_points_near_the_centre_and_inside():
    wide = [[0, 0, 100, 10]]
    points = [[50, 5], [57.5, 5], [58, 5], [58.5, 5], [42.5, 5], [50, 9.5], [50, 10.5]]
    assert assign(points, wide, radii=8.0)[0] == [0, 0, 9, 9, 0, 0, 9]
    assert assign(points, wide)[0] == [0, 0, 0, 0, 0, 0, 9]


def test_tables_of_pairs_are_worked_on_in_blocks(monkeypatch):
    boxes = [[0, 0, 100, 100], [30, 30, 70, 70], [0, 40, 100, 60]]
    points = [[x, y] for x in range(5, 120, 10) for y in range(5, 120, 10)]
    labels, distances = assign(points, boxes, radii=30.0)
    monkeypatch.setattr("detect.models.boxes.BLOCK", 20)
    again, same_distances = assign(points, boxes, radii=30.0)
    assert set(labels) == {0, 1, 2, 9}
    assert again == labels
    assert torch.equal(same_distances, distances)


def test_an_image_without_objects_is_all_background():
    labels, distances = assign([[1, 2], [3, 4]], [])
    assert labels == [9, 9]
    assert distances.shape == (2, 4)


def test_centerness():
    distances = torch.tensor([[5.0, 5, 5, 5], [1, 2, 4, 2], [1, 1, 4, 9]])
    torch.testing.assert_close(centerness(distances), torch.tensor([1.0, 0.5, 1 / 6]))
    assert centerness(torch.zeros(0, 4)).shape == (0,)


STRIDES = (8, 16)


def head(**options):
    torch.manual_seed(0)
    return FCOSHead(
        8, STRIDES, 3, feat_channels=8, stacked_convs=1, num_groups=4, regress_ranges=((-1, 32), (32, 1e8)), **options
    )


def features(images=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, 8, 64 // s, 96 // s, generator=generator) for s in STRIDES]


class Operators(TorchDispatchMode):
    """Notes the names of operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() != "aten::lift_fresh" or args[0].dim():  # torchvision's own NMS makes numbers into tensors
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


OBJECTS = [(10, 10, 50, 50), (40, 20, 90, 60)]


def test_norm_on_bbox_means_strides(make_target):
    pixels, strides = head(), head(norm_on_bbox=True)
    sizes = [tuple(level.shape[-2:]) for level in features()]
    _, labels, plain = pixels.point_targets(sizes, [make_target(OBJECTS)])
    _, same_labels, scaled = strides.point_targets(sizes, [make_target(OBJECTS)])
    assert torch.equal(labels, same_labels)
    assert (labels < 3).any()
    fine = sizes[0][0] * sizes[0][1]
    torch.testing.assert_close(scaled[:, :fine] * 8, plain[:, :fine])
    torch.testing.assert_close(scaled[:, fine:] * 16, plain[:, fine:])


def test_norm_on_bbox_predicts_strides_through_a_relu():
    plain, scaled = head(), head(norm_on_bbox=True)
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for model in (plain, scaled):
            model.scales[1].scale.fill_(3.0)
        logs, units = plain(features()).distances, scaled(features()).distances
    for log, unit in zip(logs, units, strict=True):
        torch.testing.assert_close(unit, log.log().clamp(min=0), atol=1e-5, rtol=1e-4)
    assert logs[1].log().abs().mean() > 1.5 * logs[0].log().abs().mean()


def test_centerness_comes_from_either_stack():
    for on_reg in (False, True):
        model = head(centerness_on_reg=on_reg)
        used, unused = (model.reg_convs, model.cls_convs) if on_reg else (model.cls_convs, model.reg_convs)
        sum(level.sum() for level in model(features()).centerness).backward()
        assert used[0].conv.weight.grad.abs().sum() > 0
        assert unused[0].conv.weight.grad is None


def perfect(model, boxes, labels, size=(64, 96)):
    """Outputs that say of every point what its target is, and that it is no object where it has none."""
    sizes = [(size[0] // s, size[1] // s) for s in STRIDES]
    points = level_points(sizes, STRIDES, torch.device("cpu"))
    outputs = FCOSOutputs([], [], [])
    boxes, labels = torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)
    for level, stride, (low, high), (height, width) in zip(points, STRIDES, model.regress_ranges, sizes, strict=True):
        found = assign_points(level, torch.stack([low, high]).expand(len(level), 2), None, boxes, labels, 3)
        logits = torch.full((len(level), 4), -20.0).scatter(1, found.labels[:, None], 3.0)[:, :3]
        distances = found.distances / stride if model.norm_on_bbox else found.distances
        central = torch.where(found.labels < 3, centerness(found.distances.clamp(min=1e-6)), 0.0).logit(1e-6)
        for outs, values in (
            (outputs.logits, logits),
            (outputs.distances, distances),
            (outputs.centerness, central[:, None]),
        ):
            outs.append(values.mT.reshape(1, -1, height, width))
    return outputs


@pytest.mark.parametrize("norm_on_bbox", [False, True])
def test_perfect_outputs_have_no_box_loss_and_give_the_objects_back(norm_on_bbox, make_target, monkeypatch):
    model = head(norm_on_bbox=norm_on_bbox)
    target = make_target(OBJECTS)
    outputs = perfect(model, OBJECTS, [0, 1])
    monkeypatch.setattr(model, "forward", lambda levels: outputs)
    losses = model.loss([], [target])
    assert losses["loss_bbox"] < 1e-5
    assert losses["loss_cls"] < 0.01
    (found,) = model.eval().predict([], [target])
    assert found.labels.tolist()[:2] in ([0, 1], [1, 0])
    order = found.labels[:2].argsort()
    torch.testing.assert_close(found.boxes[:2][order], 2 * target.boxes, atol=1e-3, rtol=0)  # the original is larger
    ((boxes, _),) = model.propose([], [target])
    for box in target.boxes:
        assert torch.isclose(boxes[:2], box, atol=1e-3).all(dim=1).any()


def test_scores_are_thresholded_before_centerness_and_multiplied_by_it(make_target, monkeypatch):
    """Of 96 cells one has a class just above the threshold, one exactly there; the centerness is 1/2."""
    model = head(score_thr=0.5, nms_iou=1.0).eval()
    logits = torch.full((1, 3, 8, 12), -20.0)
    logits[0, 2, 3, 4], logits[0, 1, 5, 6] = 0.01, 0.0
    outputs = FCOSOutputs(
        [logits, torch.full((1, 3, 4, 6), -20.0)],
        [torch.full((1, 4, 8, 12), 4.0), torch.full((1, 4, 4, 6), 4.0)],
        [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)],
    )
    monkeypatch.setattr(model, "forward", lambda levels: outputs)
    (found,) = model.predict([], [make_target([])])
    assert found.labels.tolist() == [2]
    torch.testing.assert_close(found.scores, torch.tensor([0.01]).sigmoid() / 2)
    torch.testing.assert_close(found.boxes, 2 * torch.tensor([[32.0, 24, 40, 32]]))
    model.min_size = 8.0
    assert len(model.predict([], [make_target([])])[0]) == 0
    model.min_size = 7.9
    assert len(model.predict([], [make_target([])])[0]) == 1


def test_detections_are_the_best_of_each_level_by_their_class_alone(make_target, monkeypatch):
    """Three cells far apart; the one of the lowest class probability is the most central."""
    model = head(score_thr=0.5, nms_pre=2).eval()
    logits, central = torch.full((1, 3, 8, 12), -20.0), torch.zeros(1, 1, 8, 12)
    logits[0, 0, 1, 1], logits[0, 1, 3, 5], logits[0, 2, 6, 10] = 3.0, 2.0, 1.0
    central[0, 0, 6, 10] = 20.0
    sizes = ((8, 12), (4, 6))
    outputs = FCOSOutputs(
        [logits, torch.full((1, 3, 4, 6), -20.0)],
        [torch.full((1, 4, *size), 3.0) for size in sizes],
        [central, torch.zeros(1, 1, 4, 6)],
    )
    monkeypatch.setattr(model, "forward", lambda levels: outputs)
    (found,) = model.predict([], [make_target([])])
    assert found.labels.tolist() == [0, 1]


def test_detections_suppress_within_classes_and_proposals_across_levels(make_target, monkeypatch):
    """Both levels say the same box; the fine level says it for two classes."""
    model = head(score_thr=0.05).eval()
    fine, coarse = torch.full((1, 3, 8, 12), -20.0), torch.full((1, 3, 4, 6), -20.0)
    fine[0, :2, 3, 4], coarse[0, 0, 1, 2] = 2.0, 3.0
    point, other = torch.tensor([36.0, 28.0]), torch.tensor([40.0, 24.0])
    box = torch.tensor([20.0, 10.0, 60.0, 50.0])
    outputs = FCOSOutputs(
        [fine, coarse],
        [
            torch.cat([at - box[:2], box[2:] - at]).reshape(1, 4, 1, 1).expand(1, 4, *size)
            for at, size in ((point, (8, 12)), (other, (4, 6)))
        ],
        [torch.full((1, 1, 8, 12), 20.0), torch.full((1, 1, 4, 6), 20.0)],
    )
    monkeypatch.setattr(model, "forward", lambda levels: outputs)
    (found,) = model.predict([], [make_target([])])
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.boxes, (2 * box).expand(2, 4))
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())

    proposing = FCOSHead(8, STRIDES, 1, feat_channels=8, regress_ranges=((-1, 32), (32, 1e8)), num_groups=4).eval()
    one_class = FCOSOutputs([fine[:, :1], coarse[:, :1]], outputs.distances, outputs.centerness)
    monkeypatch.setattr(proposing, "forward", lambda levels: one_class)
    ((boxes, _),) = proposing.propose([], [make_target([])])
    torch.testing.assert_close(boxes[0], box)
    # All others, far below any threshold, are proposed as well, but none that lies on the best.
    assert len(boxes) > 10
    assert not torch.isclose(boxes[1:], box, atol=0.1).all(dim=1).any()
    proposing.test_nms_pre = 3
    assert len(proposing.propose([], [make_target([])])[0][0]) <= 6
    proposing.test_max_per_img = 2
    assert len(proposing.propose([], [make_target([])])[0][0]) == 2


def test_proposals_in_training_have_limits_of_their_own(make_target):
    model = FCOSHead(
        8, STRIDES, 1, feat_channels=8, regress_ranges=((-1, 32), (32, 1e8)), num_groups=4, train_max_per_img=3
    )
    target = make_target([])
    assert len(model.propose(features(1), [target])[0][0]) == 3
    losses, proposals = model.loss_and_propose(features(1), [target])
    assert not proposals[0][0].requires_grad
    assert torch.equal(proposals[0][0], model.propose(features(1), [target])[0][0])
    assert torch.equal(losses["loss_cls"], model.loss(features(1), [target])["loss_cls"])
    assert len(model.eval().propose(features(1), [target])[0][0]) > 3


def test_boxes_are_clipped_to_the_image_without_padding(make_target):
    model = head().eval()
    for boxes, scores in model.propose(features(), [make_target([], size=(40, 50)), make_target([])]):
        assert boxes.min() >= 0
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    boxes = model.propose(features(), [make_target([], size=(40, 50))] * 2)[0][0]
    assert boxes[:, 2].max() <= 50
    assert boxes[:, 3].max() <= 40


@pytest.mark.parametrize("norm_on_bbox", [False, True])
def test_proposals_are_in_pixels_in_training_too(norm_on_bbox, make_target):
    model, targets = head(norm_on_bbox=norm_on_bbox, train_max_per_img=9, test_max_per_img=9), [make_target([])] * 2
    for trained, evaluated in zip(
        model.train().propose(features(), targets), model.eval().propose(features(), targets), strict=True
    ):
        assert len(trained[0]) == 9
        assert torch.equal(trained[0], evaluated[0])


@pytest.mark.parametrize("options", [{}, {"norm_on_bbox": True, "centerness_on_reg": True, "center_sampling": True}])
@pytest.mark.parametrize("objects", [[OBJECTS, []], [[], []]], ids=["mixed", "empty"])
def test_losses_are_finite_and_reach_every_weight(options, objects, make_target):
    model = head(loss_bbox=GIoULoss(), **options)
    losses = model.loss(features(), [make_target(boxes) for boxes in objects])
    assert set(losses) == {"loss_cls", "loss_bbox", "loss_centerness"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (losses["loss_bbox"].item() == 0) == (losses["loss_centerness"].item() == 0) == (not any(objects))


@pytest.mark.parametrize(("objects", "positives"), [([], 1), ([(2, 2, 6, 6)], 1), ([(2, 2, 14, 6)], 2)])
def test_losses_are_divided_by_the_positives_or_by_one(objects, positives, make_target):
    model = head()
    logits = torch.cat([level.flatten(2) for level in model(features(1)).logits], dim=2).mT
    _, labels, _ = model.point_targets([(8, 12), (4, 6)], [make_target(objects)])
    assert (labels < 3).sum() == (positives if objects else 0)
    is_class = labels[..., None] == torch.arange(3)
    right = torch.where(is_class, logits.sigmoid(), 1 - logits.sigmoid())
    focal = torch.where(is_class, 0.25, 0.75) * (1 - right) ** 2 * -right.log()
    loss = model.loss(features(1), [make_target(objects)])["loss_cls"]
    torch.testing.assert_close(loss, focal.sum() / positives)


def test_ignore_regions_change_nothing(make_target):
    model, target = head(), make_target(OBJECTS[:1])
    before = model.loss(features(1), [target])
    target.ignore_boxes = torch.tensor([[40.0, 20, 90, 60]])
    assert model.loss(features(1), [target]) == before


def test_bfloat16_leaves_predictions_in_float32(make_target):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head()(features())
        losses = head().loss(features(), [make_target(OBJECTS), make_target([])])
    assert {level.dtype for level in (*outputs.logits, *outputs.distances, *outputs.centerness)} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_proposing_copies_no_list_to_the_device(make_target):
    """Each such copy waits until a GPU has done all before it."""
    model = head(center_sampling=True, norm_on_bbox=True)
    targets = [make_target(OBJECTS), make_target([], size=(50, 60))]
    levels = features()
    with Operators() as operators:
        model.loss_and_propose(levels, targets)
    assert "aten::convolution" in operators.names
    assert "aten::lift_fresh" not in operators.names


def test_classes_begin_rare():
    model = head()
    torch.testing.assert_close(model.conv_cls.bias.sigmoid(), torch.full((3,), 0.01))
    assert 0.008 < model.cls_convs[0].conv.weight.std() < 0.012
    assert model.cls_convs[0].conv.bias is None
    assert head(conv_bias=True).cls_convs[0].conv.bias.eq(0).all()
    assert head(norm=None).cls_convs[0].conv.bias.eq(0).all()
    assert isinstance(head(norm="bn").cls_convs[0].bn, torch.nn.BatchNorm2d)


def test_what_the_head_refuses():
    with pytest.raises(InputError, match="num_groups 32 does not divide feat_channels 8"):
        FCOSHead(8, (8, 16, 32, 64, 128), 3, feat_channels=8)
    with pytest.raises(InputError, match="regress_ranges are 5, but there are 2 levels"):
        FCOSHead(8, STRIDES, 3)
    with pytest.raises(InputError, match=r"regress_ranges must go from less to more, got \[\[64, 32\], \[32, 99\]\]"):
        FCOSHead(8, STRIDES, 3, regress_ranges=((64, 32), (32, 99)))


def test_one_process_is_its_own_mean():
    assert mean_over_ranks(torch.tensor(3.0)) == 3


def test_the_mean_over_processes(monkeypatch):
    """The other process says 6."""
    dist = "torch.distributed"
    monkeypatch.setattr(f"{dist}.is_initialized", lambda: True)
    monkeypatch.setattr(f"{dist}.get_world_size", lambda: 2)
    monkeypatch.setattr(f"{dist}.all_reduce", lambda value: value.add_(6))
    own = torch.tensor(2.0)
    assert (mean_over_ranks(own).item(), own.item()) == (4.0, 2.0)


def test_losses_are_divided_by_the_mean_over_processes(monkeypatch, make_target):
    model, targets = head(), [make_target(OBJECTS)]
    alone = model.loss(features(1), targets)
    monkeypatch.setattr("detect.models.dense_heads.fcos.mean_over_ranks", lambda value: 2 * value)
    for name, value in model.loss(features(1), targets).items():
        torch.testing.assert_close(2 * value, alone[name])
