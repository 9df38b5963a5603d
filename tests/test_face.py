"""What ``import stillhouse`` gives, and what it does not import yet."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import stillhouse


@pytest.mark.parametrize("name", ["refresh", "watch"])
def test_a_submodule_does_not_take_the_place_of_a_function(name: str) -> None:
    """Python sets an imported submodule on its package, so no module of the package may be called like its face."""
    for module in (
        "stillhouse.refreshing",
        "stillhouse.refreshing.run",
        "stillhouse.watching",
        "stillhouse.watching.run",
    ):
        import_module(module)
    assert callable(getattr(stillhouse, name))


@pytest.mark.parametrize("name", stillhouse.__all__)
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert getattr(stillhouse, name) is not None
    assert name in dir(stillhouse)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'stillhouse' has no attribute 'refreshh'"):
        _ = stillhouse.refreshh


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'mlflow', 'pandas', 'numpy', 'prefect', 'great_expectations', 'onnxruntime', 'deltalake'}"
    code = f"import sys, stillhouse; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_doctest_of_the_face() -> None:
    import doctest

    assert doctest.testmod(stillhouse) == (0, 2)
