"""What a failed lab test is shown with: said also where its hosts are off and its server is gone."""

from pathlib import Path

from loaded_script import load_script

from virtha.lab.lab import Lab
from virtha.lab.state import LabState, NodeState, write_state


def test_a_host_that_is_off_has_its_logs_all_the_same(tmp_path: Path) -> None:
    nodes = tuple(
        NodeState(name=name, kind="host" if name != "server" else "server", number=number)
        for number, name in enumerate(("server", "h1", "h2"), 1)
    )
    write_state(LabState(id="vl1", directory=str(tmp_path), nodes=nodes))
    lab = Lab(tmp_path)
    for host in lab.hosts:
        host.logs.mkdir(parents=True)
        (host.logs / "guardian.log").write_text(f"{host.name} lost its lease\n")
    said = load_script("last_words", folder="tests/lab").last_words(lab)
    for host in lab.hosts:
        assert f"-- {host.name}: no answer: {host.name} is off" in said
        assert f"{host.name} lost its lease" in said
    assert said.count("no answer: ") == 4, "nor has the server one to operations and to events"
