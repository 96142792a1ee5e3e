"""The registry, and parts built from a recipe: names, checks by signature, context."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import pytest
from pydantic import Field

from dpipe.building.annotations import accepts_part
from dpipe.building.problems import report
from dpipe.errors import InputError
from dpipe.registry import TRANSFORMS, Registry, import_module

if TYPE_CHECKING:
    from nowhere import Unknown

PARTS = Registry("part")


class Measures(Protocol):
    def measure(self) -> int: ...


@PARTS.register
@dataclass(frozen=True)
class Foreign:
    """A part that reads mappings itself, whatever ``type`` means in them."""

    options: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]] = ()
    sizes: dict[str, int] | None = None


@PARTS.register
@dataclass(frozen=True)
class Ruler:
    length: int
    unit: Literal["cm", "inch"] = "cm"
    marks: tuple[float, ...] = ()
    name: str | None = None

    def measure(self) -> int:
        return self.length


@PARTS.register
class Backbone:
    def __init__(self, depth: int, channels: Sequence[int] = (1, 2), strides: Sequence[int] = (4, 8)) -> None:
        if depth > 100:
            raise ValueError(f"depth must be\nat most 100, got {depth}")
        if depth < 0:
            raise RuntimeError("no\ndepth")
        self.channels, self.strides = channels, strides


@PARTS.register
class Neck:
    def __init__(self, in_channels: Sequence[int], strides: Sequence[int] = (1, 1), width: int = 7) -> None:
        self.in_channels, self.in_strides = in_channels, strides
        self.channels = (width,) * len(in_channels)
        self.strides = strides


@PARTS.register
class Narrow(Neck):
    def __init__(self, in_channels: Sequence[int]) -> None:
        self.channels, self.strides = 7, 4  # type: ignore[assignment]


@PARTS.register
class Head:
    def __init__(
        self,
        in_channels: int,
        num_classes: int = 80,
        rulers: list[Ruler] | None = None,
        tool: Measures | None = None,
        policies: list[list[Ruler]] = [],  # noqa: B006
        share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        pair: tuple[int, int] | int = 1,
        unknown: Unknown = None,
    ) -> None:
        self.in_channels, self.num_classes, self.rulers, self.tool = in_channels, num_classes, rulers, tool
        self.policies = policies


@PARTS.register
class Detector:
    part_context: ClassVar[dict[str, dict[str, Any]]] = {"first": {"num_classes": 1}}

    def __init__(self, backbone: Backbone, neck: Neck | None, first: Head, second: Head) -> None:
        self.backbone, self.neck, self.first, self.second = backbone, neck, first, second


@PARTS.register
class Anything:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def problems(node: Any, registry: Registry = PARTS) -> dict[str, str]:
    return {".".join(map(str, path)): message for path, message in registry.check(node)}


class TestNames:
    def test_two_classes_of_one_name(self) -> None:
        registry = Registry("part")
        registry.register(Ruler)
        registry.register(Ruler)
        with pytest.raises(InputError, match="two parts are named Ruler"):
            registry.register(type("Ruler", (), {"__module__": "elsewhere"}))

    def test_homes_are_imported_when_a_name_is_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "many_parts"
        (package / "inner").mkdir(parents=True)
        (package / "__init__.py").write_text(
            "from dpipe.registry import Registry\nPARTS = Registry('x', ['many_parts'])"
        )
        (package / "inner" / "__init__.py").write_text("")
        (package / "inner" / "deep.py").write_text(
            "from many_parts import PARTS\n@PARTS.register\nclass Deep:\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        registry = import_module("many_parts").PARTS
        assert registry.names() == ["Deep"]
        assert registry.get("Deep").__module__ == "many_parts.inner.deep"

    def test_dotted_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_dotted.py").write_text(
            "class Mine:\n    def __init__(self, n: int) -> None:\n        self.n = n\n"
        )
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)  # modules are found in the current directory
        assert PARTS.build({"type": "my_dotted.Mine", "n": 3}).n == 3
        assert problems({"type": "my_dotted.Mine", "m": 3}) == {
            "m": "unknown argument of my_dotted.Mine; expected one of: n",
            "": "my_dotted.Mine needs 'n': an integer",
        }
        with pytest.raises(InputError, match="module 'my_dotted' has no class 'Yours'"):
            PARTS.get("my_dotted.Yours")

    @pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.eval", "os.path.join"])
    def test_the_standard_library_holds_no_parts(self, name: str) -> None:
        with pytest.raises(InputError, match="standard library"):
            PARTS.get(name)

    def test_nor_under_another_name(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "my_aliases.py").write_text("from subprocess import Popen\n")
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="standard library"):
            PARTS.get("my_aliases.Popen")

    def test_a_dotted_path_needs_a_base_of_the_registry(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "my_transforms.py").write_text(
            "from dpipe import Operation\n"
            "class Mine(Operation):\n    def apply(self, draft): pass\n"
            "class Other:\n    pass\n"
        )
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        assert TRANSFORMS.get("my_transforms.Mine").__name__ == "Mine"
        with pytest.raises(InputError, match="expected a subclass of Operation or Normalize or Pad"):
            TRANSFORMS.get("my_transforms.Other")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("Rule", "unknown part 'Rule'; did you mean 'Ruler'?"),
            ("Qqqq", "unknown part 'Qqqq'; expected one of: Anything, Backbone, "),
            ("no_such_package.Part", "cannot import 'no_such_package': No module named 'no_such_package'"),
            ("numpy.zeros", "module 'numpy' has no class 'zeros'"),
            ("bad name.Part", "'bad name' is not the dotted name of a module"),
            (".Part", "unknown part '.Part'"),
        ],
    )
    def test_mistake(self, name: str, message: str) -> None:
        told = problems({"type": name})["type"]
        assert message in told
        assert "\n" not in told

    def test_a_module_that_fails_to_import(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_broken.py").write_text("raise RuntimeError('no\\nway')\n")
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"^cannot import 'my_broken': RuntimeError: no way \(.*my_broken.py:1\)$"):
            import_module("my_broken")

    def test_a_module_that_is_no_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_typo.py").write_text("\nclass Neck(:\n")
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"^cannot import 'my_typo': SyntaxError: .* \(my_typo.py, line 2\)$"):
            import_module("my_typo")

    def test_a_module_that_ends_the_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_script.py").write_text("import sys\nsys.exit(3)\n")
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"^cannot import 'my_script': SystemExit: 3 \(.*/my_script.py:2\)$"):
            import_module("my_script")

    def test_what_a_module_of_ones_own_lacks_is_told_as_it_is(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "my_imports.py").write_text("import no_such_library\n")
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            InputError, match=r"^cannot import 'my_imports': No module named 'no_such_library' \(.*/my_imports.py:1\)$"
        ):
            import_module("my_imports")

    def test_a_module_that_takes_a_name_that_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_flip.py").write_text(
            "from dpipe.registry import TRANSFORMS\n\n\n@TRANSFORMS.register\nclass RandomFlip:\n    pass\n"
        )
        assert "RandomFlip" in TRANSFORMS.names()
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"^cannot import 'my_flip': two transforms are named RandomFlip: "):
            import_module("my_flip")

    @pytest.mark.parametrize("name", ["this", "os", "xml.dom"])
    def test_modules_of_the_standard_library_are_not_imported(self, name: str) -> None:
        with pytest.raises(InputError, match="is in Python's standard library"):
            import_module(name)


class TestCheck:
    def test_all_problems_are_found(self) -> None:
        node = {
            "type": "Detector",
            "backbone": {"type": "Backbone", "dept": 3},
            "neck": {"type": "Nek", "inner": {"type": "Ruler", "length": "1"}},
            "first": {"type": "Head", "rulers": [{"type": "Ruler", "length": 1}, {"type": "Ruler", "length": 1.0}]},
            "extra": 1,
        }
        assert problems(node) == {
            "backbone": "Backbone needs 'depth': an integer",
            "backbone.dept": "unknown argument of Backbone; did you mean 'depth'?",
            "neck.type": "unknown part 'Nek'; did you mean 'Neck'?",
            "neck.inner.length": 'expected an integer, got "1"',
            "first.rulers.1.length": "expected an integer, got 1.0",
            "extra": "unknown argument of Detector; expected one of: backbone, first, neck, second",
            "": "Detector needs 'second': a part (Head)",
        }

    def test_the_arguments_of_another_class_are_told_once(self) -> None:
        assert problems({"type": "Backbone", "depth": 3, "rate": 1, "size": 2, "inner": {"type": "Nek"}}) == {
            "": "Backbone has no arguments rate, size, inner; with another type, `_delete_: true` beside it drops what "
            "it inherits",
            "inner.type": "unknown part 'Nek'; did you mean 'Neck'?",
        }

    @pytest.mark.parametrize(
        ("part", "key", "value", "message"),
        [
            ("Ruler", "length", 50.0, "expected an integer, got 50.0"),
            ("Ruler", "length", True, "expected an integer, got true"),
            ("Ruler", "length", "50", 'expected an integer, got "50"'),
            ("Ruler", "length", None, "expected an integer, got null"),
            ("Ruler", "unit", "mile", "expected 'cm' or 'inch', got \"mile\""),
            ("Ruler", "name", 3, "expected a string, got 3"),
            ("Ruler", "marks", 3, "expected"),
            ("Ruler", "marks", [1, "2"], 'expected a number, got "2"'),
            ("Ruler", "marks", [True], "expected a number, got true"),
            ("Head", "share", 1.5, "expected a value less than or equal to 1, got 1.5"),
            ("Head", "pair", [1, 2, 3], "expected [integer, integer] or an integer, got [1, 2, 3]"),
            ("Head", "rulers", [3], "expected a part (Ruler): a mapping with `type`, got 3"),
            ("Head", "rulers", {"type": "Ruler", "length": 1}, "got a Ruler"),
            ("Head", "rulers", {"length": 1}, "expected a list, each a part (Ruler) or null: a mapping with `type`"),
            ("Head", "rulers", [{"type": "Neck"}], "expected a part (Ruler), got a Neck"),
            ("Head", "tool", [{"type": "Ruler", "length": 1}], "got a list of 1"),
            ("Head", "tool", 1, "a mapping with `type`, got 1"),
            ("Detector", "backbone", None, "expected a part (Backbone): a mapping with `type`, got null"),
        ],
    )
    def test_wrong_value(self, part: str, key: str, value: object, message: str) -> None:
        found = {path: told for path, told in problems({"type": part, key: value}).items() if path.startswith(key)}
        assert len(found) == 1
        assert message in next(iter(found.values()))

    @pytest.mark.parametrize(
        ("part", "key", "value"),
        [
            ("Ruler", "marks", []),
            ("Ruler", "marks", [1, 2.5, float("inf")]),
            ("Ruler", "name", None),
            ("Head", "rulers", None),
            ("Head", "rulers", []),
            ("Head", "policies", [[{"type": "Ruler", "length": 1}], []]),
            ("Head", "tool", {"type": "Ruler", "length": 1}),
            ("Head", "unknown", {"any": "thing"}),
            ("Head", "pair", [1, 2]),
            ("Detector", "neck", None),
            ("Anything", "whatever", [{"x": 1}]),
        ],
    )
    def test_right_value(self, part: str, key: str, value: object) -> None:
        assert not [path for path in problems({"type": part, key: value}) if path.startswith(key)]

    def test_parts_inside_what_takes_anything_are_checked(self) -> None:
        assert list(problems({"type": "Anything", "x": [[{"type": "Ruler"}]]})) == ["x.0.0"]

    @pytest.mark.parametrize("node", [None, 3, [], {}, {"kind": "Ruler"}])
    def test_no_part(self, node: object) -> None:
        assert "expected a part, a mapping with `type`" in problems(node)[""]

    def test_a_type_that_is_no_name(self) -> None:
        assert problems({"type": 3}) == {"type": "expected the name of a part, got 3"}


class TestBuild:
    RECIPE: ClassVar[dict[str, Any]] = {
        "type": "Detector",
        "second": {"type": "Head"},  # parts are built in the constructor's order, not the recipe's
        "first": {"type": "Head"},
        "neck": {"type": "Neck"},
        "backbone": {"type": "Backbone", "depth": 3, "strides": [2, 4]},
    }

    def test_context_flows_from_part_to_part(self) -> None:
        detector = PARTS.build(self.RECIPE, {"num_classes": 5})
        assert detector.neck.in_channels == (1, 2)
        assert detector.neck.in_strides == (2, 4)
        assert detector.first.in_channels == detector.second.in_channels == 7
        assert (detector.first.num_classes, detector.second.num_classes) == (1, 5)

    def test_what_the_recipe_says_wins(self) -> None:
        second = {"type": "Head", "in_channels": 9, "num_classes": 3}
        detector = PARTS.build({**self.RECIPE, "second": second}, {"num_classes": 5})
        assert (detector.second.in_channels, detector.second.num_classes) == (9, 3)

    def test_what_a_place_demands_wins_over_the_recipe(self) -> None:
        first = {"type": "Head", "in_channels": 9, "num_classes": 3}
        detector = PARTS.build({**self.RECIPE, "first": first}, {"num_classes": 5})
        assert (detector.first.in_channels, detector.first.num_classes) == (9, 1)

    def test_without_a_neck_heads_read_the_backbone(self) -> None:
        with pytest.raises(InputError, match=r"first: Head: 'in_channels' is one number, .* have \[1, 2\]"):
            PARTS.build({**self.RECIPE, "neck": None})
        backbone = {"type": "Backbone", "depth": 3, "channels": [6]}
        assert PARTS.build({**self.RECIPE, "neck": None, "backbone": backbone}).second.in_channels == 6

    def test_values_become_what_the_annotation_says(self) -> None:
        ruler = PARTS.build({"type": "Ruler", "length": 1, "marks": [1, 2]})
        assert ruler.marks == (1.0, 2.0)
        assert isinstance(ruler.marks[0], float)
        assert hash(ruler)

    def test_lists_of_parts(self) -> None:
        head = PARTS.build(
            {
                "type": "Head",
                "in_channels": 1,
                "rulers": [{"type": "Ruler", "length": 1}, {"type": "Ruler", "length": 2}],
                "policies": [[], [{"type": "Ruler", "length": 3}]],
            }
        )
        assert [ruler.length for ruler in head.rulers] == [1, 2]
        assert head.policies == [[], [Ruler(3)]]

    def test_what_nothing_supplies(self) -> None:
        with pytest.raises(
            InputError, match=r"^file:1: part: Head needs 'in_channels': nothing before it supplies that"
        ):
            PARTS.build({"type": "Head"}, {}, ("part",), lambda path: "file:1")

    def test_a_part_that_refuses(self) -> None:
        recipe = {**self.RECIPE, "backbone": {"type": "Backbone", "depth": 101}}
        with pytest.raises(InputError, match=r"^backbone: Backbone: depth must be at most 100, got 101$"):
            PARTS.build(recipe)

    def test_a_part_that_fails(self) -> None:
        recipe = {**self.RECIPE, "backbone": {"type": "Backbone", "depth": -1}}
        with pytest.raises(InputError, match=r"^backbone: Backbone: RuntimeError: no depth$"):
            PARTS.build(recipe)

    def test_a_part_that_tells_no_levels(self) -> None:
        recipe = {**self.RECIPE, "neck": {"type": "Narrow"}}
        with pytest.raises(InputError, match=r"^neck: Narrow: expected `channels` and `strides` to have a number for"):
            PARTS.build(recipe)

    def test_it_checks_first(self) -> None:
        with pytest.raises(InputError, match=r"^length: expected an integer, got 1.5$"):
            PARTS.build({"type": "Ruler", "length": 1.5})


def test_report_has_a_line_for_each_problem() -> None:
    found = PARTS.check({"type": "Ruler", "lenght": 1, "unit": 2}, ("a", 0))
    lines = report("recipe x", found, lambda path: f"x.yaml:{len(path)}").splitlines()
    assert lines == [
        "3 problems in recipe x:",
        "  x.yaml:3: a.0.lenght: unknown argument of Ruler; did you mean 'length'?",
        "  x.yaml:3: a.0.unit: expected 'cm' or 'inch', got 2",
        "  x.yaml:2: a.0: Ruler needs 'length': an integer",
    ]
    assert report("recipe x", found[:1], lambda path: "x.yaml:3") == lines[1].strip()


def test_a_protocol_takes_classes_with_its_methods() -> None:
    class Chooser(Protocol):
        limit: int

        def choose(self, numbers: list[int]) -> int: ...

    class First:
        def choose(self, numbers: list[int]) -> int:
            return numbers[0]

    assert accepts_part(Chooser | None, First)
    assert not accepts_part(Chooser | None, dict)


def test_a_parameter_that_is_a_mapping_takes_it_as_it_is() -> None:
    node = {
        "type": "Foreign",
        "options": {"type": "nothing here"},
        "steps": [{"type": "Ruler", "inner": [{"type": 3}]}],
    }
    assert PARTS.check(node) == []
    built = PARTS.build(node)
    assert built.options == {"type": "nothing here"}
    assert built.steps == [{"type": "Ruler", "inner": [{"type": 3}]}]
    (problem,) = PARTS.check({"type": "Foreign", "options": {}, "sizes": {"type": "Ruler"}})
    assert (problem.path, problem.message) == (("sizes", "type"), 'expected an integer, got "Ruler"')
    (problem,) = PARTS.check({"type": "Foreign", "options": {}, "steps": [{}, "Ruler"]})
    assert (problem.path, problem.message) == (("steps", 1), 'expected a mapping, got "Ruler"')
