"""The list of parts and recipes, and the description of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from detect.cli import app
from detect.looking.docstrings import parse_docstring
from detect.looking.listing import describe_part, list_parts
from detect.registry import MODELS
from dpipe.recipes import shipped_recipes
from dpipe.registry import TRANSFORMS

OWN_PART = '''
from torch import Tensor, nn


class MyNeck(nn.Module):
    """Does nothing.

    Args:
        in_channels: Channels of the levels.
        width: How wide it is,
            all in all.
    """

    def __init__(self, in_channels: list[int], width: int = 7) -> None:
        super().__init__()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels to levels."""
        return features
'''


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_everything_is_listed_with_a_line_of_its_own_and_a_kind():
    found = list_parts()
    names = {entry.name for entry in found}
    assert names == {*MODELS.names(), *TRANSFORMS.names(), *shipped_recipes()}
    assert all(entry.summary and "\n" not in entry.summary for entry in found)
    assert not [entry.name for entry in found if entry.kind == "other part"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TwoStageDetector", "detector"),
        ("ResNet", "backbone"),
        ("AugFPN", "neck"),
        ("RPNHead", "dense head"),
        ("CascadeRoIHead", "RoI head"),
        ("SoftRoIExtractor", "RoI extractor"),
        ("Shared2FCBBoxHead", "bbox head"),
        ("FCNMaskHead", "mask head"),
        ("AuxiliaryHead", "auxiliary head"),
        ("GIoULoss", "loss"),
        ("MaxIoUAssigner", "assigner"),
        ("OHEMSampler", "sampler"),
        ("SoftNMS", "suppression"),
        ("ConvModule", "layer"),
        ("Rotate", "transform"),
        ("Pad", "transform"),
    ],
)
def test_kinds(name, kind):
    assert describe_part(name).kind == kind


def test_list_prints_what_has_the_text():
    output = run("list", "ASSIGNER").stdout
    assert output.startswith("assigners\n  MaxIoUAssigner  Assigns by the best IoU")
    assert "ResNet" not in output
    found = json.loads(run("list", "fcos_r50", "--json").stdout)
    assert found == [
        {
            "kind": "recipe",
            "name": "fcos_r50_caffe_fpn_gn_coco",
            "summary": "FCOS (arXiv 1904.01355) with a ResNet-50 from Caffe, FPN and GroupNorm in its head, on COCO.",
        }
    ]


def test_every_argument_is_described():
    for name in [*MODELS.names(), *TRANSFORMS.names()]:
        assert not [f"{name}.{argument.name}" for argument in describe_part(name).arguments if not argument.text]


def test_describe_tells_types_limits_defaults_and_source():
    output = run("describe", "FCOSHead").stdout
    assert "  num_classes: an integer of at least 1 (from the data)\n      K.\n" in output
    assert "  center_sample_radius: a number above 0 (1.5)\n      How near, in strides along each axis.\n" in output
    assert "  strides: a list of one or more, each an integer of at least 1 (from the part before)\n" in output
    assert "detect.models.dense_heads.fcos.FCOSHead\n" in output
    assert "detect/models/dense_heads/fcos.py:" in output.splitlines()[-1]
    assert "  scale: [integer, integer] or " in run("describe", "Resize").stdout


def test_describe_prints_plain_text():
    """Of ``:func:`pool_level``` and ``unaligned``, the names."""
    output = run("describe", "SingleRoIExtractor").stdout
    assert "How RoIs meet the cells, see pool_level; unaligned, with two" in " ".join(output.split())
    for name in [*MODELS.names(), *TRANSFORMS.names()]:
        doc = describe_part(name).doc
        texts = [doc.summary, doc.text, *doc.arguments.values()]
        assert not [text for text in texts if "``" in text or ":`" in text]


def test_a_name_in_another_case_is_found_near():
    assert run("describe", "fcos").stderr.strip().endswith("did you mean 'FCOSHead'?")


def test_describe_knows_parts_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "described_parts.py").write_text(OWN_PART)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    part = describe_part("described_parts.MyNeck")
    assert (part.kind, part.doc.summary) == ("neck", "Does nothing.")
    assert [(a.name, a.default, a.text) for a in part.arguments] == [
        ("in_channels", "from the part before", "Channels of the levels."),
        ("width", "7", "How wide it is, all in all."),
    ]
    assert part.source == f"{tmp_path / 'described_parts.py'}:5"


LIMITED_PART = '''
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass
class Limited:
    """Has limits.

    Attributes:
        share: How much.
        names: Which.
    """

    share: Annotated[float, Field(ge=0, lt=1)]
    names: Annotated[tuple[str, ...], Field(min_length=2)] = ("a", "b")


class Open:
    """Takes anything.

    Args:
        options: What else.
    """

    def __init__(self, **options: int) -> None:
        pass
'''


def test_describe_knows_limits_dataclasses_and_open_constructors(tmp_path, monkeypatch):
    (tmp_path / "limited_parts.py").write_text(LIMITED_PART)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    share, names = describe_part("limited_parts.Limited").arguments
    assert (share.expected, share.default, share.text) == (
        "a number of at least 0 and below 1",
        "required",
        "How much.",
    )
    assert names.expected == "a list of 2 or more, each a string"
    assert (names.default, names.text) == ('["a", "b"]', "Which.")
    (options,) = describe_part("limited_parts.Open").arguments
    assert (options.name, options.default, options.text) == ("options", "any others", "What else.")


def test_kinds_are_listed_from_the_whole_to_its_parts():
    kinds = list(dict.fromkeys(entry.kind for entry in list_parts()))
    assert kinds[:4] == ["detector", "backbone", "neck", "dense head"]
    assert kinds[-2:] == ["transform", "recipe"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["describe", "FCOSHed"], "there is no part or transform 'FCOSHed'; did you mean 'FCOSHead'?"),
        (["describe", "Rotat"], "did you mean 'Rotate'?"),
        (["describe", "zzqx"], "`detect list` prints all there is"),
        (["describe", "fcos_r50_caffe_fpn_gn_coco"], "is a recipe: `detect config fcos_r50_caffe_fpn_gn_coco` prints"),
        (["describe", "detect.models.layers.Conv"], "module 'detect.models.layers' has no class 'Conv'"),
        (["list", "assignr"], "did you mean 'assigner'?"),
    ],
)
def test_what_is_not_there(arguments, told):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_reader_that_has_enough_ends_a_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import typer\n"
        "from dpipe.cli_errors import one_line_errors\n"
        "def command():\n"
        "    with one_line_errors(False):\n"
        "        typer.echo('a line')\n"
        "typer.run(command)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_docstrings_of_constructors_and_of_classes_without_any():
    class Told:
        """Told.

        More of it.

        Shape:
            b: Nothing.
        """

        def __init__(self, a: int) -> None:
            """Makes it.

            Args:
                a (int): What it is.

            Raises:
                ValueError: Never.
            """

    class Bare:
        pass

    @dataclass
    class Fields:
        a: int

    told = parse_docstring(Told)
    assert (told.summary, told.text, told.arguments) == ("Told.", "More of it.", {"a": "What it is."})
    assert parse_docstring(Bare).summary == parse_docstring(Fields).summary == ""
