"""What may be given to predict on: files, folders, patterns, videos, arrays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from detect.predicting.inputs import Source, check_files, find_files, is_override, read_upright, source_of, sources_of
from detect.predicting.videos import frames_of, video_info, whole_video
from dpipe.errors import BadSampleError, InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, the current one, with images, text and a video in ``shots`` and a folder of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shots" / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/c.png"):
        cv2.imwrite(str(tmp_path / "shots" / name), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "shots" / "notes.txt").write_text("")
    (tmp_path / "shots" / "clip.mp4").write_text("")
    return tmp_path


def names(inputs):
    return [path.as_posix() for path in find_files(inputs)]


def test_a_folder_stands_for_what_is_right_in_it(folder):
    assert names(["shots"]) == ["shots/a.png", "shots/b.JPG", "shots/clip.mp4"]


def test_patterns_reach_deeper_and_take_images_and_videos_only(folder):
    assert names(["shots/*"]) == ["shots/a.png", "shots/b.JPG", "shots/clip.mp4"]
    assert names(["shots/**/*.png"]) == ["shots/a.png", "shots/deep/c.png"]


def test_files_stay_in_order_and_each_comes_once(folder):
    assert names(["shots/b.JPG", "shots/notes.txt", "shots", folder / "shots" / "a.png"]) == [
        "shots/b.JPG",
        "shots/notes.txt",
        "shots/a.png",
        "shots/clip.mp4",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    (folder / "shots" / "x[1].png").write_bytes((folder / "shots" / "a.png").read_bytes())
    assert names(["shots/x[1].png"]) == ["shots/x[1].png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected at least one image or video"),
        (["nothing.png"], "nothing.png: no such image or video"),
        (["shots/deep/*.jpg"], r"shots/deep/\*.jpg: the pattern matches no image and no video"),
        (["bare"], "bare: the folder holds no image and no video"),
    ],
)
def test_what_is_not_there(folder, given, message):
    (folder / "bare").mkdir()
    with pytest.raises(InputError, match=message):
        find_files(given)


def test_values_of_the_recipe_are_told_from_files(folder, monkeypatch):
    assert is_override("model.roi_head.max_per_img=1")
    assert is_override("data.on_bad_sample=skip")
    assert not is_override("runs/lr=0.1/*.png")
    (folder / "lr=1.png").write_text("")
    assert not is_override("lr=1.png")


def test_arrays_and_paths_are_sources(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert source_of(pixels).read() is pixels
    assert source_of(pixels[:, ::-1]).read().tolist() == pixels[:, ::-1].tolist()
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    assert source_of(tmp_path / "a.png").read().tolist() == pixels.tolist()  # red, green, blue
    assert source_of(str(tmp_path / "a.png")).name == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3)), r"\(height, width, 3\) uint8 RGB, got \(4, 5, 3\) float64"),
        (np.zeros((4, 5), np.uint8), r"got \(4, 5\) uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\)"),
        (7, "an image is a path or an array .* got 7"),
        ("clip.mp4", "clip.mp4: is a video"),
    ],
)
def test_other_things_are_no_images(image, message):
    with pytest.raises(InputError, match=message):
        source_of(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_upright(tmp_path / "turned.jpg").shape == ((6, 8, 3) if orientation <= 4 else (8, 6, 3))


class TestVideos:
    """Frames as they were written, and files that are there whole or not at all."""

    @staticmethod
    def write(path, frames=5, size=(48, 64), fps=12.5):
        with whole_video(path, fps) as write:
            for number in range(frames):
                frame = np.zeros((*size, 3), np.uint8)
                frame[..., 0] = 40 * number  # red
                write(frame)

    def test_frames_come_back_in_order_and_colour(self, tmp_path):
        self.write(tmp_path / "clip.mp4")
        assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
        info = video_info(tmp_path / "clip.mp4")
        assert (info.fps, info.frames) == (12.5, 5)
        frames = list(frames_of(tmp_path / "clip.mp4"))
        assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
        np.testing.assert_allclose([frame[..., 0].mean() for frame in frames], range(0, 200, 40), atol=6)
        assert max(frame[..., 1:].max() for frame in frames) < 12

    def test_odd_sides_lose_their_last_row_and_column(self, tmp_path):
        self.write(tmp_path / "clip.mp4", size=(49, 65))
        assert next(frames_of(tmp_path / "clip.mp4")).shape == (48, 64, 3)

    def test_one_that_is_broken_off_leaves_nothing(self, tmp_path):
        def broken_off():
            with whole_video(tmp_path / "clip.mp4", 5.0) as write:
                write(np.zeros((48, 64, 3), np.uint8))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            broken_off()
        assert not list(tmp_path.iterdir())

    def test_one_that_cannot_be_written_is_told(self, tmp_path):
        with pytest.raises(OSError, match="cannot be written as a video"):
            self.write(tmp_path / "missing" / "clip.mp4")

    def test_each_frame_is_a_source(self, tmp_path):
        self.write(tmp_path / "clip.mp4", frames=2)
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
        found = list(sources_of([tmp_path / "clip.mp4", tmp_path / "a.png"], on_bad=pytest.fail))
        assert [(one.path.name, one.frame) for one in found] == [("clip.mp4", 0), ("clip.mp4", 1), ("a.png", None)]
        assert found[1].name == f"{tmp_path / 'clip.mp4'}, frame 1"

    @pytest.mark.parametrize(
        ("content", "reason"), [(b"", "corrupt"), (b"no video" * 50, "corrupt"), (None, "no such")]
    )
    def test_what_is_no_video(self, tmp_path, content, reason, capfd):
        path = tmp_path / "clip.mp4"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadSampleError, match=reason):
            check_files([path])
        told = []
        assert list(sources_of([path], on_bad=told.append)) == []
        assert [error.path for error in told] == [path]
        assert capfd.readouterr() == ("", "")  # neither OpenCV nor FFmpeg adds a line


def test_a_source_without_pixels_reads_its_file(tmp_path):
    with pytest.raises(BadSampleError, match="no such image file"):
        Source(tmp_path / "gone.png").read()
