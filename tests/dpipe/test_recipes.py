"""Recipes: bases, deletion, overrides, interpolation, and mistakes told by file and line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpipe.building.yaml_source import parse_yaml
from dpipe.errors import InputError
from dpipe.recipes import dump_yaml, find_recipe, load_recipe, shipped_recipes
from dpipe.registry import import_module

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_files(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / f"{next(iter(files)).replace('__', '/')}.yaml"

    return write_files


def load(path: Path, *overrides: str) -> dict[str, Any]:
    return load_recipe(path, overrides).values


def fails(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_recipe(path, overrides)
    return str(error.value)


class TestBases:
    def test_mappings_merge_and_lists_replace(self, write: Write) -> None:
        top = write(top="_base_: base.yaml\na: {x: 2}\nlist: [9]", base="a: {x: 1, y: 1}\nlist: [1, 2]\nb: 3")
        assert load(top) == {"a": {"x": 2, "y": 1}, "list": [9], "b": 3}

    def test_later_bases_go_over_earlier_ones(self, write: Write) -> None:
        top = write(top="_base_: [first.yaml, second.yaml]\nc: 3", first="a: 1\nb: 1", second="b: 2\nc: 2")
        assert load(top) == {"a": 1, "b": 2, "c": 3}

    def test_a_base_is_relative_to_its_own_file(self, write: Write) -> None:
        top = write(top="_base_: sub/middle.yaml", sub__middle="_base_: deep/base.yaml", sub__deep__base="a: 1")
        assert load(top) == {"a": 1}

    def test_a_base_may_be_shared(self, write: Write) -> None:
        top = write(top="_base_: [x.yaml, y.yaml]", x="_base_: z.yaml\nx: 1", y="_base_: z.yaml\ny: 1", z="z: 1")
        assert load(top) == {"x": 1, "y": 1, "z": 1}

    def test_delete_drops_what_is_inherited(self, write: Write) -> None:
        top = write(
            top="_base_: base.yaml\nmodel: {neck: {_delete_: true, type: B}}",
            base="model: {neck: {type: A, outs: 5}, head: 1}",
        )
        assert load(top) == {"model": {"neck": {"type": "B"}, "head": 1}}

    def test_delete_with_nothing_to_drop_leaves_no_trace(self, write: Write) -> None:
        top = write(top="a: {_delete_: true, x: 1}\nlist: [{_delete_: true, y: 2}]")
        assert load(top) == {"a": {"x": 1}, "list": [{"y": 2}]}

    def test_delete_reaches_past_the_file_above(self, write: Write) -> None:
        top = write(
            top="_base_: [one.yaml, two.yaml]\na: {z: 3}", one="a: {x: 1}", two="a: {_delete_: true, y: 2}\nb: 1"
        )
        assert load(top) == {"a": {"y": 2, "z": 3}, "b": 1}

    def test_delete_is_a_switch(self, write: Write) -> None:
        told = fails(write(top="_base_: base.yaml\na: {_delete_: maybe}", base="a: {b: 1}"))
        assert told.endswith("top.yaml:2: _delete_: expected true or false")

    def test_null_replaces_a_mapping(self, write: Write) -> None:
        assert load(write(top="_base_: base.yaml\na: null", base="a: {x: 1}")) == {"a": None}

    def test_a_base_can_be_a_shipped_recipe(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        shipped = write(shipped__classic="a: 1\nb: 1")
        monkeypatch.setattr("dpipe.recipes.shipped_recipes", lambda: {"classic": shipped})
        assert load(write(top="_base_: classic\nb: 2")) == {"a": 1, "b": 2}
        assert load(write(top="_base_: classic.yaml\nb: 2")) == {"a": 1, "b": 2}

    def test_circle(self, write: Write) -> None:
        message = fails(write(a="_base_: b.yaml", b="_base_: c.yaml", c="_base_: a.yaml"))
        assert message.endswith("c.yaml: _base_ goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml")

    def test_missing_base_names_the_line_that_asks_for_it(self, write: Write) -> None:
        message = fails(write(top="x: 1\n_base_: nowhere.yaml"))
        assert "top.yaml:2: _base_: " in message
        assert "nowhere.yaml: no such recipe file" in message

    def test_base_of_a_wrong_type(self, write: Write) -> None:
        assert "expected a path, a recipe's name, or a list of them" in fails(write(top="_base_: {a: 1}"))
        assert "expected a path, a recipe's name, or a list of them" in fails(write(top="_base_: [1]"))


class TestOverrides:
    RECIPE = "data: {batch: 1, steps: [{scale: [1, 2]}, {scale: [3, 4]}]}\nname: x"

    @pytest.mark.parametrize(
        ("override", "path", "expected"),
        [
            ("name=y", ["name"], "y"),
            ("name=", ["name"], None),
            ("name=null", ["name"], None),
            ("name='1'", ["name"], "1"),
            ("name=a=b", ["name"], "a=b"),
            ("data.batch=1e-4", ["data", "batch"], 1e-4),
            ("data.batch=true", ["data", "batch"], True),
            ("data.new.deep=1", ["data", "new"], {"deep": 1}),
            ("data.steps.1.scale=[5, 6]", ["data", "steps"], [{"scale": [1, 2]}, {"scale": [5, 6]}]),
            ("data.steps.-1.scale.0=7", ["data", "steps"], [{"scale": [1, 2]}, {"scale": [7, 4]}]),
            ("data.steps=[]", ["data", "steps"], []),
            ("data={batch: 2}", ["data", "batch"], 2),
            ("data={_delete_: true, batch: 2}", ["data"], {"batch": 2}),
        ],
    )
    def test_value(self, write: Write, override: str, path: list[str], expected: object) -> None:
        value: Any = load(write(top=self.RECIPE), override)
        for key in path:
            value = value[key]
        assert value == expected
        assert type(value) is type(expected)

    def test_the_last_one_wins(self, write: Write) -> None:
        assert load(write(top=self.RECIPE), "name=a", "name=b")["name"] == "b"

    def test_through_an_interpolation_only_that_place_changes(self, write: Write) -> None:
        top = write(top="heads:\n- {n: 1, m: 1}\n- ${heads.0}\n- ${heads.1}")
        assert load(top, "heads.1.n=2")["heads"] == [{"n": 1, "m": 1}, {"n": 2, "m": 1}, {"n": 2, "m": 1}]
        assert load(top, "heads.2.n=2")["heads"] == [{"n": 1, "m": 1}, {"n": 1, "m": 1}, {"n": 2, "m": 1}]
        assert load(top, "heads.0.n=2")["heads"] == [{"n": 2, "m": 1}] * 3
        assert "which has no keys" in fails(write(top="a: ${b}\nb: ${a}"), "a.x=1")

    def test_they_come_before_interpolation(self, write: Write) -> None:
        top = write(top="root: a\npath: ${root}/x")
        assert load(top, "root=b") == {"root": "b", "path": "b/x"}
        assert load(top, "path=${root}/y") == {"root": "a", "path": "a/y"}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("name", "'name': expected an override of the form key.path=value"),
            ("=1", "expected an override of the form key.path=value"),
            ("data..batch=1", "expected an override of the form key.path=value"),
            (
                "data.steps.2.scale=1",
                "data.steps.2.scale: data.steps is a list of 2, expected an index into it, got '2'",
            ),
            ("data.steps.first=1", "data.steps is a list of 2, expected an index into it, got 'first'"),
            ("name.x=1", "name.x: name is 'x', which has no keys"),
            ("name=[1", "override 'name=[1': not valid YAML"),
            ("name=!!python/name:os.system ''", "tags such as"),
        ],
    )
    def test_mistake(self, write: Write, override: str, message: str) -> None:
        told = fails(write(top=self.RECIPE), override)
        assert message in told
        assert "\n" not in told


class TestInterpolation:
    def test_types_are_kept(self, write: Write) -> None:
        values = load(write(top="a: {n: 3, l: [1, {x: 2}]}\nb: ${a.n}\nc: ${a.l}\nd: ${a.l.1.x}\ne: n${a.n}"))
        assert (values["b"], values["c"], values["d"], values["e"]) == (3, [1, {"x": 2}], 2, "n3")

    def test_it_sees_the_merged_recipe(self, write: Write) -> None:
        assert load(write(top="_base_: base.yaml\nroot: b", base="root: a\npath: ${root}/x"))["path"] == "b/x"

    def test_all_failures_are_told_together(self, write: Write) -> None:
        told = fails(write(top="a: ${nope}\nb:\n  c: ${also.not}\nd: ${a"))
        assert "top.yaml:4: d: cannot interpolate '${a'" in told
        told = fails(write(top="a: ${nope}\nb:\n  c: ${also.not}"))
        assert "2 problems in recipe" in told
        assert "top.yaml:1: a: cannot interpolate '${nope}': Interpolation key 'nope' not found" in told
        assert "top.yaml:3: b.c: cannot interpolate '${also.not}'" in told

    @pytest.mark.parametrize("text", ["a: ${b}\nb: ${a}", "a: {x: '${a}'}", "a: ${b}\nb: {c: '${a}'}"])
    def test_circle(self, write: Write, text: str) -> None:
        assert "cannot interpolate" in fails(write(top=text))

    @pytest.mark.parametrize("call", ["${oc.env:HOME}", "${ oc.env :HOME}", "x${oc.decode:'1'}", "${a.${oc.env:HOME}}"])
    def test_resolvers_are_refused(self, write: Write, call: str) -> None:
        assert "only the value of a key can be" in fails(write(top=f'a: "{call}"'))


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1e-4", 1e-4),
            ("1E5", 1e5),
            (".5", 0.5),
            ("-.inf", float("-inf")),
            ("10", 10),
            ("010", 10),
            ("on", "on"),
            ("yes", "yes"),
            ("12:30", "12:30"),
            ("2020-01-01", "2020-01-01"),
            ("1_000", "1_000"),
            ("true", True),
            ("~", None),
            ("<<", "<<"),
            ("'1'", "1"),
        ],
    )
    def test_scalars(self, text: str, expected: object) -> None:
        value = parse_yaml(text, "test").value
        assert value == expected
        assert type(value) is type(expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1, 2\nb: 3", "top.yaml:2: not valid YAML"),
            ("a: 1\n b: 2", "top.yaml:2: not valid YAML"),
            ("a:\n\t- 1", "top.yaml:2: not valid YAML"),
            ("a: 1\nb: 2\na: 3", "top.yaml:3: the key 'a' occurs twice (first on line 1)"),
            ("x: {a: 1, a: 2}", "top.yaml:1: the key 'a' occurs twice"),
            ("a: !!python/object/apply:os.system ['touch pwned']", "top.yaml:1: tags such as"),
            ("a: 1\nb: !!python/name:os.system", "top.yaml:2: tags such as"),
            ("a: !!str 1", "top.yaml:1: tags such as"),
            ("a: &x [1]\nb: *x", "top.yaml:1: anchors and aliases are not supported"),
            ("a: &x [*x]", "top.yaml:1: anchors and aliases are not supported"),
            ("1: a", "top.yaml:1: keys must be strings, got '1'"),
            ("? [a]\n: 1", "top.yaml:1: keys must be strings"),
            ("- 1", "top.yaml: expected a mapping"),
            ("just text", "top.yaml: expected a mapping"),
            ("a: 1\n---\nb: 2", "not valid YAML"),
            ("a: \x07", "not valid YAML"),
            (f"a: {'[' * 3000}{']' * 3000}", "nested too deeply"),
        ],
    )
    def test_mistakes_are_one_line(self, write: Write, text: str, message: str) -> None:
        told = fails(write(top=text))
        assert message in told
        assert "\n" not in told

    def test_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "image.yaml"
        path.write_bytes(b"\xff\xd8\xff\xe0")
        assert "not a text file in UTF-8" in fails(path)

    def test_an_empty_file_is_an_empty_recipe(self, write: Write) -> None:
        assert load(write(top="# nothing\n")) == {}

    def test_what_is_dumped_loads_back(self, write: Write) -> None:
        values = {
            "strings": ["on", "1e-4", "010", "null", "", " x ", "a: b", "# no", "ünïcode", "12:30", "line\nbreak", "~"],
            "numbers": [1, -2, 1e-4, 1e-05, 1e300, 0.1, float("inf"), 5.0],
            "other": [True, None, [], {}, [[1, 2], [3]]],
            "shared": {"a": [1], "b": {"type": "X", "values": [1, 2, 3]}},
        }
        values["again"] = values["shared"]
        assert load(write(top=dump_yaml(values))) == values


class TestFinding:
    def test_a_file_goes_before_a_shipped_recipe(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        shipped, own = write(shipped__mine="a: 1"), write(mine="a: 2")
        monkeypatch.setattr("dpipe.recipes.shipped_recipes", lambda: {"mine": shipped})
        assert find_recipe("mine") == shipped
        monkeypatch.chdir(own.parent)
        assert find_recipe("mine").resolve() == own
        assert find_recipe("mine.yaml").resolve() == own

    def test_the_installed_recipes_are_found_by_name(self) -> None:
        names = shipped_recipes()
        assert "cascade_augfpn_autoaug" in names
        assert not any("_base_" in name for name in names)
        assert find_recipe("cascade_augfpn_autoaug") == find_recipe("cascade_augfpn_autoaug.yaml")

    def test_missing(self, tmp_path: Path) -> None:
        told = fails(tmp_path / "none.yaml")
        assert "none.yaml: no such recipe file, and no shipped recipe" in told
        assert "did you mean 'cascade_augfpn_autoaug'?" in fails(Path("cascade_augfpn_autoug.yaml"))

    def test_a_folder_is_no_recipe(self, tmp_path: Path) -> None:
        assert fails(tmp_path) == f"{tmp_path}: is a folder; expected a recipe's file, or the name of a shipped recipe"
        (tmp_path / "config.yaml").write_text("a: 1")
        assert f"expected a recipe's file, such as {tmp_path / 'config.yaml'}, or" in fails(tmp_path)

    def test_where_a_value_was_written(self, write: Write) -> None:
        top = write(top="_base_: base.yaml\na:\n  x: 1", base="\na: {y: 2}\nb: ${a}")
        recipe = load_recipe(top, ["a.z=3"])
        assert recipe.where(("a", "x")) == f"{top}:3"
        assert recipe.where(("a", "y")) == f"{top.with_name('base.yaml')}:2"
        assert recipe.where(("a", "z")) == "command line"
        assert recipe.where(("a",)) == f"{top}:2"
        # What an interpolation brought in is told by the key that holds the interpolation.
        assert recipe.where(("b", "x")) == f"{top.with_name('base.yaml')}:3"

    def test_a_part_that_was_changed_inside_was_written_at_both_places(self, write: Write) -> None:
        top = write(top="a: {type: A, x: 1, b: {type: B}}\nc: [1, 2]\nd: {x: 1}\ne: {type: E}")
        recipe = load_recipe(top, ["a.b.y=2", "c.1=3", "d.x=2", "f={type: F}"])
        assert recipe.where(("a",)) == recipe.where(("a", "b")) == f"{top}:1 and command line"
        assert recipe.where(("a", "x")) == f"{top}:1"
        assert recipe.where(("a", "b", "y")) == recipe.where(("f",)) == "command line"
        assert recipe.where(("c",)) == f"{top}:2 and command line"
        assert recipe.where(("d",)) == f"{top}:3"
        assert recipe.where(("e",)) == f"{top}:4"


def test_modules_are_found_beside_the_recipe_and_in_the_current_folder(tmp_path, monkeypatch):
    for folder in ("beside", "current"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"parts_{folder}.py").touch()
    recipe = tmp_path / "beside" / "recipe.yaml"
    recipe.write_text("a: 1\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path / "current")
    load_recipe(recipe)
    for folder in ("beside", "current"):
        assert import_module(f"parts_{folder}").__file__ == str(tmp_path / folder / f"parts_{folder}.py")
    with pytest.raises(InputError) as error:
        import_module("parts_elsewhere")
    assert str(error.value) == (
        "cannot import 'parts_elsewhere': No module named 'parts_elsewhere' among installed packages, "
        f"in {tmp_path / 'beside'} or in {tmp_path / 'current'}"
    )


def test_modules_beside_a_recipe_are_not_those_of_the_next(tmp_path, monkeypatch):
    (tmp_path / "parts_of_the_first.py").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("a: 1\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    load_recipe(recipe)
    load_recipe("demo_streets")
    with pytest.raises(InputError, match="cannot import"):
        import_module("parts_of_the_first")
