import subprocess
import sys

import pytest

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
    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        _ = dpipe.Loader  # type: ignore[attr-defined,unused-ignore]
