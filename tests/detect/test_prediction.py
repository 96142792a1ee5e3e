"""Prediction on files and arrays: what is written, and what a program gets."""

from __future__ import annotations

import base64
import json
import shutil
from contextlib import nullcontext

import cv2
import hotcoco
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

import detect
from detect.cli import app
from detect.config import build_model
from detect.models.detections import Detections
from detect.predicting.files import unique_names
from detect.predicting.inputs import Source
from detect.predicting.labelme import labelme_file
from detect.predicting.predictions import Predictions
from detect.predicting.videos import frames_of, video_info, whole_video
from detect.running.state import ModelInfo, save_checkpoint
from dpipe.errors import BadSampleError, InputError
from dpipe.polygons import Polygons


@pytest.fixture
def checkpoint(shapes, tmp_path):
    """A checkpoint of a model that has learned nothing, which finds objects everywhere, 12 in each image."""
    shapes.edit("recipe.yaml", lambda recipe: recipe["model"]["roi_head"].update(max_per_img=12))
    config = shapes.config()
    torch.manual_seed(0)
    info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    (tmp_path / "work").mkdir()
    return save_checkpoint(tmp_path / "work", build_model(config, 2), {}, info)


@pytest.fixture
def predictor(shapes, checkpoint):
    return detect.load(shapes.config(), checkpoint)


@pytest.fixture
def clip(shapes, tmp_path):
    """A video of the six images."""
    path = tmp_path / "clip.avi"
    with whole_video(path, 8.0) as write:
        for image in shapes.images:
            write(rgb(image))
    return path


def rgb(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def same(one, other):
    return (
        np.array_equal(one.boxes, other.boxes)
        and np.array_equal(one.scores, other.scores)
        and np.array_equal(one.labels, other.labels)
        and one.masks == other.masks
    )


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


class TestInPrograms:
    """``detect.load(...).predict(...)``."""

    def test_paths_arrays_and_lists_of_them_give_the_same(self, shapes, predictor):
        first, second = shapes.images[:2]
        from_path, from_array = predictor.predict(first), predictor.predict(rgb(first))
        assert isinstance(from_path, Predictions)
        assert len(from_path) > 0
        assert same(from_path, from_array)
        several = predictor.predict([str(first), rgb(second), second], batch_size=1)
        assert same(several[0], from_path)
        assert same(several[1], several[2])
        assert not same(several[0], several[1])
        assert predictor.predict([]) == []

    def test_low_scores_and_the_pixels_of_files_are_left_out(self, shapes, predictor):
        found = predictor.predict(shapes.images[0])
        thr = float(np.median(found.scores))
        assert same(predictor.predict(shapes.images[0], score_thr=thr), found.above(thr))
        assert 0 < len(found.above(thr)) < len(found)
        assert found.source.pixels is None

    def test_what_they_are_does_not_depend_on_the_batch(self, shapes, predictor):
        images = [rgb(path) for path in shapes.images]
        images.insert(1, images[0][:, :50])  # of another size, in the midst
        alone = predictor.predict(images, batch_size=1)
        for batch_size in (3, 100):
            for one, other in zip(alone, predictor.predict(images, batch_size=batch_size), strict=True):
                np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
                np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
            predictor.predict(images, batch_size=0)

    def test_images_of_one_size_share_a_batch(self, shapes, predictor, monkeypatch):
        images = [rgb(path) for path in shapes.images[:4]]
        counts = []
        predictor._model.register_forward_pre_hook(lambda model, inputs: counts.append(len(inputs[0])))
        predictor.predict([*images, images[0][:, :50], *images[:2]], batch_size=3)
        assert counts == [3, 1, 1, 2]

    def test_a_bad_image_is_an_error(self, shapes, predictor, tmp_path):
        with pytest.raises(BadSampleError, match=r"gone\.png: no such image file"):
            predictor.predict([shapes.images[0], tmp_path / "gone.png"])
        with pytest.raises(InputError, match="uint8 RGB"):
            predictor.predict([shapes.images[0], rgb(shapes.images[0]).astype(float)])

    @pytest.mark.parametrize("images", [None, 5, [None], [b"1.jpg"]])
    def test_what_is_no_image_is_an_error(self, predictor, images):
        with pytest.raises(InputError, match=r"(expected|is) a path"):
            predictor.predict(images)

    @pytest.mark.parametrize("score_thr", [5, -0.1, float("nan"), "x", None])
    def test_a_score_is_from_0_to_1(self, shapes, predictor, checkpoint, tmp_path, score_thr):
        with pytest.raises(InputError, match=r"^score_thr is .*; expected a number from 0 to 1$"):
            predictor.predict(shapes.images[0], score_thr=score_thr)
        with pytest.raises(InputError, match=r"^score_thr is "):
            predictor.predict([], score_thr=score_thr)
        with pytest.raises(InputError, match=r"^score_thr is "):
            detect.predict(shapes.config(), checkpoint, shapes.images[:1], tmp_path / "out", score_thr=score_thr)
        assert not (tmp_path / "out").exists()

    def test_a_recipe_may_be_given_by_its_path(self, shapes, checkpoint, predictor):
        loaded = detect.load(shapes.recipe, checkpoint)
        assert same(loaded.predict(shapes.images[0]), predictor.predict(shapes.images[0]))
        assert loaded.class_names == ("box", "disc")

    def test_one_view_equals_none(self, shapes, checkpoint, predictor):
        config = shapes.config("evaluation.tta.scales=[[96, 64]]", "evaluation.tta.flip=false")
        augmented = detect.load(config, checkpoint, tta=True)
        for path in shapes.images[:2]:
            assert same(augmented.predict(path), predictor.predict(path))

    def test_a_mirrored_image_gives_mirrored_objects(self, shapes, checkpoint):
        augmented = detect.load(shapes.config("evaluation.tta.scales=[[96, 64], [120, 80]]"), checkpoint, tta=True)
        image = rgb(shapes.images[0])
        one, other = augmented.predict([image, np.ascontiguousarray(image[:, ::-1])])
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        # Objects of equal scores may come in another order.
        mirrored = np.stack([96 - other.boxes[:, 2], other.boxes[:, 1], 96 - other.boxes[:, 0], other.boxes[:, 3]], 1)
        assert len(one.boxes) == len(mirrored)
        for box, bitmap in zip(one.boxes, one.bitmaps(), strict=True):
            gaps = np.abs(mirrored - box).max(axis=1)
            assert gaps.min() < 1e-2
            assert any(
                (bitmap != other.bitmaps()[number][:, ::-1]).mean() < 1e-3 for number in np.flatnonzero(gaps < 1e-2)
            )

    def test_a_model_without_masks(self, shapes, tmp_path):
        overrides = [
            "model.roi_head.mask_head=null",
            "model.roi_head.mask_roi_extractor=null",
            "model.auxiliary_head.mask_head=null",
        ]
        config = shapes.config(*overrides)
        torch.manual_seed(0)
        info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
        weights = save_checkpoint(tmp_path, build_model(config, 2), {}, info)
        for tta in (False, True):
            one = detect.load(config, weights, tta=tta).predict(shapes.images[0])
            assert len(one) > 0
            assert one.masks is None
            assert {shape["shape_type"] for shape in one.to_labelme(score_thr=0)["shapes"]} == {"rectangle"}
            with pytest.raises(InputError, match="no masks"):
                one.bitmaps()


class TestPredictions:
    """What one image's predictions tell and show."""

    @pytest.fixture
    def found(self, shapes):
        bitmap = np.zeros((64, 96), np.uint8, order="F")
        bitmap[10:30, 20:50] = 1
        mask = coco_mask.encode(bitmap)
        mask["counts"] = mask["counts"].decode()
        detections = Detections(
            torch.tensor([[20.0, 10, 50, 30], [60, 5, 90, 60]]),
            torch.tensor([0.9, 0.2]),
            torch.tensor([1, 0]),
            [mask] * 2,
        )
        return Predictions(Source(shapes.images[0]), (64, 96), detections, ("box", "disc"), (4, 9))

    def test_arrays_and_names(self, found):
        assert len(found) == 2
        assert found.boxes.tolist() == [[20, 10, 50, 30], [60, 5, 90, 60]]
        assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
        assert found.names == ["disc", "box"]
        assert found.bitmaps().shape == (2, 64, 96)
        assert found.bitmaps()[0].sum() == 600
        assert repr(found) == f"Predictions({found.path}, 96x64: 1 disc, 1 box)"
        assert found.image.shape == (64, 96, 3)

    def test_some_of_them(self, found):
        assert found.above(0.5).names == ["disc"]
        assert len(found.above(0.9)) == 1  # equal counts, though 0.9 is another number as float32
        for chosen in ([1], np.array([False, True]), slice(1, None), found.labels == 0):
            assert found.select(chosen).names == ["box"]
        assert found.select([-1, 0, 1]).names == ["box", "disc", "box"]
        assert len(found.select([])) == 0
        assert len(found.select([]).select([])) == 0
        nothing = found.above(1)
        assert len(nothing) == 0
        assert nothing.bitmaps().shape == (0, 64, 96)
        assert "nothing" in repr(nothing)
        assert (nothing.draw() == found.image).all()

    @pytest.mark.parametrize("chosen", [[100000], [-3], [2], [0.5], [True], 1, None, "x", [[0]]])
    def test_objects_that_are_not_there(self, found, chosen):
        with pytest.raises(InputError, match=r"^expected indices of 2 objects, as many booleans, or a slice, got "):
            found.select(chosen)

    @pytest.mark.parametrize("score_thr", ["x", 2, None])
    def test_scores_that_none_has(self, found, score_thr):
        for method in (found.above, found.draw, lambda score: found.to_labelme(score_thr=score)):
            with pytest.raises(InputError, match=r"^score_thr is "):
                method(score_thr)

    def test_pictures(self, found, tmp_path):
        drawn = found.draw()
        changed = (drawn != found.image).any(axis=2)
        assert changed[10:30, 20:50].any()
        assert not changed[40:, 60:].any()  # the score of what is there is low
        assert (found.draw(0.1) != found.image).any(axis=2)[40:, 60:].any()
        found.save(tmp_path / "drawn.png")
        assert (rgb(tmp_path / "drawn.png") == drawn).all()
        shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
        assert (shown[..., ::-1] == drawn).all()
        with pytest.raises(InputError, match=r"drawn\.txt: cannot be written as a picture"):
            found.save(tmp_path / "drawn.txt")
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["drawn.png"]

    def test_coco(self, found):
        first, second = found.to_coco(7)
        assert first["bbox"] == [20, 10, 30, 20]
        assert (first["image_id"], first["category_id"], first["category_name"]) == (7, 9, "disc")
        assert (second["category_id"], second["file_name"]) == (4, str(found.path))
        assert first["score"] == pytest.approx(0.9)
        assert "frame" not in first

    def test_labelme(self, found, tmp_path):
        content = json.loads(json.dumps(found.to_labelme(tmp_path / "labels")))
        (shape,) = content["shapes"]
        assert (shape["label"], shape["shape_type"], shape["group_id"]) == ("disc", "polygon", None)
        assert sorted(map(tuple, shape["points"])) == [(20, 10), (20, 30), (50, 10), (50, 30)]
        assert content["imagePath"] == f"../shapes/images/{found.path.name}"
        assert content["imageData"] is None
        assert (content["imageHeight"], content["imageWidth"]) == (64, 96)
        assert len(found.to_labelme(score_thr=0.1)["shapes"]) == 2


class TestLabelMe:
    """Masks as polygons that a person can correct."""

    @staticmethod
    def shapes_of(bitmap):
        mask = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
        detections = Detections(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5]), torch.tensor([0]), [mask])
        source = Source(pixels=np.zeros((*bitmap.shape, 3), np.uint8))
        return labelme_file(source, bitmap.shape, detections, ["disc"], None)["shapes"]

    def test_outlines_are_simple_and_close(self):
        disc = np.zeros((120, 160), np.uint8)
        cv2.circle(disc, (80, 60), 40, 1, -1)
        (shape,) = self.shapes_of(disc)
        assert 8 <= len(shape["points"]) <= 40
        drawn = Polygons.from_coco([[np.ravel(shape["points"]).tolist()]]).to_bitmaps(120, 160)[0]
        assert (drawn & disc).sum() / (drawn | disc).sum() > 0.96

    def test_parts_share_a_group_the_largest_first_and_holes_are_filled(self):
        bitmap = np.zeros((60, 80), bool)
        bitmap[5:10, 5:10] = True
        bitmap[20:50, 30:70] = True
        bitmap[30:40, 40:60] = False
        large, small = self.shapes_of(bitmap)
        assert (large["group_id"], small["group_id"]) == (1, 1)
        assert sorted(map(tuple, large["points"])) == [(30, 20), (30, 50), (70, 20), (70, 50)]
        assert sorted(map(tuple, small["points"])) == [(5, 5), (5, 10), (10, 5), (10, 10)]

    def test_a_single_pixel_stays_a_polygon(self):
        bitmap = np.zeros((60, 80), bool)
        bitmap[7, 9] = True
        (shape,) = self.shapes_of(bitmap)
        assert len(shape["points"]) == 4

    def test_an_empty_mask_leaves_the_box(self):
        (shape,) = self.shapes_of(np.zeros((60, 80), bool))
        assert (shape["shape_type"], shape["points"]) == ("rectangle", [[1, 2], [3, 4]])


class TestFiles:
    """What the command writes."""

    def test_a_folder_with_a_video(self, shapes, checkpoint, clip, tmp_path):
        out = tmp_path / "out"
        result = run(
            shapes.recipe, checkpoint, shapes.root / "images", clip, "-o", out, "--save", "pictures", "coco", "labelme"
        )
        assert result.exit_code == 0, result.output
        assert f"{clip}: 6 frames, " in result.stdout
        stems = [f"{number:02d}" for number in range(6)]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*(f"{stem}.png" for stem in stems), "clip.mp4", "images.json", "predictions.json", "labelme"]
        )
        info = video_info(out / "clip.mp4")
        assert (info.fps, info.frames) == (8.0, 6)
        before, after = next(frames_of(clip)), next(frames_of(out / "clip.mp4"))
        assert before.shape == after.shape
        images = json.loads((out / "images.json").read_text())["images"]
        assert [image["id"] for image in images] == list(range(1, 13))
        assert [image.get("frame") for image in images] == [None] * 6 + list(range(6))
        assert {(image["width"], image["height"]) for image in images} == {(96, 64)}
        assert {image["file_name"] for image in images[6:]} == {str(clip)}
        results = json.loads((out / "predictions.json").read_text())
        assert {(row["file_name"], row["frame"]) for row in results if row["image_id"] > 6} <= {
            (str(clip), frame) for frame in range(6)
        }
        data_set = hotcoco.COCO(str(out / "images.json"))
        assert len(data_set.load_res(str(out / "predictions.json")).anns) == len(results) > 0
        files = sorted(path.relative_to(out / "labelme").as_posix() for path in (out / "labelme").rglob("*.json"))
        assert files == [*(f"{stem}.json" for stem in stems), *(f"clip/{number:06d}.json" for number in range(6))]
        frame = json.loads((out / "labelme" / "clip" / "000002.json").read_text())
        assert frame["imagePath"] == "clip_000002.jpg"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(frame["imageData"]), np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (64, 96, 3)
        assert np.abs(decoded[..., ::-1].astype(int) - list(frames_of(clip))[2]).mean() < 5

    def test_frames_are_drawn_from_the_threshold_on(self, shapes, checkpoint, clip, tmp_path, monkeypatch):
        asked = []
        draw = detect.Predictions.draw

        def recorded(self, score_thr):
            asked.append(score_thr)
            return draw(self, score_thr)

        monkeypatch.setattr(detect.Predictions, "draw", recorded)
        detect.predict(shapes.config(), checkpoint, [clip], tmp_path / "out", score_thr=0.7, save=["pictures"])
        assert asked == [0.7] * 6

    def test_labelme_files_have_the_objects_from_the_threshold_on(self, shapes, checkpoint, predictor, tmp_path):
        found = predictor.predict(shapes.images[0])
        threshold = float(np.median(found.scores))
        forms = ["coco", "labelme"]
        done = detect.predict(shapes.config(), checkpoint, shapes.images[:1], tmp_path, score_thr=threshold, save=forms)
        assert len(done.results()) == len(found)
        content = json.loads((tmp_path / "labelme" / "00.json").read_text())
        written = {shape["score"] for shape in content["shapes"]}
        assert written == {round(score, 4) for score in found.above(threshold).scores.tolist()}
        assert 0 < len(found.above(threshold)) < len(found)

    @pytest.mark.parametrize("save", ["coco", "labelme", "pictures"])
    def test_only_what_is_asked_for(self, shapes, checkpoint, clip, tmp_path, save):
        result = run(shapes.recipe, checkpoint, shapes.images[0], clip, "-o", tmp_path / "out", "--save", save)
        assert result.exit_code == 0, result.output
        written = {path.name for path in (tmp_path / "out").iterdir()}
        assert (
            written
            == {
                "coco": {"predictions.json", "images.json"},
                "labelme": {"labelme"},
                "pictures": {"00.png", "clip.mp4"},
            }[save]
        )

    def test_the_function_gives_what_it_wrote(self, shapes, checkpoint, tmp_path):
        config = shapes.config()
        done = detect.predict(config, checkpoint, shapes.images[:1], tmp_path)
        assert (done.images, done.skipped) == (1, {})
        results = done.results()
        assert results == json.loads((tmp_path / "predictions.json").read_text())
        assert results == detect.load(config, checkpoint).predict(shapes.images[0]).to_coco()
        done = detect.predict(config, checkpoint, shapes.images[:1], tmp_path / "pictures", save=["pictures"])
        with pytest.raises(InputError, match=r"predictions\.json: is not there; save=\['coco'\] writes it"):
            done.results()
        for save in ([], ["jpeg"]):
            with pytest.raises(InputError, match="save: expected some of pictures, coco, labelme"):
                detect.predict(config, checkpoint, shapes.images[:1], tmp_path, save=save)

    def test_batches_are_as_large_as_is_asked(self, shapes, checkpoint, tmp_path, monkeypatch):
        counts = []

        def watched(*arguments, **options):
            predictor = detect.load(*arguments, **options)
            predictor._model.register_forward_pre_hook(lambda model, inputs: counts.append(len(inputs[0])))
            return predictor

        monkeypatch.setattr("detect.prediction.load", watched)
        done = detect.predict(shapes.config(), checkpoint, shapes.images[:3], tmp_path, batch_size=3, save=["coco"])
        assert done.images == 3
        detect.predict(shapes.config(), checkpoint, shapes.images[:3], tmp_path, save=["coco"])
        assert counts == [3, 2, 1]

    def test_the_bar_counts_frames(self, shapes, checkpoint, clip, tmp_path, monkeypatch):
        totals = []

        def progress(total, *_):
            totals.append(total)
            return nullcontext(lambda count: None)

        monkeypatch.setattr("detect.prediction.image_progress", progress)
        detect.predict(shapes.config(), checkpoint, [shapes.images[0], clip], tmp_path / "out", save=["coco"])
        assert totals == [1 + 6]

    def test_images_of_one_name_have_files_of_their_own(self, shapes, checkpoint, tmp_path):
        other = tmp_path / "other" / shapes.images[0].name
        other.parent.mkdir()
        shutil.copy(shapes.images[1], other)
        images = [shapes.images[0], other]
        detect.predict(shapes.config(), checkpoint, images, tmp_path / "out", save=["labelme", "pictures"])
        for files in ((tmp_path / "out" / "labelme").iterdir(), (tmp_path / "out").glob("*.png")):
            contents = [path.read_bytes() for path in files]
            assert len(set(contents)) == len(contents) == 2

    def test_views_are_those_of_the_recipe(self, shapes, checkpoint, tmp_path):
        rows = {}
        for name, words in (("plain", []), ("tta", ["--tta"])):
            result = run(shapes.recipe, checkpoint, shapes.images[0], "-o", tmp_path / name, *words)
            assert result.exit_code == 0, result.output
            rows[name] = json.loads((tmp_path / name / "predictions.json").read_text())
        assert rows["tta"] != rows["plain"]
        expected = detect.load(shapes.config(), checkpoint, tta=True).predict(shapes.images[0]).to_coco()
        assert rows["tta"] == expected

    def test_bad_files_are_left_out_where_asked(self, shapes, checkpoint, clip, tmp_path):
        (tmp_path / "bad.mp4").write_bytes(b"no video")
        shapes.images[1].write_bytes(shapes.images[1].read_bytes()[:300])
        given = [tmp_path / "bad.mp4", *shapes.images[:2], clip]
        result = run(shapes.recipe, checkpoint, *given, "-o", tmp_path / "out", "--on-bad-sample", "skip")
        assert result.exit_code == 0, result.output
        assert f"skipped: {tmp_path / 'bad.mp4'}: no video" in result.stdout
        assert f"skipped: {shapes.images[1]}: " in result.stdout
        assert "left out, as they cannot be used: 2 of 4 inputs" in result.stdout
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "00.png", "clip.mp4", "images.json", "predictions.json",
        }  # fmt: skip
        images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
        assert [image["id"] for image in images] == list(range(1, 8))
        assert run(shapes.recipe, checkpoint, *given, "data.on_bad_sample=skip", "-o", tmp_path / "2").exit_code == 0

    def test_an_empty_name_is_no_folder(self, shapes, checkpoint, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        done = run(shapes.recipe, checkpoint, shapes.images[0], "-o", "")
        assert done.exit_code == 2
        assert "expected the name of a folder" in done.output
        with pytest.raises(InputError, match="expected the name of a folder"):
            detect.predict(shapes.recipe, checkpoint, [shapes.images[0]], "", accelerator="cpu")
        assert not list((tmp_path / "empty").iterdir())

    def test_that_all_are_bad_is_an_error(self, shapes, checkpoint, tmp_path):
        (tmp_path / "bad.mp4").write_bytes(b"no video")
        result = run(shapes.recipe, checkpoint, tmp_path / "bad.mp4", "-o", tmp_path / "o", "--on-bad-sample", "skip")
        assert result.exit_code == 2
        assert result.stderr == f"error: none of the 1 inputs can be used, such as {tmp_path / 'bad.mp4'}\n"
        assert not list((tmp_path / "o").iterdir())

    def test_one_bad_file_among_good_ones_stops_before_anything_is_written(self, shapes, checkpoint, clip, tmp_path):
        clip.write_bytes(clip.read_bytes()[:500])
        result = run(shapes.recipe, checkpoint, shapes.images[0], clip, "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {clip}: ")
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_what_is_broken_off_leaves_whole_files_only(self, shapes, checkpoint, clip, tmp_path, monkeypatch):
        def broken_off(self, score_thr):
            if self.source.frame == 3:
                raise KeyboardInterrupt
            return self.image

        monkeypatch.setattr(Predictions, "draw", broken_off)
        with pytest.raises(KeyboardInterrupt):
            detect.predict(shapes.config(), checkpoint, [shapes.images[0], clip], tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["00.png"]

    def test_no_picture_of_a_video_replaces_it(self, shapes, checkpoint, tmp_path):
        with whole_video(tmp_path / "clip.mp4", 8.0) as write:
            write(rgb(shapes.images[0]))
        result = run(shapes.recipe, checkpoint, tmp_path / "clip.mp4", "-o", tmp_path)
        assert result.exit_code == 2
        assert "would replace" in result.stderr


def test_names_do_not_collide():
    given = ["a.png", "A.png", "a_2.png", "a.jpg", "a.png"]
    assert unique_names(given) == ["a.png", "A_2.png", "a_2_2.png", "a.jpg", "a_3.png"]
