"""Sessions: ``demo`` runs the main job from start to end, ``tests`` the test suite, ``lint`` ruff and mypy.

``browser`` runs the tests that need Chromium, and ``chromium`` installs it; ``tests`` runs them too where it is there.
"""

from __future__ import annotations

import os
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


@nox.session(venv_backend="none")
def chromium(session: nox.Session) -> None:
    """Install Chromium and its driver by apt-get, where they are missing."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        session.error(
            f"{' and '.join(missing)} not found: install Chromium and its driver by your system's package manager, "
            "on Debian and its kin by `apt-get install chromium chromium-driver` as root"
        )
    session.run("apt-get", "update", "-qq", external=True)
    session.run(
        "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver", external=True
    )


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests that need Chromium, which is installed where it is missing."""
    chromium(session)
    session.install(".", *group("tests"))
    session.run("pytest", "-m", "browser", *session.posargs, env={"OMP_NUM_THREADS": "1"})


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
