"""The README as PyPI shows it, which has none of the repository's files."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")


def with_absolute_links(text: str, repository: str | None) -> str:
    """Return Markdown whose relative links lead to the repository; without a public one they are plain text."""

    def absolute(link: re.Match[str]) -> str:
        if repository is None:
            return "" if link["image"] else link["text"]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository}/{kind}/HEAD/{link['path']})"

    return RELATIVE.sub(absolute, text)


class Readme(MetadataHookInterface):
    """Adds the README to the project's metadata."""

    def update(self, metadata: dict[str, object]) -> None:
        """Add it, with links that lead to the address ``Repository`` of ``[project.urls]``, where there is one."""
        urls = metadata.get("urls")
        repository = urls.get("Repository") if isinstance(urls, dict) else None
        text = with_absolute_links(Path(self.root, "README.md").read_text(encoding="utf-8"), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
