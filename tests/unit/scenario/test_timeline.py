"""The picture of a timeline, as text and as SVG: whatever the list, nothing is drawn outside or twice."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as some

from virtha.scenario.timeline import (
    COLUMNS,
    NAME_COLUMNS_MAX,
    TICKS_MAX,
    Happening,
    Mood,
    State,
    make_timeline,
    shown_ms,
    ticks,
    timeline_svg,
    timeline_text,
)

pytestmark = pytest.mark.req("X3")

UP = State(name="up", mark="-", mood=Mood.GOOD, meaning="it beats")
DOWN = State(name="down", mark="_", mood=Mood.BAD, tint_percent=50, meaning="it is <gone>")
STATES = (UP, DOWN)
SVG = "{http://www.w3.org/2000/svg}"


def happening(at_ms: int, lane: str, state: State) -> Happening:
    return Happening(at_ms=at_ms, lane=lane, state=state)


def test_a_small_picture() -> None:
    picture = make_timeline(
        "What if?",
        [
            happening(-1_000, "h1", UP),
            happening(0, "h1", DOWN),
            happening(8_000, "h1", UP),
            happening(-1_000, "a-name-that-is-much-too-long", UP),
        ],
    )
    assert timeline_text(picture, columns=61) == (
        "What if?\n"
        "\n"
        "                         |0s     |2s     |4s     |6s     |8s\n"
        "h1                   ----________________________________----\n"
        "a-name-that-is-much… ----------------------------------------\n"
        "\n"
        "  -  up    it beats\n"
        "  _  down  it is <gone>\n"
    )


def test_a_short_state_is_seen() -> None:
    picture = make_timeline(
        "t", [happening(0, "h1", UP), happening(50_000, "h1", DOWN), happening(50_001, "h1", UP)]
    )
    assert "_" in timeline_text(picture).splitlines()[3]


def test_two_states_at_the_same_moment_leave_the_later_one() -> None:
    picture = make_timeline("t", [happening(0, "h1", UP), happening(0, "h1", DOWN)])
    assert [part[2].state for part in picture.lanes[0].parts] == [DOWN]


def test_nothing_has_no_picture() -> None:
    with pytest.raises(ValueError, match="nothing"):
        make_timeline("t", [])


def test_what_is_drawn_is_text_not_markup() -> None:
    told = Happening(at_ms=0, lane="h1", state=DOWN, text='</svg><script>"&')
    root = ElementTree.fromstring(timeline_svg(make_timeline("a & b", [told])))
    assert [one.text for one in root.findall(f"{SVG}title")] == ["a & b"]
    (bar, _legend) = root.findall(f"{SVG}rect")[1:]
    assert [one.text for one in bar] == ['h1, 0s: </svg><script>"&']
    assert list(root.iter(f"{SVG}script")) == []


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "0s"),
        (-1_500, "-1.5s"),
        (40, "40ms"),
        (61_000, "1m1s"),
        (-80_500, "-1m20.5s"),
        (120_000, "2m"),
    ],
)
def test_times(at_ms: int, text: str) -> None:
    assert shown_ms(at_ms) == text


LISTS = some.lists(
    some.builds(
        happening,
        some.integers(-(10**7), 10**9),
        some.sampled_from(["h1", "h2", "a-long-name-of-a-virtual-machine"]),
        some.sampled_from(STATES),
    ),
    min_size=1,
    max_size=30,
)


@given(LISTS)
def test_every_list_has_a_picture_in_its_frame(happenings: list[Happening]) -> None:
    picture = make_timeline("t", happenings)
    assert len(ticks(picture)) <= TICKS_MAX + 1
    assert all(picture.begin_ms <= tick <= picture.end_ms for tick in ticks(picture))
    for lane in picture.lanes:
        ends = [until for _, until, _ in lane.parts]
        begins = [begin for begin, _, _ in lane.parts]
        assert begins[1:] == ends[:-1]
        assert ends[-1] == picture.end_ms
    lines = timeline_text(picture).splitlines()
    assert max(len(line) for line in lines) <= COLUMNS
    names = {lane.name[: NAME_COLUMNS_MAX - 1] for lane in picture.lanes}
    assert len(names) == len({one.lane for one in happenings})
    root = ElementTree.fromstring(timeline_svg(picture))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.findall(f"{SVG}rect"):
        assert float(rect.get("x", "0")) >= 0
        assert float(rect.get("x", "0")) + float(rect.attrib["width"]) <= width
        assert float(rect.get("y", "0")) + float(rect.attrib["height"]) <= height
    for text in root.findall(f"{SVG}text"):
        assert 0 < float(text.attrib["y"]) <= height
