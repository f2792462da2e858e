"""Writes the generated pages of docs/reference; with --check only says which are stale.

Each page has one source of truth in the code: the registry of codes, the table of agent properties, the
API's types, the CLI's commands, the transition tables.
"""

import sys
from collections.abc import Callable
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def _codes() -> str:
    from virtha.model.codes.reference import reference_markdown

    return reference_markdown()


def _properties() -> str:
    from virtha.agent.property_table import reference_page

    return reference_page()


def _openapi() -> str:
    from virtha.api.openapi import document_json

    return document_json()


def _commands() -> str:
    from virtha.cli.reference import reference_markdown

    return reference_markdown()


def _states() -> str:
    from virtha.engine.machine import VM_TRANSITIONS
    from virtha.engine.records import VmStage
    from virtha.model.diagram import mermaid
    from virtha.model.vm import VmState
    from virtha.sentinel.machine import TRANSITIONS

    return (
        "# States of a VM\n\nGenerated from the transition tables by `make docs`.\n\n"
        "## On its host, as the sentinel sees it (`virtha/sentinel/machine.py`)\n\n"
        f"```mermaid\n{mermaid(TRANSITIONS, start=VmState.DOWN)}```\n\n"
        "## Its recovery, as the engine leads it (`virtha/engine/machine.py`)\n\n"
        f"```mermaid\n{mermaid(VM_TRANSITIONS, start=VmStage.SETTLED)}```\n"
    )


def _policy() -> str:
    from virtha.model.policy.reference import reference_markdown

    return reference_markdown()


def _requirements() -> str:
    sys.path.insert(0, str(Path(__file__).parent))
    from requirement_coverage import coverage_markdown

    return coverage_markdown()


def _scenarios() -> str:
    from virtha.scenario.reference import reference_markdown

    return reference_markdown()


def _search() -> str:
    from virtha.search.reference import reference_markdown
    from virtha.store.search_fields import VOCABULARY

    return reference_markdown(VOCABULARY)


def _bad_input() -> str:
    sys.path.insert(0, str(Path(__file__).parent))
    from requirement_coverage import bad_input_markdown

    return bad_input_markdown()


PAGES: dict[str, Callable[[], str]] = {
    "codes.md": _codes,
    "agent-properties.md": _properties,
    "openapi.json": _openapi,
    "commands.md": _commands,
    "states.md": _states,
    "policy.md": _policy,
    "requirements.md": _requirements,
    "bad-input.md": _bad_input,
    "scenarios.md": _scenarios,
    "search.md": _search,
}


def stale_pages() -> list[str]:
    return [
        name
        for name, make in PAGES.items()
        if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text() != make()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = stale_pages()
        for name in stale:
            print(f"docs/reference/{name} is stale: run `make docs`")
        return 1 if stale else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make())
        print(f"docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
