"""Comparison, folders, latency and tables, each alone."""

import csv
import json

import pytest
import torch
from safetensors.torch import save_file

from heterofl_flwr.errors import ConfigError, HeteroFLError, ShapeError
from heterofl_flwr.export import load_state, write_table
from heterofl_flwr.export.checks import WARM_UP, build_cuts, compare, median_milliseconds
from heterofl_flwr.export.export import whole_folder

MARK = "mark"


def compared(found, expected):
    return compare("onnx", lambda inputs: [found], [(torch.zeros(2, 1),)], [[expected]])


def test_the_difference_is_a_share_of_the_largest_output():
    found = compared(torch.tensor([100.001, 0.0]), torch.tensor([100.0, 0.002]))
    assert found["absolute"] == pytest.approx(0.002)
    assert found["relative"] == pytest.approx(2e-5)
    assert compared(torch.zeros(2), torch.zeros(2))["relative"] == 0
    assert compared(torch.zeros(2, 0), torch.zeros(2, 0))["absolute"] == 0


FAR = r"on inputs of shape \(2, 1\) its outputs are up to"


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (torch.tensor([1.0002, 0.0]), torch.tensor([1.0, 0.0]), FAR),
        (torch.tensor([1e-6]), torch.tensor([1.1e-6]), FAR),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), FAR),
        (torch.tensor([1e-9]), torch.zeros(1), FAR),
        (torch.zeros(2).double(), torch.zeros(2), r"puts out \(2,\) torch.float64 .* puts out \(2,\) torch.float32"),
    ],
)
def test_outputs_too_far_off_or_of_another_type_are_an_error(found, expected, message):
    with pytest.raises(HeteroFLError, match=message):
        compared(found, expected)


def test_a_file_that_does_not_run_is_an_error():
    def run(inputs):
        raise AssertionError("Guard failed: x.size()[0] == 2\nmore")

    message = r"does not run on inputs of shape \(3,\): AssertionError: Guard .* == 2\. "
    with pytest.raises(HeteroFLError, match=message):
        compare("pt2", run, [(torch.zeros(3),)], [[torch.zeros(3)]])


def test_a_program_is_checked_with_one_with_half_and_with_all():
    cuts = build_cuts((torch.zeros(5, 8), torch.zeros(5)), {0: "batch", 1: "sequence"})
    shapes = [[tuple(one.shape) for one in cut] for cut in cuts]
    assert shapes == [[(5, 8), (5,)], [(1, 8), (1,)], [(2, 8), (2,)], [(5, 4), (5,)]]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "folder"

    def write(content, error=None):
        with whole_folder(path, marked_by=MARK) as new:
            (new / MARK).write_text(content)
            assert not path.exists() or (path / MARK).read_text() == "one"
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write("none", KeyboardInterrupt())
    assert list(path.parent.iterdir()) == []
    write("one")
    with pytest.raises(HeteroFLError, match=r"cannot write .*No space left"):
        write("two", OSError(28, "No space left on device"))
    assert (path / MARK).read_text() == "one"
    write("two")
    assert (path / MARK).read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_an_old_folder_returns_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    with whole_folder(path, marked_by=MARK) as new:
        (new / MARK).write_text("one")
    rename = type(path).rename

    def fail(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with pytest.raises(HeteroFLError, match="Input/output error"), whole_folder(path, marked_by=MARK) as new:
        (new / MARK).write_text("two")
    assert list(tmp_path.iterdir()) == [path]
    assert (path / MARK).read_text() == "one"


def test_latency_is_measured_on_one_thread_and_gives_threads_back():
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        taken = median_milliseconds((torch.zeros(7, 2),), 5, lambda inputs: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert taken >= 0
    assert seen == [1] * (WARM_UP + 5)


def test_tensors_of_another_model_raise(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(torch.nn.Linear(2, 2), path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(torch.nn.Linear(2, 2), path)
    save_file(torch.nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(ShapeError, match=r"does not fit this Linear.*weight"):
        load_state(torch.nn.Linear(2, 2), path)


def manifest(level, rate, *, parameters, formats=("pt2", "onnx"), latency=True, **more):
    files = {name: {"bytes": parameters * 4, "milliseconds": 0.25 if latency else None} for name in formats}
    timing = {"runs": 9, "threads": 1, "examples": 1, "machine": "a machine"} if latency else None
    common = {"parameters": parameters, "macs": 2_000 * parameters, "check": {"tolerance": 1e-4}, "latency": timing}
    return {"level": level, "rate": rate, **common, "files": files, **more}


def put(folder, name, content):
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text(json.dumps(content))


def test_a_table_has_all_exports_of_a_folder_the_largest_first(tmp_path):
    put(tmp_path, "c", manifest("c", 0.25, parameters=1_000, formats=("onnx",), metrics={"accuracy": 0.5}))
    put(tmp_path, "a", manifest("a", 1.0, parameters=16_000, metrics={"accuracy": 0.987, "loss": 3.0}))
    put(tmp_path, ".b.7.tmp", {"half": "written"})
    models, files = write_table(tmp_path)
    assert models[0] == ["model", "rate", "parameters", "MACs", "accuracy"]
    assert models[1] == [["a", "1", "16,000", "32.0 M", "98.7 %"], ["c", "0.25", "1,000", "2.00 M", "50.0 %"]]
    assert files[0] == ["model", "pt2", "onnx", "pt2 ms", "onnx ms"]
    assert files[1] == [["a", "64.0 kB", "64.0 kB", "0.25", "0.25"], ["c", "-", "4.00 kB", "-", "0.25"]]
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["accuracy"] == "0.987"
    assert rows[1]["onnx bytes"] == "4000"
    page = (tmp_path / "README.md").read_text()
    assert "| a | 1 | 16,000 | 32.0 M | 98.7 % | 64.0 kB | 64.0 kB | 0.25 | 0.25 |" in page
    assert "median over 9 runs; examples: 1, threads: 1; a machine." in page


def test_a_table_leaves_out_what_was_not_measured(tmp_path):
    own = manifest("", 1, parameters=10, latency=False)
    del own["rate"]
    put(tmp_path, "own", own)
    models, files = write_table(tmp_path)
    assert models == (["model", "rate", "parameters", "MACs"], [["own", "-", "10", "20.0 k"]])
    assert files[0] == ["model", "pt2", "onnx"]
    assert "not measured" in (tmp_path / "README.md").read_text()


def test_a_folder_without_exports_has_no_table(tmp_path):
    with pytest.raises(ConfigError, match="holds no exports"):
        write_table(tmp_path)
    put(tmp_path, "a", {})
    for text in ("{", "{}", "[]", "null"):
        (tmp_path / "a" / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=r"a/manifest.json cannot be read"):
            write_table(tmp_path)
