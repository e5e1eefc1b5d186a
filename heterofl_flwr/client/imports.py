"""Check that a client's process has imported the app that runs, and not another one."""

import sys
from filecmp import cmp
from functools import cache
from pathlib import Path
from types import ModuleType

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.transport.compat import apps_folder


def check_imports() -> None:
    """Raise ``ConfigError`` if this process has imported modules of another app in place of those of the app that runs.

    Ray lets the simulated clients of ``flwr run`` import first from the folder in which the SuperLink was started. If
    modules in this folder have the names of the app's modules, the clients run them.
    """
    apps, folders = apps_folder(), [Path(entry).absolute() for entry in sys.path]
    position = next((number for number, folder in enumerate(folders) if folder.parent == apps), 0)
    app, earlier = folders[position], folders[:position]
    for folder in earlier:
        files = {path: folder / path.relative_to(app) for path in app.rglob("*.py")}
        modules = [module for module in [*sys.modules.values()] if isinstance(module, ModuleType)]
        imported = {vars(module).get("__file__") for module in modules}  # getattr could import a lazy module
        wrong = [str(other) for path, other in files.items() if str(other) in imported and not _are_equal(path, other)]
        if wrong:
            raise ConfigError(
                f"the client runs code of another app: Ray imports first from the folder in which the SuperLink was "
                f"started, and {listed(sorted(wrong))} there differ from the app's own ({app}). End this SuperLink, "
                f"then start flwr run in the folder of the app; if you changed these files just now, start it again"
            )


@cache
def _are_equal(file: Path, other: Path) -> bool:
    """Compare two files once: what is edited later does not change what this process has imported."""
    return cmp(file, other)
