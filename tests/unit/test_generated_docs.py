"""Generated pages are what the code says now."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _docs_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("virtha_docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(_docs_script().PAGES))
def test_page_is_fresh(page: str) -> None:
    script = _docs_script()
    written = ROOT / "docs" / "reference" / page
    assert written.is_file(), "run `make docs`"
    assert written.read_text() == script.PAGES[page](), "run `make docs`"
