"""A picture of what happened and when: one lane per host or VM, as text and as SVG, of the same list. Pure.

A happening begins a state of its lane, which lasts until the lane's next one.
"""

from collections.abc import Sequence
from enum import StrEnum
from html import escape

from virtha.model.time import format_duration_ms
from virtha.model.value import Value

COLUMNS = 100
NAME_COLUMNS_MAX = 20
TICKS_MAX = 8
_MINUTE_MS = 60_000


class Mood(StrEnum):
    """How a state is drawn."""

    GOOD = "good"
    WAIT = "wait"
    WORK = "work"
    BAD = "bad"
    OVER = "over"


class State(Value, frozen=True, kw_only=True):
    """``mark``: one character, its own among all states of a picture. ``tint_percent``: of its mood's colour,
    so that states of one mood can be told apart."""

    name: str
    mark: str
    mood: Mood
    tint_percent: int = 100
    meaning: str


class Happening(Value, frozen=True, kw_only=True):
    """``at_ms`` counts from the failure, before which it is negative, or from the story's beginning. ``text``: for
    people who point at it."""

    at_ms: int
    lane: str
    state: State
    text: str = ""


class Lane(Value, frozen=True, kw_only=True):
    """``parts``: (from, until, happening), in the order of time and without gaps."""

    name: str
    parts: tuple[tuple[int, int, Happening], ...]


class Timeline(Value, frozen=True, kw_only=True):
    title: str
    begin_ms: int
    end_ms: int
    lanes: tuple[Lane, ...]

    @property
    def states(self) -> tuple[State, ...]:
        """In the order in which they first appear, lane by lane."""
        states = (happening.state for lane in self.lanes for _, _, happening in lane.parts)
        return tuple(dict.fromkeys(states))


def make_timeline(
    title: str, happenings: Sequence[Happening], *, end_ms: int | None = None
) -> Timeline:
    """Lanes stand in the order in which they are first named. ``end_ms``: None: a little after the last happening.
    Raises ValueError when there is nothing."""
    if not happenings:
        raise ValueError("a timeline of nothing")
    by_lane: dict[str, list[Happening]] = {}
    for one in happenings:
        by_lane.setdefault(one.lane, []).append(one)
    begin = min(one.at_ms for one in happenings)
    last = max(one.at_ms for one in happenings)
    # The last states must be seen: they get a tenth of the picture.
    end = last + max((last - begin) // 9, 1) if end_ms is None else max(end_ms, last + 1)
    lanes = []
    for name, group in by_lane.items():
        ordered = sorted(group, key=lambda one: one.at_ms)
        ends = [one.at_ms for one in ordered[1:]] + [end]
        parts = [
            (one.at_ms, until, one)
            for one, until in zip(ordered, ends, strict=True)
            if until > one.at_ms
        ]
        lanes.append(Lane(name=name, parts=tuple(parts)))
    return Timeline(title=title, begin_ms=begin, end_ms=end, lanes=tuple(lanes))


def ticks(timeline: Timeline) -> tuple[int, ...]:
    """Round times inside it, the failure's among them; ``TICKS_MAX`` at most."""
    length = timeline.end_ms - timeline.begin_ms
    step = next(
        size * unit
        for unit in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10**7, 10**8, 10**9, 10**10)
        for size in (1, 2, 5)
        if length <= size * unit * TICKS_MAX
    )
    first = -(-timeline.begin_ms // step) * step
    return tuple(range(first, timeline.end_ms + 1, step))


def shown_ms(at_ms: int) -> str:
    """A time of the picture: ``0s``, ``2.5s``, ``-1s``, ``1m20s``; side by side, so minutes are split off of all."""
    if at_ms < 0:
        return f"-{shown_ms(-at_ms)}"
    minutes, rest_ms = divmod(at_ms, _MINUTE_MS)
    if minutes == 0 or rest_ms == 0:
        return format_duration_ms(at_ms) if at_ms else "0s"
    return f"{minutes}m{format_duration_ms(rest_ms)}"


# Text


def timeline_text(timeline: Timeline, *, columns: int = COLUMNS) -> str:
    """Lines of at most ``columns`` characters, a legend below."""
    names = min(max(len(lane.name) for lane in timeline.lanes), NAME_COLUMNS_MAX)
    width = columns - names - 1
    length = timeline.end_ms - timeline.begin_ms
    lines = [timeline.title, "", " " * (names + 1) + _axis(timeline, width)]
    for lane in timeline.lanes:
        cells = [" "] * width
        # Short states last: one that is shorter than a column is seen all the same.
        for begin, until, happening in sorted(lane.parts, key=lambda part: part[0] - part[1]):
            first = (begin - timeline.begin_ms) * width // length
            after = max((until - timeline.begin_ms) * width // length, first + 1)
            cells[first:after] = happening.state.mark * (after - first)
        lines.append(f"{_short(lane.name, names):<{names}} {''.join(cells)}".rstrip())
    lines.append("")
    wide = max(len(state.name) for state in timeline.states)
    lines += [f"  {one.mark}  {one.name:<{wide}}  {one.meaning}" for one in timeline.states]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _axis(timeline: Timeline, width: int) -> str:
    length = timeline.end_ms - timeline.begin_ms
    cells = [" "] * width
    free = 0
    for tick in ticks(timeline):
        label = f"|{shown_ms(tick)}"
        first = (tick - timeline.begin_ms) * width // length
        if first >= free and first + len(label) <= width:
            cells[first : first + len(label)] = label
            free = first + len(label) + 1
    return "".join(cells).rstrip()


def _short(name: str, columns: int) -> str:
    return name if len(name) <= columns else f"{name[: columns - 1]}…"


# SVG

_FILL = {
    Mood.GOOD: "#3e8635",
    Mood.WAIT: "#f0ab00",
    Mood.WORK: "#2b9af3",
    Mood.BAD: "#c9190b",
    Mood.OVER: "#6a6e73",
}
_LANE = 18
_BAR = 12
_TOP = 62
_WIDTH = 1_000
_LEGEND_WIDTH = 320
_SVG_NAME_MAX = 40
_LETTER = 6.6
"""Width of one character of the names, about."""


def timeline_svg(timeline: Timeline) -> str:
    """One self-contained SVG document; each bar tells its text to who points at it."""
    left = int(min(max(len(lane.name) for lane in timeline.lanes), _SVG_NAME_MAX) * _LETTER) + 24
    right = _WIDTH - 20
    bottom = _TOP + _LANE * len(timeline.lanes)
    per_row = max((_WIDTH - 40) // _LEGEND_WIDTH, 1)
    states = timeline.states
    height = bottom + 24 + 18 * -(-len(states) // per_row)

    def x(at_ms: int) -> float:
        share = (at_ms - timeline.begin_ms) / (timeline.end_ms - timeline.begin_ms)
        return round(left + (right - left) * share, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(timeline.title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="24" font-size="15" font-weight="bold">{escape(timeline.title)}</text>',
    ]
    for tick in ticks(timeline):
        at = x(tick)
        ink = "#151515" if tick == 0 else "#d2d2d2"
        lines += [
            f'<line x1="{at}" y1="{_TOP - 6}" x2="{at}" y2="{bottom}" stroke="{ink}"/>',
            f'<text x="{at}" y="{_TOP - 12}" text-anchor="middle">{shown_ms(tick)}</text>',
        ]
    for row, lane in enumerate(timeline.lanes):
        top = _TOP + row * _LANE
        lines.append(
            f'<text x="{left - 10}" y="{top + 13}" text-anchor="end">'
            f"{escape(_short(lane.name, _SVG_NAME_MAX))}</text>"
        )
        for begin, until, happening in lane.parts:
            told = f"{lane.name}, {shown_ms(begin)}: {happening.text or happening.state.meaning}"
            lines.append(
                f'<rect x="{x(begin)}" y="{top + 3}" width="{max(round(x(until) - x(begin), 1), 1)}" '
                f'height="{_BAR}" {_paint(happening.state)}>'
                f"<title>{escape(told)}</title></rect>"
            )
    for number, state in enumerate(states):
        across, down = number % per_row, number // per_row
        at, top = 20 + across * _LEGEND_WIDTH, bottom + 18 + 18 * down
        lines += [
            f'<rect x="{at}" y="{top - 10}" width="14" height="{_BAR}" {_paint(state)}/>',
            f'<text x="{at + 20}" y="{top}">{escape(f"{state.name}: {state.meaning}")}</text>',
        ]
    return "\n".join((*lines, "</svg>")) + "\n"


def _paint(state: State) -> str:
    return f'fill="{_FILL[state.mood]}" fill-opacity="{state.tint_percent / 100:g}"'
