"""Which test covers which requirement: read from the `req` markers in the test files' syntax trees."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _ids(node: ast.AST) -> list[str]:
    """The ids of every `pytest.mark.req("W7", …)` inside ``node``."""
    return [
        argument.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "req"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def covered() -> dict[str, list[str]]:
    """Requirement id -> `file::test`, sorted. A module's `pytestmark` counts for all its tests."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        module_ids = [
            each
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
            for each in _ids(node.value)
        ]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [each for decorator in node.decorator_list for each in _ids(decorator)]
                for each in (*module_ids, *own):
                    found[each].add(f"{path.relative_to(ROOT)}::{node.name}")
    return {each: sorted(tests) for each, tests in found.items()}


def _order(requirement: str) -> tuple[str, int, str]:
    digits = requirement[1:]
    return requirement[:1], int(digits) if digits.isdigit() else 0, requirement


def coverage_markdown() -> str:
    lines = [
        "# Requirements and the tests that cover them",
        "",
        "Generated from the `req` markers by `make docs`. A row that is missing has no test yet.",
        "",
    ]
    tests = covered()
    for requirement in sorted(tests, key=_order):
        lines += [f"## {requirement}", ""]
        lines += [f"- `{test}`" for test in tests[requirement]]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
