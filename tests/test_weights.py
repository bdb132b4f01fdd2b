"""Weight files: what is read, and how the wrong ones are refused."""

import json
import struct
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    "parts", [{"refine": True, "spread": True}, {"refine": True}, {"use_skip": False, "spread": True}]
)
def test_further_parts_come_back(tmp_path, parts):
    model = HybridGNet(ModelConfig(64, **parts)).eval()
    if model.config.spread:
        model.spread.error_factor.copy_(torch.randn(240, 240))
    save_weights(model, tmp_path / "w.safetensors", {})
    loaded = load_weights(tmp_path / "w.safetensors").model
    assert loaded.config == model.config
    assert same(model, loaded)
    torch.save(model.state_dict(), tmp_path / "w.bin")
    assert load_weights(tmp_path / "w.bin").model.config == replace(model.config, map_sampling="adaptive")


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["spread.error_factor", "spread.entry.bias"], "spread.error_factor"),
        (["spread.exit.weight"], "spread.exit.weight"),
        (["refine_1.graphConv_in.lins.3.weight"], "refine_1.graphConv_in.lins.3.weight"),
        (["refine_1.graphConv_out.lins.0.weight"], "refine_1.graphConv_out.lins.0.weight"),
    ],
)
def test_a_further_part_that_is_not_whole_is_named(tmp_path, gone, named):
    state = HybridGNet(ModelConfig(64, refine=True, spread=True)).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name not in gone}, tmp_path / "w.bin")
    with pytest.raises(FormatError, match=f"{named} is missing"):
        load_weights(tmp_path / "w.bin")


def test_a_file_from_before_the_further_parts_is_read(model, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = {name: value for name, value in asdict(model.config).items() if name not in ("refine", "spread")}
    save_file(state, tmp_path / "w.safetensors", metadata={"cxu_config": json.dumps(content)})
    assert load_weights(tmp_path / "w.safetensors").model.config == model.config


def test_half_precision_on_disk_is_float32_in_memory(model, tmp_path):
    save_weights(model, tmp_path / "half.safetensors", {}, dtype=torch.float16)
    loaded = load_weights(tmp_path / "half.safetensors").model
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(loaded.dec_lin.weight, model.dec_lin.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.safetensors"])
def test_published_state_dicts_are_read_by_their_own_names(model, tmp_path, prefix, name):
    state = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
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


def test_a_refused_pickle_is_not_recommended_to_be_run(tmp_path):
    torch.save({"dec_lin.bias": Payload()}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"w\.pt.*holds more than tensors") as caught:
        load_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {}}, torch.zeros(3)])
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


@pytest.fixture(scope="module")
def pickled(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pickled") / "w.bin"
    torch.save(model.state_dict(), path)
    return path.read_bytes()


@pytest.mark.slow
def test_a_damaged_pickle_is_an_error_of_ours_wherever_the_damage_is(pickled, tmp_path):
    path, rng = tmp_path / "w.bin", np.random.default_rng(7)
    start = pickled.index(b"encoder.")  # within the pickle, before the first storage
    for position in [*rng.integers(0, start + 3000, 60), *rng.integers(len(pickled) - 5000, len(pickled), 20)]:
        damaged = bytearray(pickled)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_weights(path)
        except FormatError as error:
            assert str(path) in str(error)  # noqa: PT017 - a flipped bit may also be one that does not matter


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,400]}}',
        b'{"a":{"dtype":"F32","shape":[100000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
@pytest.mark.parametrize("announced", [None, 3, 1 << 62])
def test_a_torn_safetensors_header_is_refused(tmp_path, header, announced):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if announced is None else announced) + header + bytes(8))
    with pytest.raises(FormatError, match=r"w\.safetensors"):
        load_weights(path)


def test_an_archive_that_swells_is_refused_before_it_is_read(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "w.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match=r"w\.bin.*archive that unpacks to 4\d{6} bytes"):
        load_weights(tmp_path / "w.bin")


def test_a_tensor_larger_than_its_file_is_refused(model, tmp_path):
    huge = torch.zeros(1).expand(64, 128 * 10**10)
    torch.save(edited(model, lambda state: state.update({"encoder.fc_mu.weight": huge})), tmp_path / "w.bin")
    with pytest.raises(FormatError, match=r"encoder\.fc_mu\.weight.*more than the file holds"):
        load_weights(tmp_path / "w.bin")


def test_a_network_beyond_reason_is_not_built(model, tmp_path):
    wide = torch.zeros(100_000, 1)
    torch.save(edited(model, lambda state: state.update({"graphConv_up6.lins.0.weight": wide})), tmp_path / "w.bin")
    with pytest.raises(FormatError, match="imply filters 100000; expected 1024 at most"):
        load_weights(tmp_path / "w.bin")


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.to_sparse, lambda tensor: torch.quantize_per_tensor(tensor, 1.0, 0, torch.quint8)],
    ids=["sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates quantised tensors
def test_tensors_of_another_kind_are_refused(model, tmp_path, convert):
    tensor = convert(torch.zeros(960))
    torch.save(edited(model, lambda state: state.update({"dec_lin.bias": tensor})), tmp_path / "w.bin")
    with pytest.raises(FormatError, match=r"w\.bin"):
        load_weights(tmp_path / "w.bin")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_precisions_are_read_as_float32(model, tmp_path, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, tmp_path / "w.bin")
    loaded = load_weights(tmp_path / "w.bin").model
    assert torch.equal(loaded.dec_lin.weight, model.dec_lin.weight.to(dtype).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1 << 20}, "configuration says .*size=1048576.*its tensors .*size=64"),
        ({"order": 10**9}, "configuration says .*order=1000000000"),
        ({"map_sampling": "random"}, "damaged .*'random'"),
        ({"size": 65}, "damaged .*65"),
        ({"unknown": 1}, "damaged .*unknown"),
    ],
)
def test_a_configuration_that_the_tensors_contradict_is_refused(model, tmp_path, change, message):
    content = json.dumps({**asdict(model.config), **change})
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", metadata={"cxu_config": content})
    with pytest.raises(FormatError, match=message):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["[1]", "3", "null", "{", "\xff", "[" * 100_000])
def test_a_config_file_that_is_none_is_refused(model, tmp_path, text):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"config\.json(:| is no JSON)"):
        load_weights(tmp_path)


def test_a_stranger_is_told_by_its_first_tensor(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"not the weights of a HybridGNet; the first tensor in it is conv1\.weight"):
        load_weights(tmp_path / "w.pt")
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"encoder\.fc_mu\.weight is missing"):
        load_weights(tmp_path / "w.pt")


def test_messages_use_the_origin_where_there_is_one(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"^weights v1 of ann/nets: "):
        load_weights(tmp_path / "w.pt", origin="v1 of ann/nets")


def test_a_folder_named_like_a_file_is_a_folder(model, tmp_path):
    save_weights(model, tmp_path / "w.safetensors" / "model.safetensors", {})
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.origin, loaded.repo, loaded.revision) == (
        str(tmp_path / "w.safetensors" / "model.safetensors"),
        None,
        None,
    )


@pytest.mark.shared
def test_names_and_shapes_are_the_published_ones():
    if not SHAPES.is_file():
        pytest.skip("needs ../shared/fixtures/reference_state_dict_128.json")
    for variant, shapes in json.loads(SHAPES.read_text()).items():
        ours = HybridGNet(ModelConfig(128, use_skip=variant == "skip")).state_dict()
        assert {name: list(value.shape) for name, value in ours.items()} == shapes
