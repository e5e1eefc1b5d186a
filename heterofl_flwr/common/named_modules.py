"""Modules of the current folder: only those that this command line names as ``module:function`` can be imported.

The folder is not put on ``sys.path``: it may be a stranger's, and an optional import of a package that is not installed
would run a file of that name. Processes that the command starts inherit the names by an environment variable.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

VARIABLE = "HETEROFL_MODULES"
"""Environment variable with a JSON object: top-level module name to folder."""

CODE_SETTINGS = ("data.name", "model.name", "evaluate.metric", "devices.profile", "run.callbacks")
"""Settings that can name a function."""

_REFERENCE = re.compile(r"([^\W\d]\w*)(?:\.\w+)*:[\w.]+")


class _NamedModules(MetaPathFinder):
    """Finder of the named modules; the last finder, so installed modules come first."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of a named top-level module; submodules have the path of their package."""
        folder = json.loads(os.environ.get(VARIABLE, "{}")).get(fullname) if path is None else None
        return PathFinder.find_spec(fullname, [folder]) if folder else None


def code_references(settings: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the ``module:function`` references of settings outside this package, by key."""
    texts = {key: str(settings[key]).split(",") for key in CODE_SETTINGS if settings.get(key)}
    matches = {
        key: [text.strip() for text in parts if _REFERENCE.fullmatch(text.strip())] for key, parts in texts.items()
    }
    ours = f"{__name__.partition('.')[0]}."
    outside = {key: [text for text in parts if not text.startswith(ours)] for key, parts in matches.items()}
    return {key: parts for key, parts in outside.items() if parts}


def allow_modules(references: Iterable[str]) -> None:
    """Allow the import of the modules of references from the current folder, here and in processes started later."""
    modules = json.loads(os.environ.get(VARIABLE, "{}"))
    modules |= {match[1]: os.getcwd() for text in references if (match := _REFERENCE.fullmatch(text))}
    if modules:
        os.environ[VARIABLE] = json.dumps(modules)


def allow_settings(settings: Mapping[str, object]) -> None:
    """Allow the modules that settings name."""
    allow_modules(text for parts in code_references(settings).values() for text in parts)


_FINDER = _NamedModules()


def find_named_modules() -> None:
    """Add the finder, once."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
