"""The judgement of the demo's host story: what may be said to have held."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtha.lab import demo
from virtha.lab.host_story import HostLoss, HostStory, runs_elsewhere_once
from virtha.lab.lab import Lab
from virtha.lab.progress import Steps
from virtha.model.errors import Failed


@pytest.mark.parametrize(
    ("copies", "writers", "holds"),
    [
        (["h2"], ["h1", "h2"], True),
        (["h1"], ["h1"], False),
        ([], ["h1"], False),
        ([], ["h1", "h2"], False),
        (["h1", "h2"], ["h1", "h2"], False),
        (["h2", "h3"], ["h1", "h2", "h3"], False),
        (["h2"], ["h1"], False),
        (["h2"], ["h1", "h3", "h2"], False),
        (["h2"], ["h1", "h2", "h1"], False),
        (["h2"], ["h1", "h2", "process 7", "h2"], False),
    ],
    ids=[
        "elsewhere now",
        "still where the power went",
        "nowhere, and never elsewhere",
        "nowhere any more",
        "there and elsewhere",
        "elsewhere twice",
        "elsewhere, and never wrote",
        "wrote from two other hosts",
        "the lost host wrote last",
        "written to by what is no host",
    ],
)
def test_a_vm_is_recovered_that_runs_and_writes_elsewhere_once(
    copies: list[str], writers: list[str], holds: bool
) -> None:
    assert runs_elsewhere_once(copies, writers, victim="h1") is holds


@pytest.mark.parametrize("copies", [[], ["h1"], ["h2", "h3"]], ids=["gone", "moved", "twice"])
def test_a_vm_of_another_host_has_to_be_where_it_was(copies: list[str]) -> None:
    made = cast("Lab", SimpleNamespace(copies_of=lambda _: copies))
    told = HostStory(cast("Any", SimpleNamespace(lab=made)), Steps())
    disk = SimpleNamespace(writers=["h3"])
    witnesses: Any = SimpleNamespace(error=None, of={"web1": disk})
    with pytest.raises(Failed, match="before the cut on h3"):
        told._check_disks(witnesses, "h1", {"web1": "h3"})
    told._check_disks(witnesses, "h1", {"web1": "h1"})  # counted, not refused


@pytest.mark.parametrize(("recovered", "holds"), [(("a", "b"), True), (("a",), False), ((), False)])
def test_the_demos_figure_fails_with_a_vm_that_does_not_run_once(
    recovered: tuple[str, ...], holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = HostLoss(lost=("a", "b"), recovered=recovered, took_s=2.0, double_runs=0)
    monkeypatch.setattr(demo, "Story", lambda _: SimpleNamespace())
    monkeypatch.setattr(demo, "HostStory", lambda *_: SimpleNamespace(tell=lambda victim: loss))
    home = SimpleNamespace(name="h1")
    made: Any = SimpleNamespace(host_of=lambda _: home, directory=Path("/nowhere"))
    shown = demo.Demo(made, Steps())
    shown.host_loses_power(cast("Any", home), None, cast("Any", None))
    figures = {one.key: one for one in shown.figures}
    assert figures["host_vms_recovered"].value == len(recovered)
    assert figures["host_vms_recovered"].holds is holds
