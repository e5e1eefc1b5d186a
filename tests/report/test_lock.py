import errno
import fcntl
import logging
import os

import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import held


def test_a_folder_is_held_once_and_given_back(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder):
        with pytest.raises(ConfigError, match=f"another process runs in {folder}"), held(folder):
            pass
        with held(tmp_path / "other"):
            pass
    with held(folder):
        assert list(folder.iterdir()) == []


def test_a_holder_that_dies_gives_it_back(tmp_path):
    child = os.fork()
    if not child:
        with held(tmp_path):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0  # it did hold the folder
    with held(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), held(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
