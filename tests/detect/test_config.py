"""The recipe's schema: what is read, what is refused and how it is told; the values of the shipped cascade recipe."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detect.config import build_augment, build_model, load_config
from detect.registry import MODELS
from dpipe.errors import InputError
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Translate
from dpipe.policy import AutoAugment, Normalize, Pad
from dpipe.recipes import shipped_recipes

CASCADE = "cascade_augfpn_autoaug"
DEMO = "demo_streets"


def fails(*overrides: str, recipe: str | Path = CASCADE) -> list[str]:
    """The lines of the report."""
    with pytest.raises(InputError) as error:
        load_config(recipe, overrides)
    return [line.strip() for line in str(error.value).splitlines()]


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return load_config(CASCADE).model_dump()


class TestReport:
    def test_all_problems_come_together(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(
            f"_base_: {CASCADE}\n"
            "custom_imports: [no_such_module]\n"
            "model:\n"
            "  backbone: {depth: 50.0}\n"
            "  roi_head:\n"
            "    mask_head:\n"
            "      - type: FCNMaskHead\n"
            "        num_conv: 4\n"
            "        loss_mask: {type: CrossEntropyLos, use_sigmoid: 1}\n"
            "data:\n"
            "  batchsize: 2\n"
            "  test_transforms:\n"
            "    - {type: Rotate, level: 11}\n"
            "optimizer: {lr: '0.01'}\n"
            "schedule: {steps: [8, 9.5]}\n"
            "trian: {}\n"
        )
        lines = fails("train.epochs=true", "train.keep=0", recipe=recipe)
        assert lines[0] == f"{len(lines) - 1} problems in recipe {recipe}:"
        assert sorted(lines[1:]) == sorted(
            [
                f"{recipe}:2: custom_imports.0: cannot import 'no_such_module': No module named 'no_such_module' "
                f"among installed packages, in {tmp_path} or in {Path.cwd()}",
                f"{recipe}:4: model.backbone.depth: expected an integer, got 50.0",
                f"{recipe}:8: model.roi_head.mask_head.0.num_conv: unknown argument of FCNMaskHead; "
                "did you mean 'num_convs'?",
                f"{recipe}:9: model.roi_head.mask_head.0.loss_mask.type: unknown model part 'CrossEntropyLos'; "
                "did you mean 'CrossEntropyLoss'?",
                f"{recipe}:11: data.batchsize: unknown key; did you mean 'batch_size'?",
                f"{recipe}:12: data.test_transforms: has no Normalize, which the model needs",
                f"{recipe}:13: data.test_transforms.0: Rotate: level must lie in 0..10, got 11.0",
                f'{recipe}:14: optimizer.lr: expected a number, got "0.01"',
                f"{recipe}:15: schedule.steps.1: expected an integer, got 9.5",
                f"{recipe}:16: trian: unknown key; did you mean 'train'?",
                # The auxiliary head's mask head is the RoI head's, and so is its mistake.
                *(line for line in lines if "model.auxiliary_head.mask_head" in line),
                "command line: train.epochs: expected an integer, got true",
                "command line: train.keep: expected a value greater than or equal to 1, got 0",
            ]
        )

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("data.train.repeat=2.0", "data.train.repeat: expected an integer, got 2.0"),
            ("data.train.filter_empty=1", "data.train.filter_empty: expected true or false, got 1"),
            ("data.backend=gpu", "data.backend: expected 'auto', 'opencv' or 'dali', got \"gpu\""),
            ("data.classes=person", 'data.classes: expected a list, got "person"'),
            ("data.classes=[]", "data.classes: expected a list of one or more, got []"),
            ("evaluation.kinds=[]", "evaluation.kinds: expected a list of one or more, got []"),
            ("evaluation.tta.scales=[[1, 2, 3]]", "scales.0: expected a list of at most 2, got [1, 2, 3]"),
            (
                "model.rpn_head.target_stds=[0, 0, 0, 0]",
                f"expected [{', '.join(['number above 0'] * 4)}], got [0, 0, 0, 0]",
            ),
            (
                "model.rpn_head.scales=[]",
                "model.rpn_head.scales: expected a list of one or more, each a number above 0, got []",
            ),
            ("data.train_transforms={}", "data.train_transforms: expected a list, got {}"),
            ("data.train_transforms.1=Resize", 'data.train_transforms.1: expected a mapping, got "Resize"'),
            ("data.train_transforms=[{}]", "data.train_transforms.0: expected a part, a mapping with `type`, got {}"),
            ("optimizer.type=SDG", "optimizer.type: expected 'SGD' or 'AdamW', got \"SDG\""),
            ("optimizer.lr=0", "optimizer.lr: expected a value greater than 0, got 0"),
            ("optimizer.lr=.nan", "optimizer.lr: expected"),
            ("optimizer.momentum=1", "optimizer.momentum: expected a value less than 1, got 1"),
            ("optimizer={_delete_: true, type: SGD}", "optimizer: the key 'lr' is missing"),
            ("schedule.warmup_iter=5", "schedule.warmup_iter: unknown key; did you mean 'warmup_iters'?"),
            ("optimizer=3", "optimizer: expected a mapping, got 3"),
            ("optimizer.type=[SGD]", "optimizer.type: expected 'SGD' or 'AdamW', got [\"SGD\"]"),
            (
                "optimizer={_delete_: true, type: AdamW, lr: 1, momentum: 0.9}",
                "optimizer.momentum: a key of SGD, not of AdamW; `_delete_: true` in optimizer drops what it inherits",
            ),
            (
                "optimizer={_delete_: true, type: AdamW, lr: 1, betas: [0.9, 1]}",
                "optimizer.betas.1: expected a value less than 1, got 1",
            ),
            (
                "optimizer={_delete_: true, lr: 1, momentum: 0, nesterov: true}",
                "optimizer.nesterov: needs optimizer.momentum above 0, got true",
            ),
            (
                "optimizer={_delete_: true, lr: 1, auto_scale_lr: true}",
                "optimizer.auto_scale_lr: needs optimizer.base_batch_size to be set, got true",
            ),
            ("optimizer.groups=[3]", "optimizer.groups.0: expected a mapping, got 3"),
            ("optimizer.groups=[{lr_mult: 2}]", "optimizer.groups.0: the key 'pattern' is missing"),
            (
                "optimizer.groups=[{pattern: a, lr_mul: 2}]",
                "optimizer.groups.0.lr_mul: unknown key; did you mean 'lr_mult'",
            ),
            (
                "optimizer.groups=[{pattern: a, lr_mult: -1}]",
                "optimizer.groups.0.lr_mult: expected a value greater than",
            ),
            (
                "optimizer.groups=[{pattern: '('}]",
                "optimizer.groups.0.pattern: expected a regular expression (missing )",
            ),
            (
                "schedule.type=cosin",
                "schedule.type: expected 'multi_step' or 'step' or 'cosine' or 'none', got \"cosin\"",
            ),
            ("schedule.by=epochs", "schedule.by: expected 'epoch' or 'iteration', got \"epochs\""),
            (
                "schedule={_delete_: true, type: cosine, gamma: 0.1}",
                "schedule.gamma: a key of multi_step and step, not of cosine; `_delete_: true` in schedule drops",
            ),
            ("schedule={_delete_: true, type: step}", "schedule: the key 'step_size' is missing"),
            ("train.accumulate=0", "train.accumulate: expected a value greater than or equal to 1, got 0"),
            ("train=3", "train: expected a mapping, got 3"),
            ("train.precision=fp16", "train.precision: expected '32-true'"),
            ("model=null", "model: expected a mapping, got null"),
            ("model={_delete_: true}", "model: expected a part, a mapping with `type`, got {}"),
            ("model.type=ThreeStageDetector", "model.type: unknown model part"),
            ("model.backbone=null", "model.backbone: expected a part (Module): a mapping with `type`, got null"),
            ("model.rpn_head.ratios=0.5", "model.rpn_head.ratios: expected a list"),
            (
                "model.rpn_head.sampler={_delete_: true, type: MaxIoUAssigner, pos_iou_thr: 1, neg_iou_thr: 1}",
                "model.rpn_head.sampler: expected a part (Sampler) or null, got a MaxIoUAssigner",
            ),
            ("model.roi_head.bbox_head.2.loss_bbox.betta=1", "did you mean 'beta'?"),
            (
                "train.seed=9223372036854775808",
                "train.seed: expected a value less than or equal to 9223372036854775807",
            ),
            ("train.epochs=99999999999999999999", "train.epochs: expected a value less than or equal to 1000000"),
            ("data.train.repeat=2147483648", "data.train.repeat: expected a value less than or equal to 2147483647"),
            ("data.train_transforms=[]", "data.train_transforms: has no Normalize, which the model needs"),
            ("data.test_transforms=[{type: Pad}]", "data.test_transforms: has no Normalize, which the model needs"),
            ("custom_imports=[this]", "custom_imports.0: 'this' is in Python's standard library"),
            ("model.neck.type=torch.Tensor", "model.neck.type: torch.Tensor does not tell its arguments"),
            ("custom_imports=my_parts", 'custom_imports: expected a list, got "my_parts"'),
        ],
    )
    def test_one_problem(self, override: str, message: str) -> None:
        lines = fails(override)
        assert any(message in line for line in lines)
        assert all(line.startswith("command line: ") for line in lines if not line.startswith(f"{len(lines) - 1} prob"))

    def test_transforms_in_a_wrong_order(self) -> None:
        normalize = "{type: Normalize, mean: [1, 1, 1], std: [1, 1, 1]}"
        config = load_config(CASCADE, [f"data.test_transforms=[{{type: Pad}}, {{type: RandomFlip}}, {normalize}]"])
        with pytest.raises(InputError, match=r"^command line: data\.test_transforms: .*Pad"):
            build_augment(config, train=False)

    def test_a_part_that_refuses_its_values(self) -> None:
        config = load_config(DEMO, ["model.backbone.depth=20"])
        with pytest.raises(InputError, match=r"demo_streets\.yaml:\d+ and command line: model\.backbone: .*20"):
            build_model(config, 3)

    @pytest.mark.parametrize("override", ["backbone.base_channels=-4", "neck.out_channels=0"])
    def test_a_part_that_fails_to_be_built(self, override: str) -> None:
        with pytest.raises(InputError, match=r"^command line: |: model\.") as error:
            build_model(load_config(DEMO, [f"model.{override}"]), 3)
        assert "\n" not in str(error.value)


class TestLoading:
    @pytest.mark.parametrize("name", sorted(shipped_recipes()))
    def test_what_is_printed_loads_to_the_same(self, name: str, tmp_path: Path) -> None:
        config = load_config(name, ["optimizer.lr=1e-5", "train.load_from='010'"])
        path = tmp_path / "resolved.yaml"
        path.write_text(config.to_yaml())
        again = load_config(path)
        assert again.model_dump() == config.model_dump()
        assert again.to_yaml() == config.to_yaml()
        assert "_base_" not in config.to_yaml()
        assert "${" not in config.to_yaml()

    def test_what_is_printed_of_other_optimizers_loads_to_the_same(self, tmp_path: Path) -> None:
        adamw = "optimizer={_delete_: true, type: AdamW, lr: 1, betas: [0.5, 0.6], groups: [{pattern: '\\.bias$'}]}"
        for schedule in (
            "type: cosine, min_ratio: 0.5",
            "type: step, step_size: 3",
            "type: none, warmup: constant",
            "",
        ):
            config = load_config(DEMO, [adamw, f"schedule={{_delete_: true, {schedule}}}"])
            path = tmp_path / "resolved.yaml"
            path.write_text(config.to_yaml())
            assert load_config(path).model_dump() == config.model_dump()
        assert config.schedule.type == "multi_step"  # where a recipe says none

    def test_the_root_moves_all_paths(self) -> None:
        data = load_config(CASCADE, ["data.root=/somewhere"]).data
        assert data.train.annotations == "/somewhere/annotations/instancesonly_filtered_gtFine_train.json"
        assert data.train.images == "/somewhere/leftImg8bit/train"
        assert data.val.annotations == "/somewhere/annotations/instancesonly_filtered_gtFine_val.json"
        assert data.val.images == "/somewhere/leftImg8bit/val"

    def test_a_part_of_the_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "users_parts.py").write_text(
            "from torch import nn\n"
            "from detect.registry import MODELS\n"
            "@MODELS.register\n"
            "class MyLoss(nn.Module):\n"
            "    def __init__(self, factor: float = 1.0) -> None:\n"
            "        super().__init__()\n"
            "        self.factor = factor\n"
            "    def forward(self, pred, target, *, avg_factor=None):\n"
            "        return self.factor * pred.sum()\n"
        )
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        # What it registers goes with this test.
        monkeypatch.setattr(MODELS, "_classes", {name: MODELS.get(name) for name in MODELS.names()})
        loss = "model.rpn_head.loss_cls={_delete_: true, type: users_parts.MyLoss, factor: 2}"
        assert build_model(load_config(DEMO, [loss]), 3).rpn_head.loss_cls.factor == 2  # type: ignore[union-attr]
        registered = loss.replace("users_parts.MyLoss", "MyLoss")
        build_model(load_config(DEMO, ["custom_imports=[users_parts]", registered]), 3)

    def test_own_transforms_are_not_made_while_a_recipe_is_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my_operations.py").write_text(
            "from dpipe import Operation\n"
            "made = []\n"
            "class Mine(Operation):\n"
            "    def __init__(self, level: int) -> None:\n"
            "        made.append(level)\n"
            "    def apply(self, draft): pass\n"
        )
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        normalize = "{type: Normalize, mean: [1, 1, 1], std: [1, 1, 1]}"
        for own, count in (
            ("{type: my_operations.Mine, level: 3}", 1),
            ("{type: AutoAugment, policies: [[{type: my_operations.Mine, level: 3}]]}", 2),
        ):
            config = load_config(DEMO, [f"data.train_transforms=[{own}, {normalize}]"])
            made = sys.modules["my_operations"].made
            assert len(made) == count - 1
            build_augment(config, train=True)
            assert len(made) == count

    def test_yes_or_no_to_weights_becomes_no(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_backbones.py").write_text(
            "from torch import nn\n"
            "class Mine(nn.Module):\n"
            "    channels, strides = (8, 16, 32, 64), (4, 8, 16, 32)\n"
            "    def __init__(self, pretrained: bool = True) -> None:\n"
            "        super().__init__()\n"
            "        self.pretrained = pretrained\n"
        )
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        backbone = "model.backbone={_delete_: true, type: my_backbones.Mine, pretrained: true}"
        config = load_config(DEMO, [backbone])
        assert build_model(config, 3).backbone.pretrained is True  # type: ignore[union-attr]
        assert build_model(config, 3, pretrained=False).backbone.pretrained is False  # type: ignore[union-attr]

    def test_weights_that_a_checkpoint_replaces_are_not_asked_for(self, tmp_path: Path) -> None:
        config = load_config(DEMO, [f"model.backbone.pretrained={tmp_path / 'none.pth'}"])
        build_model(config, 3, pretrained=False)
        with pytest.raises(InputError, match=r"none\.pth"):
            build_model(config, 3)

    def test_reading_a_recipe_needs_no_torch(self) -> None:
        code = "import sys, detect.config; print([m for m in ('torch', 'cv2', 'nvidia.dali') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestCascadeRecipe:
    """The values of Cascade Mask R-CNN with AugFPN and AutoAugment on Cityscapes."""

    def test_backbone_and_neck(self, recipe: dict[str, Any]) -> None:
        backbone, neck = recipe["model"]["backbone"], recipe["model"]["neck"]
        assert (backbone["type"], backbone["depth"], backbone["num_stages"]) == ("ResNet", 50, 4)
        assert (backbone["frozen_stages"], backbone["norm_eval"], backbone["style"]) == (1, True, "pytorch")
        assert (neck["type"], neck["out_channels"], neck["num_outs"]) == ("AugFPN", 256, 5)
        assert neck["residual_augmentation"] is True
        assert neck["pool_ratios"] == [0.1, 0.2, 0.3]

    def test_rpn(self, recipe: dict[str, Any]) -> None:
        rpn = recipe["model"]["rpn_head"]
        assert (rpn["scales"], rpn["ratios"]) == ([8], [0.5, 1.0, 2.0])
        assert (rpn["sampler"]["num"], rpn["sampler"]["pos_fraction"]) == (256, 0.5)
        assert (rpn["assigner"]["pos_iou_thr"], rpn["assigner"]["neg_iou_thr"]) == (0.7, 0.3)
        assert rpn["loss_bbox"]["type"] == "SmoothL1Loss"
        assert math.isclose(rpn["loss_bbox"]["beta"], 1 / 9)
        assert (rpn["train_nms_pre"], rpn["train_max_per_img"], rpn["nms_iou"]) == (2000, 2000, 0.7)
        assert (rpn["test_nms_pre"], rpn["test_max_per_img"]) == (1000, 1000)

    def test_stages(self, recipe: dict[str, Any]) -> None:
        roi = recipe["model"]["roi_head"]
        assert roi["stage_loss_weights"] == [1, 0.5, 0.25]
        assert [(a["pos_iou_thr"], a["neg_iou_thr"]) for a in roi["assigner"]] == [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)]
        assert [head["target_stds"] for head in roi["bbox_head"]] == [
            [0.1, 0.1, 0.2, 0.2],
            [0.05, 0.05, 0.1, 0.1],
            [0.033, 0.033, 0.067, 0.067],
        ]
        sampler = roi["sampler"]
        assert (sampler["num"], sampler["pos_fraction"], sampler["add_gt_as_proposals"]) == (512, 0.25, True)
        for head in roi["bbox_head"]:
            assert (head["type"], head["fc_out_channels"]) == ("Shared2FCBBoxHead", 1024)
            assert head["reg_class_agnostic"] is True
            assert (head["loss_bbox"]["type"], head["loss_bbox"]["beta"]) == ("SmoothL1Loss", 1.0)
        assert len(roi["mask_head"]) == 3
        for head in roi["mask_head"]:
            assert (head["type"], head["num_convs"], head["conv_out_channels"]) == ("FCNMaskHead", 4, 256)
        assert roi["mask_roi_extractor"] == {"type": "SoftRoIExtractor", "output_size": 14, "sampling_ratio": 2}
        assert roi["bbox_roi_extractor"] == {"type": "SoftRoIExtractor", "output_size": 7, "sampling_ratio": 2}
        assert (roi["score_thr"], roi["nms_iou"], roi["max_per_img"]) == (0.05, 0.5, 100)
        assert recipe["model"]["auxiliary_head"]["loss_weight"] == 0.25

    def test_data(self, recipe: dict[str, Any]) -> None:
        data = recipe["data"]
        assert data["classes"] == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
        assert (data["train"]["repeat"], data["batch_size"], data["root"]) == (8, 1, "data/cityscapes")

    def test_transforms(self) -> None:
        config, fill = load_config(CASCADE), (124, 116, 104)
        augment = build_augment(config, train=True)
        normalize = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        assert augment.operations == (
            AutoAugment(
                [
                    [Rotate(level=5, prob=0.5, scale=1, img_fill_val=fill)],
                    [
                        Rotate(level=7, prob=0.5, scale=1, img_fill_val=fill),
                        Translate(level=5, prob=0.5, img_fill_val=fill),
                    ],
                ]
            ),
            Resize(((2048, 800), (2048, 1024)), keep_ratio=True),
            RandomFlip(0.5),
        )
        assert (augment.normalize, augment.size_divisor) == (normalize, Pad(32).size_divisor)
        test = build_augment(config, train=False)
        assert test.operations == (Resize((2048, 1024), keep_ratio=True),)
        assert (test.normalize, test.size_divisor) == (normalize, 32)

    def test_schedule(self, recipe: dict[str, Any]) -> None:
        optimizer, schedule = recipe["optimizer"], recipe["schedule"]
        assert (optimizer["type"], optimizer["lr"]) == ("SGD", 0.01)
        assert (optimizer["momentum"], optimizer["nesterov"], optimizer["weight_decay"]) == (0.9, False, 1e-4)
        assert (schedule["warmup"], schedule["warmup_iters"], schedule["warmup_ratio"]) == ("linear", 500, 0.001)
        assert (schedule["type"], schedule["by"], schedule["steps"], schedule["gamma"]) == (
            "multi_step",
            "epoch",
            [8],
            0.1,
        )
        train = recipe["train"]
        assert (train["epochs"], train["clip_norm"], train["load_from"]) == (10, None, None)

    def test_model(self) -> None:
        """What the recipe leaves to the builder: channels, strides, classes."""
        overrides = ["model.backbone.pretrained=null", "model.backbone.base_channels=8"]
        model: Any = build_model(load_config(CASCADE, overrides), 8)
        assert model.neck.channels == (256,) * 5
        assert model.neck.strides == (4, 8, 16, 32, 64)
        assert model.rpn_head.rpn_cls.out_channels == 3
        assert [head.fc_cls.out_features for head in model.roi_head.bbox_head] == [9, 9, 9]
        assert [head.fc_reg.out_features for head in model.roi_head.bbox_head] == [4, 4, 4]
