"""Check that a client's process has imported the modules of the running app, and not those of another app."""

import sys
from filecmp import cmp
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.transport.compat import apps_folder


def check_imports() -> None:
    """Raise ``ConfigError`` if this process has imported modules that differ from the app's modules of the same names.

    Ray lets the simulated clients of ``flwr run`` import first from the folder in which the SuperLink was started. If
    modules in this folder have the names of the app's modules, the clients run them.
    """
    _check(frozenset(sys.modules), tuple(sys.path))


@lru_cache(maxsize=1)  # a process looks again only after it has imported more modules, or found wrong ones
def _check(names: frozenset[str], path: tuple[str, ...]) -> None:
    apps, folders = apps_folder(), [Path(entry).absolute() for entry in path]
    position = next((number for number, folder in enumerate(folders) if folder.parent == apps), 0)
    app, earlier = folders[position], folders[:position]
    if not earlier:
        return
    modules = [module for name in names if isinstance(module := sys.modules.get(name), ModuleType)]
    imported = {vars(module).get("__file__") for module in modules}  # getattr could import a lazy module
    sources = {folder / path.relative_to(app): path for path in app.rglob("*.py") for folder in earlier}
    wrong = [str(file) for file, source in sources.items() if str(file) in imported and not _equal(file, source)]
    if wrong:
        raise ConfigError(
            f"the client runs code of another app: Ray imports first from the folder in which the SuperLink was "
            f"started, and {listed(wrong)} there differ from the app's own ({app}). End this SuperLink, then start "
            f"flwr run in the folder of the app; if you changed these files just now, start it again"
        )


@cache  # an edit after the import does not matter
def _equal(file: Path, source: Path) -> bool:
    return cmp(file, source)
