"""Sessions: ``demo`` runs the main job from start to end, ``tests`` the test suite, ``lint`` ruff and mypy."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
DEMO = Path("demo")


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, name)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments after ``--`` go to pytest."""
    session.install(".", *group("tests"))
    # A process on each core, with one thread: half the time. Files stay whole, as their fixtures are costly.
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    session.install(".", *group("lint"), *group("tests"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """Build a small street data set, convert it, train on it, evaluate and draw, all under ``demo/``."""
    session.install(".")
    if DEMO.exists():
        shutil.rmtree(DEMO)
    streets, run = DEMO / "streets", DEMO / "run"
    annotations = streets / "annotations"
    session.run("python", "examples/street_scenes.py", str(streets))
    session.run("dpipe", "convert", "cityscapes", str(streets))
    session.run(
        "dpipe", "preview",
        str(annotations / "instancesonly_filtered_gtFine_train.json"), str(streets / "leftImg8bit" / "train"),
        "--config", "demo_streets", "-o", str(DEMO / "augmented.png"),
    )  # fmt: skip
    recipe = ("demo_streets", f"data.root={streets}")
    session.run("detect", "train", *recipe, "--work-dir", str(run))
    checkpoint = str(run / "checkpoints" / "last")
    session.run("detect", "test", recipe[0], checkpoint, recipe[1], "--eval", "bbox", "segm")
    pictures = sorted((streets / "leftImg8bit" / "val").glob("*/*.png"))[:8]
    session.run("detect", "predict", recipe[0], checkpoint, *map(str, pictures), "-o", str(DEMO / "predictions"))
    session.log(
        f"augmented samples: {DEMO / 'augmented.png'}; predictions on held-back pictures: {DEMO / 'predictions'}"
    )
