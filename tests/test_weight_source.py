"""Weights from anywhere: the real huggingface_hub client against a loopback Hub that serves model repositories."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
import torch

from cxu.errors import (
    FormatError,
    HubAccessError,
    HubConnectionError,
    HubNotFoundError,
    IntegrityError,
    MissingInputError,
    UsageError,
)
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.weight_source import find_weights, load
from cxu.model.weights import bundled_path, bundled_variants, save_weights
from hub_server import HubServer

REPO = "ann/nets"
SPEC = f"{REPO}:v1_skip"
PICKLE, CONFIG = "v1_skip/pytorch_model.bin", "v1_skip/config.json"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return HybridGNet(ModelConfig(64, map_sampling="adaptive")).eval()


def pickled(model, edit=lambda state: None):
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    edit(state)
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def config_json(**changed):
    content = {
        "latents": 64,
        "inputsize": 64,
        "K": 6,
        "filters": [2, 32, 32, 32, 16, 16, 16],
        "skip_features": 128,
        "eval_sampling": True,
        "use_skip": True,
    }
    return json.dumps(content | changed).encode()


@pytest.fixture(scope="module")
def content(model):
    return pickled(model)


@pytest.fixture
def files(content):
    return {PICKLE: content, CONFIG: config_json(), "README.md": b"# nets\n"}


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr("cxu.hub_retry.sleep", waited.append)
    return waited


@pytest.fixture
def server(tmp_path, monkeypatch, pauses, files):
    monkeypatch.chdir(tmp_path)
    with HubServer() as running:
        running.add(REPO, files, repo_type="model")
        running.lead_here(monkeypatch, tmp_path / "hf")
        yield running


def commit(server, repo=REPO):
    return server.repos["model", repo].branches["main"]


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# From the Hub


def test_a_folder_of_a_model_repository_is_fetched_and_loaded(server, model, content):
    weights = load(SPEC)
    assert same(model, weights.model)
    assert weights.model.config == model.config
    assert weights.model_id == hashlib.sha256(content).hexdigest()
    assert (weights.repo, weights.revision) == (REPO, commit(server))
    assert weights.origin == f"{PICKLE} of {REPO} at commit {commit(server)[:12]}"


def test_what_was_found_is_in_the_cache_with_its_configuration(server, content):
    found = find_weights(SPEC)
    assert found.path.read_bytes() == content
    assert found.config_path is not None
    assert found.config_path.read_bytes() == config_json()
    assert found.path.parent == found.config_path.parent


def test_progress_counts_the_bytes_of_both_files(server, content):
    steps = []
    find_weights(SPEC, progress=steps.append)
    assert sum(steps) == len(content) + len(config_json())


def test_a_second_call_moves_no_file(server, content):
    first = find_weights(SPEC)
    asked = len(server.requests)
    assert find_weights(SPEC) == first
    assert server.bytes_sent(PICKLE) == len(content)
    assert {request.stage for request in server.requests[asked:]} == {"api"}


def test_offline_takes_what_is_cached_and_asks_nobody(server):
    first = load(SPEC)
    asked = len(server.requests)
    again = load(SPEC, offline=True)
    assert (again.model_id, again.revision) == (first.model_id, first.revision)
    assert len(server.requests) == asked


def test_offline_with_an_empty_cache_says_so(server):
    with pytest.raises(HubConnectionError, match="offline, and nothing of model repository 'ann/nets'"):
        find_weights(SPEC, offline=True)
    assert server.requests == []


def test_offline_with_another_folder_cached_says_what_there_is(server, files):
    server.add(REPO, files | {"v2/pytorch_model.bin": files[PICKLE]}, repo_type="model")
    find_weights(SPEC)
    with pytest.raises(HubConnectionError, match=r"offline.*'v2'.*weights lie in: v1_skip\..*without --offline"):
        find_weights(f"{REPO}:v2", offline=True)


def test_the_environment_may_say_offline(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubConnectionError, match="offline"):
        find_weights(SPEC)


def test_a_revision_is_taken_at_its_commit(server, files, model):
    other = HybridGNet(ModelConfig(64, use_skip=False))
    old = server.add("ann/two", {"a/b/pytorch_model.bin": pickled(other)}, repo_type="model", revision="refs/pr/1")
    server.add("ann/two", {"a/b/pytorch_model.bin": files[PICKLE]}, repo_type="model")
    for revision in ("refs/pr/1", old):
        weights = load(f"ann/two@{revision}:a/b")
        assert (weights.revision, weights.model.config.use_skip) == (old, False)
    assert load("ann/two:a/b/").model.config.use_skip


def test_safetensors_win_over_a_pickle(server, model, tmp_path, files):
    save_weights(model, tmp_path / "model.safetensors", {})
    content = (tmp_path / "model.safetensors").read_bytes()
    server.add("ann/both", {"model.safetensors": content, "pytorch_model.bin": files[PICKLE]}, repo_type="model")
    weights = load("ann/both")
    assert weights.model_id == hashlib.sha256(content).hexdigest()
    assert server.bytes_sent("pytorch_model.bin") == 0


def test_a_repository_without_configuration_will_do(server, files):
    server.add("ann/bare", {"pytorch_model.bin": files[PICKLE]}, repo_type="model")
    assert find_weights("ann/bare").config_path is None
    assert load("ann/bare").model.config.size == 64


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{REPO}:v1_skp", r"'v1_skp'.*weights lie in: v0, v1_skip\. Did you mean ann/nets:v1_skip\?"),
        (f"{REPO}@main:docs", r"'docs'.*weights lie in: v0, v1_skip\. Did you mean ann/nets@main:v"),
        (REPO, r"model repository 'ann/nets'.*weights lie in: v0, v1_skip\. Did you mean ann/nets:v0\?"),
        (f"{REPO}:{PICKLE}", r"Did you mean ann/nets:v1_skip\?"),
        ("ann/empty", r"'ann/empty'.*neither model\.safetensors nor pytorch_model\.bin, nor does any folder"),
        ("ann/flat:v1", r"weights lie in: the repository itself\. Did you mean ann/flat\?"),
        ("ann/none", "no model repository 'ann/none'"),
        (f"{REPO}@v9:v1_skip", "no revision 'v9'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(server, files, spec, message):
    server.add(REPO, files | {"docs/a.md": b"a", "v0/model.safetensors": b"x"}, repo_type="model")
    server.add("ann/empty", {"README.md": b"# nothing\n"}, repo_type="model")
    server.add("ann/flat", {"pytorch_model.bin": b"x"}, repo_type="model")
    with pytest.raises(HubNotFoundError, match=message):
        find_weights(spec)
    assert not [request for request in server.requests if request.stage == "storage"]


def test_a_dataset_of_that_name_is_no_model(server):
    server.add("ann/data", {"pytorch_model.bin": b"x"})
    with pytest.raises(HubNotFoundError, match="no model repository 'ann/data'"):
        find_weights("ann/data")


def test_a_refusal_says_how_to_get_access(server):
    server.token = "hf_secret"
    with pytest.raises(HubAccessError, match="HF_TOKEN"):
        find_weights(SPEC)


def test_a_token_is_sent_to_the_hub_and_not_to_its_storage(server, monkeypatch):
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    find_weights(SPEC)
    assert {request.authorization for request in server.requests if request.stage == "storage"} == {""}


def test_an_altered_file_is_refused_and_leaves_nothing_behind(server, tmp_path):
    server.fail(PICKLE, alter=True)
    with pytest.raises(IntegrityError, match=r"pytorch_model\.bin.*is damaged"):
        load(SPEC)
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin"))
    assert load(SPEC).revision == commit(server)


def test_a_file_damaged_in_the_cache_is_fetched_anew(server, content):
    path = find_weights(SPEC).path
    path.write_bytes(content[:-1] + b"x")
    assert find_weights(SPEC).path.read_bytes() == content
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is damaged"):
        find_weights(SPEC, offline=True)


def test_a_broken_connection_is_resumed_within_a_call(server, content, pauses):
    server.fail(PICKLE, drop_after=1 << 18)
    assert find_weights(SPEC).path.read_bytes() == content
    assert len(pauses) == 1
    assert server.bytes_sent(PICKLE) < len(content) + (1 << 18)


def test_an_interrupted_download_is_resumed_by_the_next_call(server, content):
    server.fail(PICKLE, stop_at=1 << 18, times=None)
    with pytest.raises(IntegrityError, match=r"pytorch_model\.bin.*is truncated"):
        load(SPEC)
    server.heal()
    asked = len(server.requests)
    assert find_weights(SPEC).path.read_bytes() == content
    ranges = {request.range for request in server.requests[asked:] if request.stage == "storage" and request.range}
    assert f"bytes={1 << 18}-" in ranges
    assert "" not in {r.range for r in server.requests[asked:] if (r.stage, r.method) == ("storage", "GET")}


def test_a_full_disk_is_found_before_the_download(server, monkeypatch):
    monkeypatch.setattr("cxu.hub.check_space", lambda folder, needed, what: refuse(f"{needed} bytes for {what}"))

    def refuse(said):
        raise OSError(said)

    with pytest.raises(OSError, match=r"^\d{7} bytes for the weights ann/nets:v1_skip$"):
        find_weights(SPEC)
    assert not [request for request in server.requests if request.stage != "api"]


# What is fetched may still be wrong


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputsize": 1024}, "inputsize = 1024, the weights beside it have 64"),
        ({"use_skip": False}, "use_skip = False, the weights beside it have True"),
        ({"latents": 32}, "latents = 32"),
        ({"K": 3}, "K = 3"),
    ],
)
def test_a_configuration_that_disagrees_is_refused(server, files, changed, message):
    server.add(REPO, files | {CONFIG: config_json(**changed)}, repo_type="model")
    with pytest.raises(FormatError, match=message):
        load(SPEC)


def test_what_else_a_configuration_says_is_not_read(server, files):
    server.add(REPO, files | {CONFIG: config_json(filters="?", skip_features=0, architecture="x")}, repo_type="model")
    assert load(SPEC).model.config.filters == (16, 32)


def test_a_wrong_tensor_is_named_with_its_repository(server, model):
    content = pickled(model, lambda state: state.pop("model.dec_lin.bias"))
    server.add(REPO, {PICKLE: content}, repo_type="model")
    with pytest.raises(
        FormatError, match=r"v1_skip/pytorch_model\.bin of ann/nets at commit .*: dec_lin\.bias is missing"
    ):
        load(SPEC)


# From this machine


def test_a_local_file_or_folder_has_no_repository(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(model, tmp_path / "nets" / "model.safetensors", {})
    path = tmp_path / "nets" / "model.safetensors"
    for spec in (str(path), str(path.parent), "nets", "./nets", "nets/model.safetensors"):
        weights = load(spec)
        assert (weights.repo, weights.revision) == (None, None)
        assert same(model, weights.model)
    assert find_weights(str(path)).origin == str(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("~/nets").path == path


def test_an_existing_folder_wins_over_a_repository(server, model, tmp_path):
    save_weights(model, tmp_path / REPO / "model.safetensors", {})
    found = find_weights(REPO)
    assert (found.repo, found.origin) == (None, f"{REPO}/model.safetensors")
    assert server.requests == []


def test_a_local_configuration_must_agree(model, tmp_path):
    save_weights(model, tmp_path / "model.safetensors", {})
    (tmp_path / "config.json").write_bytes(config_json(K=5))
    assert find_weights(str(tmp_path)).config_path == tmp_path / "config.json"
    with pytest.raises(FormatError, match="K = 5"):
        load(str(tmp_path))


def test_an_empty_folder_is_no_repository(server, tmp_path):
    (tmp_path / REPO).mkdir(parents=True)
    with pytest.raises(MissingInputError, match=r"ann/nets: the folder holds neither model\.safetensors nor"):
        find_weights(REPO)


@pytest.mark.parametrize(
    "spec",
    [
        "./none",
        "../ann/nets",
        "/none/nets:v1",
        "~/none",
        "none.safetensors",
        "ann/net.bin",
        "ann/net.pt",
        "net.pth",
        "a/b/c",
        "a/b/c:v1",
        "C:\\nets\\x",
    ],
)
def test_what_looks_like_a_path_is_never_looked_for_on_the_hub(server, spec):
    with pytest.raises(MissingInputError, match=r"no such file or folder; expected 'bundled', a file"):
        find_weights(spec)
    assert server.requests == []


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "nets",
        "bundle",
        "ann/nets:",
        "ann/nets@",
        "ann/nets@:v1",
        ":v1",
        "@main",
        "ann/ne ts",
        "-a/b",
        "a--b/c",
        "https://hf.co/a/b",
    ],
)
def test_what_is_neither_path_nor_model_is_a_wrong_request(server, spec):
    with pytest.raises(UsageError, match=r"no name of a Hub model; expected|is no repository name"):
        find_weights(spec)
    assert server.requests == []


@pytest.mark.parametrize("spec", ["ann/nets:../..", "ann/nets:/etc", "ann/nets:a//b", "ann/nets:\n"])
def test_a_folder_cannot_lead_out_of_the_repository(server, spec):
    with pytest.raises(HubNotFoundError, match="Did you mean ann/nets:v1_skip"):
        find_weights(spec)


def test_bundled_weights_are_found_without_the_hub(server):
    found = find_weights("bundled")
    assert (found.path.suffix, found.origin, found.repo) == (".safetensors", "bundled", None)
    assert server.requests == []


def test_bundled_variants_are_found_by_name(server):
    assert find_weights("bundled").path == find_weights("bundled:igsc").path == bundled_path()
    for variant in bundled_variants():
        found = find_weights(f"bundled:{variant}")
        assert (found.path, found.origin) == (bundled_path(variant), f"bundled:{variant}")
    assert server.requests == []


def test_every_bundled_variant_is_the_network_it_is_called():
    for variant in bundled_variants():
        assert load(f"bundled:{variant}").model.config.use_skip == (variant == "igsc")


@pytest.mark.parametrize("variant", ["foo", "", "IGSC", "../x", "igsc:a"])
def test_an_unknown_bundled_variant_is_answered_with_those_there_are(server, variant):
    known = ", ".join(f"bundled:{one}" for one in bundled_variants())
    with pytest.raises(UsageError, match=f"^weights bundled:{variant}: .*; expected one of: {known}$"):
        find_weights(f"bundled:{variant}")
    assert server.requests == []


def test_variants_are_the_files_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("cxu.model.weights.package_files", lambda name: tmp_path)
    with pytest.raises(MissingInputError, match="missing from this installation"):
        find_weights("bundled:no-skip")
    (tmp_path / "bundled").mkdir()
    for name in ("hybridgnet-no-skip.safetensors", "hybridgnet-a.safetensors", "README.md"):
        (tmp_path / "bundled" / name).write_text("")
    assert bundled_variants() == ("a", "no-skip")
    with pytest.raises(MissingInputError, match="missing from this installation"):
        find_weights("bundled")
    (tmp_path / "bundled" / "hybridgnet-igsc.safetensors").write_text("")
    assert bundled_variants() == ("igsc", "a", "no-skip")
    assert find_weights("bundled:no-skip").path.name == "hybridgnet-no-skip.safetensors"


def test_a_local_file_can_be_called_as_bundled_weights_are(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled:x").mkdir()
    save_weights(model, tmp_path / "bundled:x" / "model.safetensors", {})
    assert find_weights("./bundled:x").path.name == "model.safetensors"
