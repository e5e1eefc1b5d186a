"""Small edits of an app's files: where to find a place, and what to write there."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Edit:
    r"""Write ``new`` in the places of a file that match.

    Attributes
    ----------
    file
        The file, from the app's folder.
    pattern
        A regular expression, in which ``^`` and ``$`` are ends of lines.
    new
        What to write there, with ``\1`` and so on for the groups of the pattern; nothing deletes.
    times
        In how many places.
    """

    file: str
    pattern: str
    new: str = ""
    times: int = 1


def convert(example: str, folder: Path, edits: Iterable[Edit]) -> int:
    """Edit an app's files in place; return how many lines are new.

    Raises
    ------
    ConfigError
        If a file or a place is missing, which names the example, the file and the pattern.
    """
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    for edit in edits:
        path = folder / edit.file
        if path not in before:
            before[path] = after[path] = _read(example, path, edit)
        after[path], times = re.subn(edit.pattern, edit.new, after[path], flags=re.MULTILINE)
        if times != edit.times:
            raise ConfigError(
                f"{example}: {edit.file} has {times} places that match {edit.pattern!r}; expected {edit.times}. The "
                "checkout holds another version of the example, so its conversion has to be written anew"
            )
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return sum(count_added(before[path], after[path]) for path in after)


def count_added(before: str, after: str) -> int:
    """Return how many lines a diff adds; blank ones do not count."""
    old, new = before.splitlines(), after.splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(_filled(new[first:last]) for kind, _, _, first, last in changes if kind != "equal")


def _filled(lines: Sequence[str]) -> int:
    return sum(bool(line.strip()) for line in lines)


def _read(example: str, path: Path, edit: Edit) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{example}: {edit.file} cannot be read ({error.strerror}), so {edit.pattern!r} cannot be looked for. "
            "Expected the examples of Flower's repository"
        ) from error
