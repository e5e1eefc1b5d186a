import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.common.files import append_line, remove, to_json, write_atomic, write_text


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
def test_an_interrupt_before_the_rename_leaves_the_old_file(path, step, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_whole_lines(path):
    with files_of_at_most(20):
        with pytest.raises(HeteroFLError, match="cannot write"):
            write_atomic(path, b"x" * 5000)
        with pytest.raises(HeteroFLError, match="cannot write"):
            append_line(path, "x" * 50)
    append_line(path, "another")
    assert path.read_bytes() == b"oldanother\n"
    assert os.listdir(path.parent) == ["file"]


def test_a_place_that_cannot_be_written_is_one_clear_error(path):
    for write in (lambda: write_atomic(path / "below", b""), lambda: append_line(path / "below", "")):
        with pytest.raises(HeteroFLError, match=r"cannot write .*below.*choose another folder"):
            write()
    with pytest.raises(HeteroFLError, match="cannot remove"):
        remove(path.with_name("none"))


def test_a_folder_that_cannot_be_synced_is_an_error_that_says_what_was_written(path, monkeypatch):
    opened = os.open

    def refuse(place: object, *options: object, **named: object) -> int:
        if place == path.parent:
            raise PermissionError(13, "Permission denied")
        return opened(place, *options, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HeteroFLError, match=r"file is written, but .* cannot be synced: Permission denied"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_json_is_strict_and_odd_numbers_are_read_back():
    text = to_json({"a": (1, 2.5), 3: float("nan"), "b": [float("-inf")], "c": None, "d": True, "e": Path("file")})
    values = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (values["a"], values["c"], values["d"], values["e"]) == ([1, 2.5], None, True, "file")
    assert str(float(values["3"])) == "nan"
    assert float(values["b"][0]) == float("-inf")


def test_json_has_paths_that_are_not_utf_8():
    path = os.fsdecode(b"/runs/\xff")
    assert json.loads(to_json({"out": path}).encode()) == {"out": path}


def test_text_has_a_mark_in_place_of_what_is_not_utf_8(path):
    write_text(path, os.fsdecode(b"/r\xc3\xa4/\xff"))
    assert path.read_bytes() == b"/r\xc3\xa4/?"
