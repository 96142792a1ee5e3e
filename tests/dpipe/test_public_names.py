import subprocess
import sys
from importlib.resources import files

import pytest

import converters
import detect
import dpipe

HEAVY = ("torch", "cv2", "numpy", "PIL", "nvidia.dali")


def test_importing_dpipe_imports_nothing_heavy() -> None:
    code = f"import sys, dpipe; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name, module in dpipe.MODULES.items():
        assert getattr(dpipe, name).__module__ == module
        assert name in dir(dpipe)
    assert set(dpipe.__all__) == set(dpipe.MODULES)
    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        _ = dpipe.Loader  # type: ignore[attr-defined,unused-ignore]


@pytest.mark.parametrize("package", [converters, dpipe, detect])
def test_a_star_imports_the_public_names_and_no_others(package) -> None:
    names: dict[str, object] = {}
    exec(f"from {package.__name__} import *", names)
    assert set(names) - {"__builtins__"} == set(package.__all__)
    assert all(getattr(names[name], "__name__", name) == name for name in package.__all__)


@pytest.mark.parametrize("package", ["converters", "dpipe", "detect"])
def test_a_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()
