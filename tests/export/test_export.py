"""What is written runs without the model's code and says what the model says; nothing is ever half there."""

import json
import sys
import warnings
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.errors import ConfigError, HeteroFLError, MissingExtraError, ShapeError
from heterofl_flwr.export import FORMATS, export, export_model, formats, load_state
from heterofl_flwr.nn import CNN, PreResNet, build_model, shallow, with_exits
from simulations.examples.export_mobilenet import export_levels
from tests.elastic_models.families import Then
from tests.export.models import BATCH, CASES, cnn, images, measured, preresnet, text


def in_onnxruntime(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {port.name: inputs.numpy()})[0])


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 3)


def compute(model, inputs):
    with torch.inference_mode():
        return model(inputs)


@pytest.mark.parametrize("level", [pytest.param("a", marks=pytest.mark.slow), "d"])
@pytest.mark.parametrize("name", CASES)
def test_onnx_computes_what_the_model_computes(name, level, tmp_path):
    build, inputs, dynamic = CASES[name]
    model = build(LEVELS[level])
    export_model(model, inputs, tmp_path / level, formats=["onnx"], dynamic=dynamic, runs=0)
    for some in (inputs, inputs[:1], inputs[1:4], *([text(1), text(5), text(16)] if 1 in dynamic else [])):
        expected = compute(model, some)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(in_onnxruntime(tmp_path / level / "model.onnx", some), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_whole_mobilenet_is_exported(tmp_path):
    """``export_model`` has compared it with the model; without this comparison there is no manifest."""
    export_levels(tmp_path, ["e"], ["onnx"])
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert len(manifest["batch_norm"]["folded"]) == 34
    assert manifest["batch_norm"]["kept"] == []
    assert manifest["files"]["onnx"]["difference"]["absolute"] < 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a model, its inputs and the folder with all its formats."""
    folder = tmp_path_factory.mktemp("exports") / "c"
    model, inputs = preresnet(0.25), images(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_model(model, inputs, folder, facts={"level": "c", "rate": 0.25}, runs=3)
    return model, inputs, folder


def test_the_manifest_lists_files_inputs_and_outputs(exported):
    model, _, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *(one.file for one in FORMATS.values())}
    for file in manifest["files"].values():
        assert file["bytes"] == (folder / file["file"]).stat().st_size
        assert file["difference"]["relative"] <= manifest["check"]["tolerance"]
        assert file["milliseconds"] > 0
    assert (manifest["level"], manifest["rate"]) == ("c", 0.25)
    assert manifest["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert manifest["parameters"] == sum(one.numel() for one in model.parameters())
    assert manifest["macs"] > 0
    graph = onnx.load(folder / "model.onnx").graph
    assert [one.name for one in (*graph.input, *graph.output)] == ["images", "logits"]
    shape = [axis.dim_param or axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 8, 8]


def test_a_norm_before_a_convolution_stays_and_one_after_it_is_folded(exported):
    _, _, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    folded = {f"stages.{stage}.0.norm2": f"stages.{stage}.0.conv1" for stage in range(2)}
    assert manifest["batch_norm"]["folded"] == folded
    assert manifest["batch_norm"]["kept"] == ["stages.0.0.norm1", "stages.1.0.norm1", "norm"]
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert kinds.count("BatchNormalization") == 3


def test_program_and_tensors_compute_what_the_model_computes(exported):
    model, inputs, folder = exported
    program = torch.export.load(folder / "model.pt2").module()
    for some in (inputs, inputs[:1], torch.cat([inputs, inputs])):
        torch.testing.assert_close(compute(program, some), compute(model, some), atol=1e-4, rtol=0)
    fresh = PreResNet(3, 10, (1, 1), (16, 16), rate=0.25)  # its batch norm keeps no statistics
    assert compute(load_state(fresh, folder / "model.safetensors"), inputs).equal(compute(model, inputs))
    assert fresh.norm.running_mean is None


def test_a_level_with_fewer_stages_is_exported_in_every_format(tmp_path):
    """Also one whose earlier exits have batch norm that its answer makes no use of."""
    torch.manual_seed(0)
    build = shallow(with_exits(build_model("preresnet18", hidden=(4, 4, 8, 8))), "exits.*")
    model, inputs = measured(build(0.5), images(3)), images(3)
    export_model(model, inputs, tmp_path / "b", runs=0)
    expected = compute(model, inputs)
    torch.testing.assert_close(in_onnxruntime(tmp_path / "b" / "model.onnx", inputs), expected, atol=1e-4, rtol=0)
    program = torch.export.load(tmp_path / "b" / "model.pt2").module()
    torch.testing.assert_close(compute(program, inputs), expected, atol=1e-4, rtol=0)
    assert compute(load_state(build(0.5), tmp_path / "b" / "model.safetensors"), inputs).equal(expected)


def test_neither_examples_nor_paths_are_in_the_files(exported):
    _, inputs, folder = exported
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                content += b"".join(map(archive.read, archive.namelist()))
        assert inputs[0].numpy().tobytes()[:64] not in content
        assert b".py" not in content


class Two(nn.Module):
    """Two inputs by name, two outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, *, weight):
        y = self.linear(x) * weight
        return {"double": y * 2, "sum": y.sum(1)}


def test_inputs_may_be_named_and_outputs_several(tmp_path):
    inputs = {"weight": torch.randn(4, 1), "x": torch.randn(4, 3)}  # in another order than in the signature
    content = export_model(Two(), inputs, tmp_path / "two", outputs=("double", "sum"), runs=0)
    assert [port["name"] for port in content["outputs"]] == ["double", "sum"]
    session = onnxruntime.InferenceSession(tmp_path / "two" / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {name: one.numpy() for name, one in inputs.items()}
    assert np.isfinite(session.run(["sum"], feed)[0]).all()


def test_a_model_is_left_as_it_was(tmp_path):
    model = cnn(0.25).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, images(1), tmp_path / "c", formats=["safetensors", "pt2"], runs=0)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_computes_something_else_is_never_left(name, tmp_path, monkeypatch):
    """The tensors of each format are changed after they are written; what was exported before stays."""
    one = FORMATS[name]

    def open_changed(traced, path):
        run = one.open(traced, path)
        return lambda inputs: [output * 1.001 for output in run(inputs)]

    model, inputs = small()
    export_model(model, inputs, tmp_path / "c", formats=["safetensors"], runs=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    broken = formats.Format(one.file, one.write, open_changed)
    monkeypatch.setattr(export, "formats_named", lambda names: {name: broken})
    for folder in ("c", "new"):
        with pytest.raises(HeteroFLError, match=rf"the {name} file says something else than the model.*0.001 of the"):
            export_model(model, inputs, tmp_path / folder, formats=[name], runs=0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_earlier_export_is_replaced_and_other_folders_are_not(tmp_path):
    model, inputs = small()
    for formats_ in (["safetensors", "pt2"], ["safetensors"]):
        export_model(model, inputs, tmp_path / "c", formats=formats_, runs=0)
        assert len(list((tmp_path / "c").iterdir())) == 1 + len(formats_)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"mine is there already and is no export"):
        export_model(model, inputs, tmp_path / "mine", formats=["safetensors"], runs=0)


FOR_TWO = Then(lambda self, x: x * torch.ones(2, 1) if len(x) == 2 else x)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (CNN(1, 10, (8, 8)), images(1), r"no statistics in 2 layers \(features.norm1, features.norm2\)"),
        (Then(lambda self, x: x / 0), torch.ones(2, 3), "hold NaN or infinities"),
        (Then(lambda self, x: x * 2 if x.sum() > 0 else x), torch.ones(2, 3), "cannot make a program of Then"),
        (Then(lambda self, x: (x, range(3))), torch.ones(2, 3), "return tensors alone.*config.use_cache = False"),
        (
            FOR_TWO,
            torch.ones(2, 3),
            r"axis 0 \(batch\) of the input x cannot have any length: .* makes it 2",
        ),
        (FOR_TWO, [torch.zeros(1)], "the inputs are list"),
        (FOR_TWO, (), "the inputs are tuple"),
        (FOR_TWO, (torch.zeros(2, 1), 3), r"the inputs are Tensor\(2, 1\), int"),
        (FOR_TWO, {}, "the inputs are dict"),
        (FOR_TWO, torch.zeros(()), r"the inputs are Tensor\(\)"),
        (FOR_TWO, torch.zeros(0, 3), r"the inputs are Tensor\(0, 3\); expected .* some examples"),
    ],
)
def test_a_model_or_inputs_that_cannot_be_exported_raise(model, inputs, message, tmp_path):
    with pytest.raises(HeteroFLError, match=message):
        export_model(model, inputs, tmp_path / "a", formats=["pt2"], runs=0)
    assert list(tmp_path.iterdir()) == []


def test_lengths_may_be_fixed(tmp_path):
    content = export_model(FOR_TWO, torch.ones(2, 3), tmp_path / "a", formats=["pt2", "onnx"], dynamic={}, runs=1)
    assert content["inputs"][0]["shape"] == (2, 3)
    assert content["latency"]["examples"] == 2
    assert content["check"]["inputs"] == [[[2, 3]]]


@pytest.mark.parametrize("axis", [-1, 2])
def test_an_axis_that_no_input_has_raises(axis, tmp_path):
    with pytest.raises(ConfigError, match=f"dynamic has axis {axis}; expected 0 to 1"):
        export_model(*small(), tmp_path / "a", formats=["pt2"], dynamic={0: "batch", axis: "time"}, runs=0)


def test_invalid_or_missing_formats_raise(tmp_path, monkeypatch):
    for names, found in ((["onnx", "tflite"], "tflite; expected some of safetensors, pt2, onnx"), ([], "none")):
        with pytest.raises(ConfigError, match=f"formats are {found}"):
            export_model(*small(), tmp_path / "c", formats=names)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*heterofl-flwr\[export\].*\(safetensors,pt2\)"):
        export_model(*small(), tmp_path / "c")
    export_model(*small(), tmp_path / "c", formats=["safetensors", "pt2"], runs=0)


def test_tensors_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "SINGLE_FILE", 0)
    model, inputs = nn.Linear(30, 30), torch.randn(4, 30)
    content = export_model(model, inputs, tmp_path / "a", formats=["onnx"], runs=0)
    names = {path.name: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    assert set(names) == {"manifest.json", "model.onnx", "model.onnx.data"}
    assert content["files"]["onnx"]["bytes"] == names["model.onnx"] + names["model.onnx.data"]
    found = in_onnxruntime(tmp_path / "a" / "model.onnx", inputs)
    torch.testing.assert_close(found, compute(model, inputs), atol=1e-4, rtol=0)


def test_tied_weights_are_written_once(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    inputs = torch.randn(4, 3)
    export_model(model, inputs, tmp_path / "tied", dynamic=BATCH, formats=["safetensors", "pt2"], runs=0)
    program = torch.export.load(tmp_path / "tied" / "model.pt2").module(check_guards=False)
    torch.testing.assert_close(program(inputs), model(inputs))
    path = tmp_path / "tied" / "model.safetensors"
    assert set(load_file(path)) == {"0.weight", "0.bias", "1.bias"}
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ShapeError, match=r'does not fit .*Missing key.* "1\.weight"'):
        load_state(again, path)
    again[1].weight = again[0].weight
    for given in (load_file(path), model.state_dict()):  # an export of an earlier version has both names
        save_file({name: tensor.clone() for name, tensor in given.items()}, path)
        loaded = load_state(again, path)
        assert loaded[1].weight is loaded[0].weight
        assert torch.equal(loaded(inputs), model(inputs))


def test_a_table_that_no_state_holds_is_in_the_program_alone(tmp_path):
    model, inputs = Then(lambda self, x: self.linear(x + self.table), linear=nn.Linear(3, 2)), torch.randn(4, 3)
    model.register_buffer("table", torch.arange(3.0), persistent=False)
    export_model(model, inputs, tmp_path / "a", formats=["safetensors", "pt2"], runs=0)
    assert "table" not in (tmp_path / "a" / "model.safetensors").read_bytes().decode("latin-1")
    program = torch.export.load(tmp_path / "a" / "model.pt2").module()
    torch.testing.assert_close(compute(program, inputs), compute(model, inputs))
