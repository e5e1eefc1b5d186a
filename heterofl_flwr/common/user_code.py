"""Loading of functions that a user names as ``module:function``.

A module in the current folder is found only if a command line names it, or if code in this folder imports it.
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
"""Environment variable with a folder and its modules that may be imported, as JSON. Processes of a run inherit it."""

_NAMED = re.compile(r"(?<![\w.])([^\W\d]\w*)(?:\.\w+)*:[^\W\d]\w*(?:\.\w+)*(?![\w/])")


def named_modules(texts: Iterable[object]) -> set[str]:
    """Return the top-level modules of all references ``module:function`` in ``texts``."""
    return {module for text in texts if isinstance(text, str) for module in _NAMED.findall(text)}


def allow_modules(modules: Iterable[str]) -> None:
    """Make these modules of the current folder importable, also in child processes."""
    folder, allowed = _allowed()
    if names := sorted({*modules, *(allowed if folder == os.getcwd() else ())}):
        os.environ[VARIABLE] = json.dumps([os.getcwd(), names])


def load_function(reference: str, what: str, kind: type[HeteroFLError] = ConfigError) -> Callable[..., Any]:
    """Return the function that ``reference`` names, as ``module:function``.

    Error messages begin with ``what``. ``kind`` is the class of the error.
    """
    try:
        if not _NAMED.fullmatch(reference):  # resolve_name also takes other forms, which named_modules does not find
            raise ValueError("it is not of that form")
        function = resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise kind(
            f"{what} is {reference!r}, which cannot be loaded ({error}): name a function as 'module:function', and "
            "start in its folder or put that on PYTHONPATH; for flwr run, put the module beside the pyproject.toml of "
            "the app"
        ) from error
    if not callable(function):
        raise kind(f"{what} is {reference!r}, which is {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]


def _allowed() -> tuple[str, list[str]]:
    folder, modules = json.loads(os.environ.get(VARIABLE, '["", []]'))
    return folder, modules


class _FolderFinder(MetaPathFinder):
    """Import finder for modules of the user's folder.

    Code in this folder may import all of its modules, other code only the allowed modules.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder, modules = _allowed()
        if path is not None or not folder or not (fullname in modules or _importer_is_in(folder)):
            return None
        return PathFinder.find_spec(fullname, [folder], target)


def _importer_is_in(folder: str) -> bool:
    """Return True if the importing file is below ``folder``, outside ``site-packages``."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return file.startswith(f"{folder}{os.sep}") and "site-packages" not in file


sys.meta_path.append(_FolderFinder())
