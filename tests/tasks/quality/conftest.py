"""The corpus of clean conversations and classes of defects, as a fixture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nightowl_quality_corpus", Path(__file__).with_name("corpus.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CORPUS = _load()


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """tests/tasks/quality/corpus.py"""
    return CORPUS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `defect` runs for every class."""
    if "defect" in metafunc.fixturenames:
        metafunc.parametrize("defect", list(CORPUS.DEFECTS))
