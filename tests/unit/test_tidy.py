"""Rules that a machine can check: what pure rooms may call, how long things may get, what is banned."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "virtha"
PURE_ROOMS = ("model", "engine", "sentinel", "wire", "scenario", "domainxml", "alerts", "search")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
LONGER_FILES: dict[str, int] = {}
"""What is above it, and how far: none gets longer, and none is added."""
BANNED_FILE_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
# Calls that smuggle I/O, the clock or chance into a pure room without an import to be caught by.
BANNED_CALLS = {"open", "hash", "print", "input", "exec", "eval", "__import__"}
BANNED_METHODS = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}


def _tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [ROOT / name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file()]


def pure_files() -> list[Path]:
    return sorted(path for room in PURE_ROOMS for path in (PACKAGE / room).rglob("*.py"))


def impure_calls(tree: ast.AST) -> list[str]:
    """Banned calls with their line, as `line: name`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in BANNED_CALLS:
            found.append(f"{node.lineno}: {called.id}()")
        if (
            isinstance(called, ast.Attribute)
            and isinstance(called.value, ast.Name)
            and (called.value.id, called.attr) in BANNED_METHODS
        ):
            found.append(f"{node.lineno}: {called.value.id}.{called.attr}()")
    return found


def long_functions(tree: ast.AST) -> list[str]:
    return [
        f"{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]


@pytest.mark.parametrize("path", pure_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_rooms_stay_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert impure_calls(tree) == []
    assert long_functions(tree) == []


def test_the_tidy_rules_can_fail() -> None:
    tree = ast.parse("def f():\n    open('x')\n    datetime.now()\n" + "    pass\n" * 70)
    assert impure_calls(tree) == ["2: open()", "3: datetime.now()"]
    assert long_functions(tree) == ["1: f has 73 lines"]


def test_no_file_of_everything_and_none_too_long() -> None:
    too_long = {}
    for path in _tracked(".py", ".ts", ".tsx"):
        assert path.name not in BANNED_FILE_NAMES, f"{path.name}: name the concern instead"
        lines = len(path.read_text().splitlines())
        name = str(path.relative_to(ROOT))
        if lines > LONGER_FILES.get(name, FILE_LINES_MAX):
            too_long[name] = lines
    assert too_long == {}


def test_nothing_waits_with_wait_for() -> None:
    # Python 3.11's asyncio.wait_for swallows a cancellation that comes together with its result: an
    # agent that was told to stop hung for ever. asyncio.timeout doesn't.
    found = [
        str(path.relative_to(ROOT))
        for path in sorted(PACKAGE.rglob("*.py"))
        if "asyncio.wait_for(" in path.read_text()
    ]
    assert found == []


def test_no_machine_paths_and_no_open_ends_in_the_repository() -> None:
    # Spelled apart, so that this file does not find itself.
    banned = re.compile(
        "|".join(["/wor" + "k/", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"\bTO" + r"DO\b"])
    )
    found = []
    for path in _tracked(".py", ".md", ".toml", ".txt", ".sh", "Makefile", ".yml", ".service"):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if banned.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_lock_file_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "--index" not in lock
    assert "://" not in lock


LINK = re.compile(r"\]\(([^)#\s]+)")


def test_links_of_the_documents_lead_somewhere() -> None:
    lost = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in _tracked(".md")
        for link in LINK.findall(page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert lost == []
