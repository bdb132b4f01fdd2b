"""Weight files: what is read, and how the wrong ones are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cxu.errors import FormatError, MissingInputError
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.weights import load_weights, save_weights

SHAPES = Path(__file__).parents[2] / "shared" / "fixtures" / "reference_state_dict_128.json"


@pytest.fixture(scope="module", params=[True, False], ids=["skip", "no_skip"])
def model(request):
    torch.manual_seed(1)
    return HybridGNet(ModelConfig(64, use_skip=request.param)).eval()


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_saved_weights_come_back(model, tmp_path):
    save_weights(model, tmp_path / "mine.safetensors", {"note": "tiny"})
    loaded = load_weights(tmp_path / "mine.safetensors")
    assert same(model, loaded.model)
    assert loaded.model.config == model.config
    assert loaded.metadata["note"] == "tiny"
    assert not loaded.model.training
    assert len(loaded.model_id) == 64


def test_half_precision_on_disk_is_float32_in_memory(model, tmp_path):
    save_weights(model, tmp_path / "half.safetensors", {}, dtype=torch.float16)
    loaded = load_weights(tmp_path / "half.safetensors").model
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(loaded.dec_lin.weight, model.dec_lin.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.safetensors"])
def test_published_state_dicts_are_read_by_their_own_names(model, tmp_path, prefix, name):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    loaded = load_weights(tmp_path / name)
    assert same(model, loaded.model)
    assert loaded.model.config.use_skip == model.config.use_skip
    assert loaded.model.config.size == 64
    assert loaded.model.config.map_sampling == "adaptive"


def test_a_folder_is_read_and_its_config_must_agree(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    content = {"latents": 64, "inputsize": 64, "K": 6, "use_skip": model.config.use_skip, "eval_sampling": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert same(model, load_weights(tmp_path).model)
    (tmp_path / "config.json").write_text(json.dumps({**content, "inputsize": 1024}))
    with pytest.raises(FormatError, match="inputsize = 1024"):
        load_weights(tmp_path)


def edited(model, edit):
    state = dict(model.state_dict())
    edit(state)
    return state


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("graphConv_up3.bias"), "graphConv_up3.bias is missing"),
        (lambda state: state.pop("encoder.fc_mu.weight"), "encoder.fc_mu.weight is missing"),
        (
            lambda state: state.update({"dec_lin.bias": torch.zeros(7)}),
            r"dec_lin.bias has shape \[7\], expected \[960\]",
        ),
        (lambda state: state.update({"encoder.fc_mu.weight": torch.zeros(64)}), "encoder.fc_mu.weight has shape"),
        (lambda state: state.update({"encoder.fc_mu.weight": torch.zeros(64, 1000)}), "takes 1000 features"),
        (lambda state: state.update({"dec_lin.bias": torch.full((960,), torch.nan)}), "dec_lin.bias.*no finite"),
        (lambda state: state.update({"dec_lin.bias": torch.zeros(960, dtype=torch.int64)}), "dec_lin.bias.*no finite"),
        (lambda state: state.update({"surplus": torch.zeros(1)}), "surplus is no tensor"),
    ],
)
def test_wrong_tensors_are_named(model, tmp_path, edit, message):
    torch.save(edited(model, edit), tmp_path / "w.bin")
    with pytest.raises(FormatError, match=message):
        load_weights(tmp_path / "w.bin")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_files_are_refused(model, tmp_path, name, keep):
    path = tmp_path / name
    torch.save(model.state_dict(), path) if name.endswith("bin") else save_weights(model, path, {})
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep in (0, 10) else int(keep * len(content))])
    with pytest.raises(FormatError, match=r"w\.(bin|safetensors)"):
        load_weights(path)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"dec_lin.bias": Payload()}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"w\.pt"):
        load_weights(tmp_path / "w.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3)])
def test_something_else_in_a_weight_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FormatError, match="dictionary of tensors"):
        load_weights(tmp_path / "w.pt")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        load_weights(tmp_path / "none.bin")
    with pytest.raises(MissingInputError, match=r"neither model\.safetensors"):
        load_weights(tmp_path)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"ending in \.safetensors"):
        load_weights(tmp_path / "w.onnx")


@pytest.mark.shared
def test_names_and_shapes_are_the_published_ones():
    if not SHAPES.is_file():
        pytest.skip("needs ../shared/fixtures/reference_state_dict_128.json")
    for variant, shapes in json.loads(SHAPES.read_text()).items():
        ours = HybridGNet(ModelConfig(128, use_skip=variant == "skip")).state_dict()
        assert {name: list(value.shape) for name, value in ours.items()} == shapes
