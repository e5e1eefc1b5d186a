import errno
import fcntl
import json
import logging
import os
import resource
from contextlib import contextmanager

import pytest

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.runs.files import append_line, lock_folder, remove, to_json, write_atomic


@contextmanager
def files_of_at_most(size: int):
    """Let the system refuse to write more than this into one file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    return path


def test_a_file_is_replaced(path):
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_a_link_that_somebody_planted_is_not_followed(path, monkeypatch):
    """Whoever may write into the folder must not choose what else is written."""
    other = path.with_name("other")
    other.write_bytes(b"precious")
    monkeypatch.setattr("secrets.token_hex", lambda length: "guessed")
    path.with_name(".file.guessed.tmp").symlink_to(other)
    log = path.with_name("log")
    log.symlink_to(other)
    with pytest.raises(HeteroFLError, match=r"cannot write .*file"):
        write_atomic(path, b"new")
    with pytest.raises(HeteroFLError, match=r"cannot write .*log"):
        append_line(log, "new")
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_before_the_rename_leaves_the_old_file(path, step, error, monkeypatch):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    message = r"cannot write .*file: No space left on device; what was there before"
    with pytest.raises((HeteroFLError, KeyboardInterrupt), match=message if isinstance(error, OSError) else None):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_a_disk_that_fills_while_writing_leaves_the_old_file(path):
    with files_of_at_most(1000), pytest.raises(HeteroFLError, match="cannot write"):
        write_atomic(path, b"x" * 5000)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_a_disk_that_fills_while_appending_leaves_whole_lines(path):
    write_atomic(path, b"a line\n")
    with files_of_at_most(20), pytest.raises(HeteroFLError, match="cannot write"):
        append_line(path, "x" * 50)
    assert path.read_bytes() == b"a line\n"
    append_line(path, "another")
    assert path.read_bytes() == b"a line\nanother\n"


def test_a_place_that_cannot_be_written_is_one_clear_error(path):
    for write in (lambda: write_atomic(path / "below", b""), lambda: append_line(path / "below", "")):
        with pytest.raises(HeteroFLError, match=r"cannot write .*below.*choose another folder"):
            write()


def test_a_file_that_cannot_be_removed_is_one_clear_error(tmp_path):
    with pytest.raises(HeteroFLError, match="cannot remove"):
        remove(tmp_path / "none")


def test_json_is_strict_and_numbers_that_it_lacks_come_back_as_floats():
    text = to_json({"a": (1, 2.5), 3: float("nan"), "b": [float("-inf")], "c": None, "d": True, "e": path})
    values = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert values["a"] == [1, 2.5]
    assert str(float(values["3"])) == "nan"
    assert float(values["b"][0]) == float("-inf")
    assert values["c"] is None
    assert values["d"] is True
    assert values["e"] == str(path)


def test_a_folder_is_locked_once_and_unlocked(tmp_path):
    folder = tmp_path / "new" / "run"
    with lock_folder(folder):
        with pytest.raises(ConfigError, match=f"another process runs in {folder}"), lock_folder(folder):
            pass
        with lock_folder(tmp_path / "other"):
            pass
    with lock_folder(folder):
        assert list(folder.iterdir()) == []


def test_a_process_that_dies_unlocks_its_folder(tmp_path):
    child = os.fork()
    if not child:
        with lock_folder(tmp_path):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0  # it did hold the folder
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
