"""Text about a run, without the folders of the machine that ran it."""

import re

from simulations.published.cells import PROJECT

_FOLDERS = re.compile(r"(?<![\w./~-])[/~][^\s'\"=,:]*/(?=[^\s'\"=,:/])")


def portable(text: str, project: str = str(PROJECT)) -> str:
    """Return text in which paths within the project are relative to it, and of others only the last part is left."""
    return _FOLDERS.sub(".../", text.replace(f"{project}/", ""))


def file_name(text: str) -> str:
    """Return text as part of a name of a file."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def one_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())
