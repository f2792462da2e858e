"""The end of the demo: its lab goes only when its journal was replayed and decided the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from virtha.lab import demo
from virtha.lab.journals import Journals, Replayed
from virtha.model.errors import Failed


@pytest.fixture
def downs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each `down` whether it kept the files. All parts of the demo hold."""
    found: list[bool] = []
    # Nothing is made there; where tests keep theirs is too long a path for a lab's sockets.
    directory = Path("/tmp/virtha-demo-test")

    def tell(self: demo.Demo) -> None:
        for key in demo.KEYS[:-1]:
            self._figure(key, key, 1, holds=True)

    monkeypatch.setenv("VIRTHA_LAB", str(directory))
    monkeypatch.delenv("KEEP", raising=False)
    made = SimpleNamespace(directory=directory, server=SimpleNamespace(root=directory))
    monkeypatch.setattr(demo.lab, "up", lambda *_, **__: made)
    monkeypatch.setattr(
        demo.lab, "down", lambda *_, keep_files=False, **__: found.append(keep_files)
    )
    monkeypatch.setattr(demo, "Story", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(demo.Demo, "_tell_parts", tell)
    return found


@pytest.mark.req("X2")
@pytest.mark.parametrize(
    ("replayed", "ends"), [(Replayed(turns=9), 0), (Replayed(turns=9, differ=1), 1)]
)
def test_the_demo_ends_with_the_turns_of_its_journal_and_fails_when_one_differs(
    downs: list[bool],
    replayed: Replayed,
    ends: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def replay(self: Journals) -> Replayed:
        assert downs == [False], "it goes with its lab"
        self.replayed = replayed
        return replayed

    monkeypatch.setattr(Journals, "replay", replay)
    assert demo.main() == ends
    assert downs == [False, ends == 1]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["replayed_turns"] == 9


def test_the_journal_of_a_demo_that_failed_is_replayed_as_well(
    downs: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: demo.Demo) -> None:
        raise Failed("web1 is not running")

    def unreadable(_: Journals) -> Replayed:
        raise Failed("virtha replay ended with 1")

    monkeypatch.setattr(demo.Demo, "_tell_parts", fails)
    monkeypatch.setattr(Journals, "replay", unreadable)
    assert demo.main() == 1
    assert downs == [False, True]
    said = capsys.readouterr().out
    assert "failed: web1 is not running" in said and "virtha replay ended with 1" in said
