"""Man pages: every command is in one, and each is what man can read."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fake_api import Ran

from virtha.cli.main import NOUNS, main
from virtha.cli.man import noun_page, overview_page
from virtha.model.errors import Failed

Run = Callable[..., Ran]
ORDERS = {"TH", "SH", "SS", "TP", "PP", "B", "BR", "br", "nh", "ad"}


def checked(page: str) -> None:
    for line in page.splitlines():
        assert line.strip(), "an empty line is a gap in the page"
        if line.startswith((".", "'")):
            assert line[1:].split(" ")[0] in ORDERS, line
        # Nothing but our own escapes: what was a backslash is \e.
        assert set(re.findall(r"\\(.)", line)) <= set("fe-&( "), line
    assert page.startswith(".TH ") and page.endswith("\n")


def test_the_overview_names_every_noun_and_exit_code() -> None:
    page = overview_page()
    checked(page)
    for noun in NOUNS:
        escaped = noun.replace("-", r"\-")
        assert rf".BR virtha\-{escaped} (1)" in page
    assert "refused by policy or safety; the reason is printed" in page
    assert "VIRTHA_URL" in page


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_each_noun_has_its_page_with_all_its_commands(noun: str) -> None:
    page = noun_page(noun)
    checked(page)
    escaped = noun.replace("-", r"\-")
    assert f".SH NAME\nvirtha\\-{escaped} \\- " in page
    if noun == "vm":
        for command in ("list", r"power\-off", "watchdog set"):
            assert f".SS virtha vm {command}" in page
        assert r"\fIVM\fR\ ..." in page
        assert r"virtha vm list [\fIOPTIONS\fR]" in page.replace(r"\fB", "").replace(r"\fR [", " [")
        assert "\\fIbridge=BR,...\\fR" in page
        assert "\n.PP\nFor example: virtha vm create" in page
        # An option with a value is seen to have one, and which words it takes.
        assert r"\fB\-\-machine\fR \fIq35|pc|" in page
        assert r"\fB\-\-cluster\fR \fITEXT\fR" in page
        assert r"\fB\-\-vcpus\fR \fIN\fR" in page
        assert "\n\\fB\\-\\-start\\fR\n" in page
    if noun == "simulate":
        assert r"[[" not in page
    if noun == "notify":
        assert r"\fIID\fR\ ..." in page and "ID..." not in page


def test_groff_warns_of_nothing() -> None:
    pages = "".join([overview_page(), *map(noun_page, NOUNS)])
    ran = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", "-K", "utf8"],
        input=pages.encode(),
        capture_output=True,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.req("L6")
def test_man_itself_shows_each_page_and_whatis_finds_it(tmp_path: Path) -> None:
    """As a user reads them, by man's own path: with no warning, nothing cut, and a line for `man -k`."""
    place = tmp_path / "man1"
    place.mkdir()
    assert main(["man", "--write", str(place)]) == 0
    env = {**os.environ, "MANPATH": str(tmp_path), "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    for page in sorted(place.iterdir()):
        name = page.name.removesuffix(".1")
        shown = subprocess.run(["man", "--warnings", name], env=env, capture_output=True, text=True)
        assert (shown.returncode, shown.stderr) == (0, ""), name
        assert "NAME\n" in shown.stdout and f"{name} - " in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 80, name
        brief = subprocess.run(["lexgrog", str(page)], capture_output=True, text=True)
        assert f'"{name} - ' in brief.stdout


def test_written_to_a_directory(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = noun_page

    def without_the_lab(noun: str) -> str:
        if noun == "lab":
            raise Failed("needs a package")
        return real(noun)

    monkeypatch.setattr("virtha.cli.man.noun_page", without_the_lab)
    ran = run("man", "--write", str(tmp_path))
    assert ran.code == 0 and ran.out == f"{len(NOUNS)} pages written to {tmp_path}\n"
    assert ran.err == "not installed here: lab\n"
    assert (tmp_path / "virtha.1").read_text() == overview_page()
    assert len(list(tmp_path.glob("*.1"))) == len(NOUNS)


def test_printed(run: Run) -> None:
    assert run("man", "vm") == Ran(0, noun_page("vm"), "")
    assert run("man") == Ran(0, overview_page(), "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("man", "vmm"), "NOUN: 'vmm' is no noun"),
        (("man", "vm", "--write", "/tmp"), "NOUN: all pages are written"),
        (("man", "--write", "/no/such"), "--write: there is no directory /no/such"),
    ],
)
def test_what_can_not_be(words: tuple[str, ...], said: str, run: Run) -> None:
    ran = run(*words)
    assert ran.code == 2 and said in ran.err
