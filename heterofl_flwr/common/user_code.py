"""Functions that a user names as ``module:function``, and where their modules may lie.

Beside what is installed, a module may lie in the folder from which a command is called, if the command line names it.
What it imports from the same folder is found too. No other import looks there, because the folder may be a stranger's.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from heterofl_flwr.common.errors import ConfigError, HeteroFLError

VARIABLE = "HETEROFL_CODE"
"""Environment variable with the folder and the modules that may lie there; processes of a run inherit it."""

_NAMED = re.compile(r"(?<![\w.])([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]\w*(?![\w/])")


def named_modules(texts: Iterable[object]) -> set[str]:
    """Return the top-level modules of functions that texts name as ``module:function``."""
    return {module for text in texts if isinstance(text, str) for module in _NAMED.findall(text)}


def allow_modules(modules: Iterable[str]) -> None:
    """Make these modules of the current folder, and the modules there that they import, importable."""
    folder, allowed = _allowed()
    names = sorted({*modules, *(allowed if folder == os.getcwd() else ())})
    if names:
        os.environ[VARIABLE] = json.dumps([os.getcwd(), names])


def load_function(reference: str, what: str, kind: type[HeteroFLError] = ConfigError) -> Callable[..., Any]:
    """Return the function named as ``module:function``; an error begins with ``what`` this is, such as a setting."""
    try:
        function = resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise kind(
            f"{what} is {reference!r}, which cannot be loaded ({error}): name a function as 'module:function' and "
            f"start in its folder or put that on PYTHONPATH"
        ) from error
    if not callable(function):
        raise kind(f"{what} is {reference!r}, which is {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]


def _allowed() -> tuple[str, list[str]]:
    """Return the folder and its modules, as the environment names them."""
    folder, modules = json.loads(os.environ.get(VARIABLE, '["", []]'))
    return folder, modules


class _FolderFinder(MetaPathFinder):
    """Finds allowed modules, after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder, modules = _allowed()
        if path is not None or not folder or not (fullname in modules or _importer_is_in(folder)):
            return None
        return PathFinder.find_spec(fullname, [folder], target)


def _importer_is_in(folder: str) -> bool:
    """Whether the import statement that runs lies in a folder, and in no environment within it."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return file.startswith(f"{folder}{os.sep}") and "site-packages" not in file


sys.meta_path.append(_FolderFinder())
