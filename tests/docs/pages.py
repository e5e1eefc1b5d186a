"""The pages of the documentation, their blocks of code, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
APP = DOCS / "howto" / "flower-app.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>.*)$")
_FILE = re.compile(r"# (?P<path>[\w/]+\.(?:py|toml))\n")
_SKIPPED = re.compile(r"# not run: (?P<reason>\S.*)\n")
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its first line, its language and what it holds."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The file that the block is, if its first line is a comment with a path."""
        match = _FILE.match(self.code)
        return match["path"] if match else None

    @property
    def skipped(self) -> str | None:
        """Why the block is not run, if its first line says so; the reader sees that line too."""
        match = _SKIPPED.match(self.code)
        return match["reason"] if match else None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's blocks in these languages, in their order."""
    return [block for block in fences(page) if block.language in languages]


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each shell command of a page with its line, as words, without comments and variables set for it."""
    for block in blocks(page, "bash", "sh", "shell", "console"):
        joined = block.code.replace("\\\n", "  ")
        for number, line in enumerate(joined.splitlines()):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and _ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            if words:
                yield block.line + number, words


def fences(page: Path) -> Iterator[Block]:
    """Yield every fenced block of a page; the directives of the site, such as ``{toctree}``, are among them."""
    opened: tuple[int, str, str] | None = None
    held: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if opened is None and match:
            opened, held = (number + 1, match["ticks"], match["info"].strip()), []
        elif opened is not None and match and match["ticks"] == opened[1] and not match["info"]:
            yield Block(page, opened[0], opened[2], "".join(f"{text}\n" for text in held))
            opened = None
        elif opened is not None:
            held.append(line)
    assert opened is None, f"{page}: the block in line {opened[0]} has no end"
