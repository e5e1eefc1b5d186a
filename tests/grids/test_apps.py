"""Where actors find their ClientApp."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from flwr.clientapp import ClientApp

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import reference


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"__spec__": ModuleSpec("my_app.run", None)}, "my_app.run:app"),  # python -m my_app.run
        ({"__file__": "/somewhere/script.py"}, "script:app"),
    ],
)
def test_an_app_is_found_by_the_name_of_its_module_or_script(monkeypatch, attributes, expected):
    import odd_clients

    assert reference(odd_clients.app) == "odd_clients:app"
    main = ModuleType("__main__")
    vars(main).update(app=ClientApp(), **attributes)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)  # multiprocessing's second name for it
    assert reference(main.app) == expected


def test_an_app_of_a_notebook_is_not_found(monkeypatch):
    main = ModuleType("__main__")
    main.app = ClientApp()
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ConfigError, match="other processes cannot import it"):
        reference(main.app)
