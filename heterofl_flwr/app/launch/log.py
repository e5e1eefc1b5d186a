"""What Flower's log says about the end of a run."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) :\s+")
_RAISED = re.compile(r"(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Fault)): ?(?P<text>.*)")
# What only passes on what another one said.
_WRAPPERS = ("RayTaskError", "ClientAppException", "LoadClientAppError", "ActorDiedError")
_NO_RESULTS = re.compile(r"Received 0 results and (?P<failures>[1-9]\d*) failures")
_RUN = re.compile(r"Successfully started run (?P<id>\d+)")
_FRAME = "│╭╮╰╯─ "
TAIL = 15
DEPTH = 4


def lines_of(path: Path) -> list[str]:
    """Return the lines of a log without colours and log levels."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [_LEVEL.sub("", _COLOURS.sub("", line)).rstrip() for line in text.splitlines()]


def run_id(lines: Sequence[str]) -> str | None:
    """Return the number of the run that Flower started, if it did."""
    return next((match["id"] for line in lines if (match := _RUN.search(line))), None)


def failed_round(lines: Sequence[str]) -> str | None:
    """Say that a round had no result at all, which Flower's own strategies pass over."""
    match = next((match for line in lines if (match := _NO_RESULTS.search(line))), None)
    return f"in a round all {match['failures']} clients that were asked failed" if match else None


def cause(lines: Sequence[str]) -> str:
    """Return what was raised, with the whole text of our own errors; '' if the log tells of nothing."""
    found = _raised(lines)
    if found is None:
        return ""
    number, match = found
    if not match["kind"].startswith("heterofl_flwr."):
        return f"{match['kind'].rpartition('.')[2]}: {match['text']}".strip()
    return "\n".join([match["text"], *takewhile(lambda line: line.startswith("  "), lines[number + 1 :])])


def traceback(lines: Sequence[str]) -> list[str]:
    """Return where the cause was raised, or the end of the log. Our own errors say all that is to be said."""
    found = _raised(lines)
    if found is None:
        return list(filter(None, (line.strip(_FRAME) for line in lines)))[-TAIL:]
    if found[1]["kind"].startswith("heterofl_flwr."):
        return []
    before = takewhile(lambda line: line.startswith("  "), reversed(lines[: found[0]]))
    code = [line for line in before if line.strip("^~ ")]
    return list(reversed(code[:DEPTH]))


def _raised(lines: Sequence[str]) -> tuple[int, re.Match[str]] | None:
    """Return the last exception of a log, and its line; one that does not merely pass another on, if there is one."""
    raised = [(number, match) for number, line in enumerate(lines) if (match := _RAISED.match(line))]
    own = [(number, match) for number, match in raised if not match["kind"].endswith(_WRAPPERS)]
    return next(reversed(own or raised), None)
