"""What is written runs without the model's code and says what the model says; nothing is ever half there."""

import sys
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, MissingExtraError, ShapeError
from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.export import FORMATS, export, export_model, formats, load_state
from heterofl_flwr.export.export import compare
from heterofl_flwr.nn import PreResNet, collect_moments
from tests.elastic_models.families import Then
from tests.export.models import CASES, cnn, images, preresnet, text


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


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LONG = ("mobilenet", "cnn", "preresnet")


@pytest.mark.parametrize("level", [pytest.param("a", marks=pytest.mark.slow), "d"])
@pytest.mark.parametrize("name", [pytest.param(own, marks=[pytest.mark.release] * (own in LONG)) for own in CASES])
def test_onnx_computes_what_the_model_computes(name, level, tmp_path):
    build, inputs, dynamic = CASES[name]
    model = build(LEVELS[level])
    export_model(model, inputs, tmp_path / level, formats=["onnx"], dynamic=dynamic)
    for some in (inputs, inputs[:1], inputs[1:4], *([text(1), text(5), text(16)] if 1 in dynamic else [])):
        expected = compute(model, some)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(in_onnxruntime(tmp_path / level / "model.onnx", some), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a model, its inputs, the folder with all its formats, and the sizes that were returned."""
    folder = tmp_path_factory.mktemp("exports") / "c"
    model, inputs = preresnet(0.25), images(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sizes = export_model(model, inputs, folder)
    return model, inputs, folder, sizes


def test_each_format_is_a_file_of_the_size_returned(exported):
    *_, folder, sizes = exported
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {
        one.file: sizes[name] for name, one in FORMATS.items()
    }


def test_onnx_names_its_inputs_outputs_and_free_axes(exported):
    *_, folder, _ = exported
    graph = onnx.load(folder / "model.onnx").graph
    shapes = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 3, 8, 8], "logits": ["batch", 10]}


def test_program_and_tensors_compute_what_the_model_computes(exported):
    model, inputs, folder, _ = exported
    program = torch.export.load(folder / "model.pt2").module()
    for some in (inputs, inputs[:1], torch.cat([inputs, inputs])):
        torch.testing.assert_close(compute(program, some), compute(model, some), atol=1e-4, rtol=0)
    fresh = PreResNet(3, 10, (1, 1), (16, 16), rate=0.25)  # its batch norm keeps no statistics
    assert compute(load_state(fresh, folder / "model.safetensors"), inputs).equal(compute(model, inputs))
    assert fresh.norm.running_mean is None


@pytest.mark.slow
def test_neither_examples_nor_paths_are_in_the_files(tmp_path):
    build, inputs, dynamic = CASES["transformer"]
    export_model(build(0.25), inputs, tmp_path, dynamic=dynamic)
    for path, content in contents(tmp_path).items():
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


@pytest.mark.parametrize("outputs", [(), ("sum", "double")])
def test_outputs_of_a_dict_have_its_keys_as_names(outputs, tmp_path):
    """Names went by position, so that ``outputs`` in another order than the model's swapped them."""
    inputs, model = {"weight": torch.randn(4, 1), "x": torch.randn(4, 3)}, Two()  # in another order than the signature
    export_model(model, inputs, tmp_path / "two", outputs=outputs, formats=["onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "two" / "model.onnx", providers=["CPUExecutionProvider"])
    for name, expected in model(**inputs).items():
        (found,) = session.run([name], {port: value.numpy() for port, value in inputs.items()})
        assert np.allclose(found, expected.detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match=r"outputs is logits.* dict of double, sum"):
        export_model(model, inputs, tmp_path / "other", outputs=("logits",), formats=["pt2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dynamic": {0: "batch", 2: "width", -1: "x"}},
            "dynamic has the axis 2, -1, which no input has: expected 0 to 1",
        ),
        ({"outputs": ("logits", "more")}, "outputs is logits, more; expected 1 name, as many as outputs"),
    ],
)
def test_axes_and_outputs_that_are_not_there_raise(options, message, tmp_path):
    """They were ignored."""
    with pytest.raises(ConfigError, match=message):
        export_model(*small(), tmp_path / "c", formats=["pt2"], **options)


@pytest.mark.parametrize(("returned", "plain"), [(OrderedDict, dict), (namedtuple("Outputs", "total"), tuple)])
def test_a_program_is_loaded_without_the_classes_that_the_model_returns(returned, plain, tmp_path):
    export_model(Then(lambda self, x: returned(total=x.sum(1))), torch.ones(2, 3), tmp_path / "e", formats=["pt2"])
    assert type(torch.export.load(tmp_path / "e" / "model.pt2").module()(torch.ones(2, 3))) is plain


@pytest.mark.parametrize("inputs", [torch.randn(4, 3), (torch.randn(4, 3), torch.randn(4, 1))])
def test_a_model_may_take_any_number_of_inputs(inputs, tmp_path):
    model = nn.Module()
    model.forward = lambda *x: sum(x)
    assert export_model(model, inputs, tmp_path / "sum", formats=["pt2"]).keys() == {"pt2"}


def test_an_example_of_one_word_leaves_the_length_free(tmp_path):
    model, words = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), torch.tensor([[1], [2]])
    export_model(model, words, tmp_path / "a", dynamic={0: "batch", 1: "sequence"})
    longer = torch.arange(6).view(1, 6)
    assert in_onnxruntime(tmp_path / "a" / "model.onnx", longer).allclose(model(longer), atol=1e-5)


def test_inputs_that_a_model_changes_in_place_stay_as_they_are(tmp_path):
    inputs = torch.linspace(-1, 1, 6).view(2, 3)
    export_model(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), inputs, tmp_path / "a")
    assert torch.equal(inputs, torch.linspace(-1, 1, 6).view(2, 3))


def test_batch_norm_of_a_new_model_is_not_exported(tmp_path):
    """The statistics do not travel, so a fresh model's were exported: 11 % in place of 76.7 %."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    inputs = images(1) + 3
    with pytest.raises(ConfigError, match=r"no statistics in 1 layer \(1\).*moments="):
        export_model(model, inputs, tmp_path / "a", formats=["safetensors"])
    moments = collect_moments(model, [inputs])
    export_model(model, inputs, tmp_path / "a", formats=["pt2"], moments=moments)
    program = torch.export.load(tmp_path / "a" / "model.pt2").module()
    normed = (model[0](inputs) - model[0](inputs).mean((0, 2, 3), keepdim=True)) / (
        model[0](inputs).var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    assert program(inputs).allclose(normed.relu().flatten(1), atol=1e-2)
    trained = model.train()
    trained(inputs)  # as a model that was trained elsewhere
    export_model(trained, inputs, tmp_path / "b", formats=["safetensors"])


def test_a_model_is_left_as_it_was(tmp_path):
    model = cnn(0.25).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, images(1), tmp_path / "c", formats=["safetensors", "pt2"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_computes_something_else_is_never_left(name, tmp_path, monkeypatch):
    one = FORMATS[name]

    def open_changed(traced, path):
        run = one.open(traced, path)
        return lambda inputs: [output * 1.001 for output in torch.utils._pytree.tree_leaves(run(inputs))]

    model, inputs = small()
    export_model(model, inputs, tmp_path / "c", formats=["safetensors"])
    before = contents(tmp_path)
    broken = formats.Format(one.file, one.write, open_changed)
    monkeypatch.setattr(export, "formats_named", lambda names: {name: broken})
    for folder in ("c", "new"):
        with pytest.raises(HeteroFLError, match=rf"the {name} file says something else than the model"):
            export_model(model, inputs, tmp_path / folder, formats=[name])
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_a_format_raises_is_named_with_all_its_lines(tmp_path, monkeypatch):
    def write(traced, path):
        raise RuntimeError("Constraints violated!\n  - your code made the batch a constant (2)")

    broken = formats.Format("model.x", write, None)
    monkeypatch.setattr(export, "formats_named", lambda names: {"onnx": broken})
    said = (
        "cannot be written as onnx and opened again: RuntimeError: Constraints violated! - your code .*safetensors, pt2"
    )
    with pytest.raises(HeteroFLError, match=said):
        export_model(*small(), tmp_path / "a", formats=["onnx"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (torch.tensor([1.0002, 0.0]), torch.tensor([1.0, 0.0]), "outputs are up to 0.0002 off, expected up to"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "outputs are up to nan"),
        (torch.zeros(2).double(), torch.zeros(2), r"puts out \(2,\) torch.float64; .* puts out \(2,\) torch.float32"),
        (torch.tensor([100.001, 0.0]), torch.tensor([100.0, 0.002]), None),  # a share of the largest output
    ],
)
def test_outputs_too_far_off_or_of_another_type_raise(found, expected, message):
    if message is None:
        compare("onnx", lambda inputs: [found], (), [expected])
        return
    with pytest.raises(HeteroFLError, match=message):
        compare("onnx", lambda inputs: [found], (), [expected])


def test_an_earlier_export_is_replaced_and_other_files_stay(tmp_path, monkeypatch):
    """All is written within the folder, which may be mounted alone, and its parent read-only."""
    model, inputs = small()
    (tmp_path / "mine.txt").touch()
    temporary = Mock(wraps=TemporaryDirectory)
    monkeypatch.setattr(export, "TemporaryDirectory", temporary)
    for formats_ in (["safetensors", "pt2"], ["safetensors"]):
        export_model(model, inputs, tmp_path, formats=formats_)
        assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", *(f"model.{name}" for name in formats_)}
    assert [used.kwargs["dir"] for used in temporary.call_args_list] == [tmp_path] * 2


def test_float16_is_compared_within_its_own_precision(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4)).half()
    assert export_model(model, torch.randn(16, 64).half(), tmp_path / "half", formats=["onnx"])


FOR_TWO = Then(lambda self, x: x * torch.ones(2, 1) if len(x) == 2 else x)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.InstanceNorm2d(1, track_running_stats=True), images(1), "norms have no statistics in 1 layer"),
        (Then(lambda self, x: nn.functional.dropout(x)), torch.ones(9, 9), "the same each time: with F.dropout, give"),
        (Then(lambda self, x: x / 0), torch.ones(2, 3), "hold NaN or infinities"),
        (Then(lambda self, x: x * 2 if x.sum() > 0 else x), torch.ones(2, 3), "cannot make a program of Then"),
        (Then(lambda self, x: (x, range(3))), torch.ones(2, 3), "returns tensors alone .*config.use_cache = False"),
        (FOR_TWO, torch.ones(2, 3), "takes lengths from their shapes"),
        (FOR_TWO, (torch.zeros(2, 1), 3), "the inputs are tuple; expected"),
        (nn.Linear(3, 2), torch.ones(2, 4), "Linear does not run on the inputs: RuntimeError: .*mat1"),
    ],
)
def test_a_model_or_inputs_that_cannot_be_exported_raise(model, inputs, message, tmp_path):
    with pytest.raises(HeteroFLError, match=message):
        export_model(model, inputs, tmp_path / "a", formats=["pt2"])
    assert list(tmp_path.iterdir()) == []


def test_invalid_or_missing_formats_raise(tmp_path, monkeypatch):
    for names, found in ((["onnx", "tflite"], "tflite; expected some of safetensors, pt2, onnx"), ([], "none")):
        with pytest.raises(ConfigError, match=f"formats are {found}"):
            export_model(*small(), tmp_path / "c", formats=names)
    for name in ("formats", "outputs"):
        with pytest.raises(ConfigError, match=f"{name} is 'onnx'; expected a list of names"):
            export_model(*small(), tmp_path / "c", **{"formats": ["pt2"], name: "onnx"})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*heterofl-flwr\[export\].*\(safetensors,pt2\)"):
        export_model(*small(), tmp_path / "c")
    export_model(*small(), tmp_path / "c", formats=["safetensors", "pt2"])


def test_tied_weights_are_written_once(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    inputs = torch.randn(4, 3)
    export_model(model, inputs, tmp_path, formats=["safetensors", "pt2"])
    program = torch.export.load(tmp_path / "model.pt2").module(check_guards=False)
    torch.testing.assert_close(program(inputs), model(inputs))
    path = tmp_path / "model.safetensors"
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


def test_instance_norm_without_statistics_in_the_file_loses_its_own(tmp_path):
    """with_static_norm removes them, so a model of the run's own code could not load the file."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    inputs = images(1)
    export_model(model, inputs, tmp_path / "a", formats=["safetensors"], moments=collect_moments(model, [inputs]))
    loaded = load_state(model, tmp_path / "a" / "model.safetensors")
    assert torch.equal(compute(loaded, inputs), compute(model.train(), inputs))


def test_tensors_of_another_model_raise(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(nn.Linear(2, 2), path)
    save_file(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(ShapeError, match=r"does not fit this Linear.*weight"):
        load_state(nn.Linear(2, 2), path)
