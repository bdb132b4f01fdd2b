"""The real huggingface_hub client against a loopback Hub, in every way a download can go wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest

from cxu import hub
from cxu.errors import (
    DiskSpaceError,
    HubAccessError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    IntegrityError,
    UsageError,
)
from hub_server import HubServer

REPO = "ann/chest"
CSV = "Preprocessed/mimic.csv"
CONTENT = bytes(range(251)) * 2400  # 602,400 bytes, no period that hides a wrong offset
FILES = {
    CSV: CONTENT,
    "OriginalResolution/vin dr ü.csv": b"image_id,Height\n" * 50,
    "OriginalResolution/empty.txt": b"",
    "README.md": b"# Landmarks\n",
    ".gitattributes": b"*.csv filter=lfs\n",
}
BREAK = 12 * 16 * 1024  # where connections break: whole blocks, as huggingface_hub below 1.0 delivers them
QUICK = hub.RetryPolicy(attempts=3, first_wait_s=1.0, longest_wait_s=60.0)


@pytest.fixture
def pauses(monkeypatch):
    """Collect the pauses between tries instead of waiting."""
    waited = []
    monkeypatch.setattr("cxu.hub_retry.sleep", waited.append)
    return waited


@pytest.fixture
def server(tmp_path, monkeypatch, pauses):
    with HubServer(page_size=2) as running:
        running.add(REPO, FILES)
        running.lead_here(monkeypatch, tmp_path / "hf")
        yield running


def pick(listing, path=CSV):
    return next(file for file in listing.files if file.path == path)


def fetch(path=CSV, **options):
    listing = hub.list_files(REPO)
    return hub.download(listing, pick(listing, path), retry=QUICK, **options)


def blobs(tmp_path):
    return sorted(path.name for path in tmp_path.glob("hf/hub/*/blobs/*"))


# Listing


def test_listing_follows_the_pages(server):
    listing = hub.list_files(REPO)
    assert {file.path: file.size for file in listing.files} == {path: len(body) for path, body in FILES.items()}
    assert (listing.revision, listing.commit) == ("main", server.repos["dataset", REPO].branches["main"])
    assert len([r for r in server.requests if "/tree/" in r.url]) == 4  # 5 files and 2 folders, 2 a page


def test_listing_holds_the_published_hash_of_each_file(server):
    listing = hub.list_files(REPO)
    large, small = pick(listing), pick(listing, "README.md")
    assert (large.sha256, large.git_oid) == (hashlib.sha256(CONTENT).hexdigest(), None)
    assert (small.sha256, small.git_oid) == (None, hashlib.sha1(b"blob 12\0# Landmarks\n").hexdigest())


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1"])
def test_a_revision_is_resolved_to_its_own_commit(server, revision):
    commit = server.add(REPO, {"a.csv": b"other"}, revision=revision)
    listing = hub.list_files(REPO, revision=revision)
    assert (listing.commit, [file.path for file in listing.files]) == (commit, ["a.csv"])
    assert hub.list_files(REPO, revision=commit).files == listing.files


def test_what_was_listed_is_downloaded_although_the_branch_moved_on(server):
    listing = hub.list_files(REPO)
    server.add(REPO, {CSV: b"newer"})
    assert hub.download(listing, pick(listing)).path.read_bytes() == CONTENT


def test_a_next_page_on_another_host_is_asked_here(server, monkeypatch):
    # a mirror may pass on links to the original host
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint.replace("127.0.0.1", "localhost"))
    hub.list_files(REPO)
    assert {request.headers["host"].partition(":")[0] for request in server.requests} == {"localhost"}


@pytest.mark.parametrize("path", ["../up.csv", "a/../../up.csv", "a\\up.csv", "/up.csv", "a//up.csv"])
def test_a_listing_that_leads_out_of_the_repository_is_refused(server, path):
    server.add(REPO, {path: b"x"})
    with pytest.raises(HubError, match="no file listing"):
        hub.list_files(REPO)


@pytest.mark.parametrize("name", ["", "a/b/c", "../b", "ann/..", "ann/chest?x", "ann/a--b", "ann/x.git", "ä/b"])
def test_what_is_no_repository_name_is_refused_before_any_request(server, name):
    with pytest.raises(UsageError, match="Expected OWNER/NAME"):
        hub.list_files(name)
    assert server.requests == []


def test_an_answer_that_is_no_listing(server):
    server.fail(status=200)
    with pytest.raises(HubError, match=r"127\.0\.0\.1:\d+ answered .* no file listing.*HF_ENDPOINT"):
        hub.list_files(REPO)


# Download and cache


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_downloaded_verified_and_then_cached(server, path):
    first = fetch(path)
    assert first.path.read_bytes() == FILES[path]
    assert (first.sha256, first.was_cached) == (hashlib.sha256(FILES[path]).hexdigest(), False)
    assert fetch(path) == dataclasses.replace(first, was_cached=True)
    assert server.bytes_sent(path) == len(FILES[path])


def test_huggingface_hub_finds_what_was_downloaded(server, tmp_path):
    download = fetch()
    found = huggingface_hub.hf_hub_download(
        REPO, CSV, repo_type="dataset", cache_dir=tmp_path / "hf" / "hub", local_files_only=True
    )
    assert Path(found) == download.path
    assert blobs(tmp_path) == [download.sha256]


def test_what_huggingface_hub_downloaded_is_used(server, tmp_path):
    cache = tmp_path / "hf" / "hub"
    path = huggingface_hub.hf_hub_download(
        REPO, CSV, repo_type="dataset", cache_dir=cache, endpoint=server.endpoint, revision="main"
    )
    download = fetch()
    assert (download.path, download.was_cached) == (Path(path), True)
    assert server.bytes_sent(CSV) == len(CONTENT)


def test_a_model_repository_with_a_folder(server):
    server.add("ann/weights", {"v1/model.safetensors": b"weights"}, repo_type="model")
    listing = hub.list_files("ann/weights", repo_type="model")
    download = hub.download(listing, pick(listing, "v1/model.safetensors"))
    assert download.path.read_bytes() == b"weights"
    assert "models--ann--weights" in download.path.parts


@pytest.mark.parametrize(
    ("name", "value", "folder"),
    [("HF_HUB_CACHE", "one", "one"), ("HUGGINGFACE_HUB_CACHE", "two", "two"), ("HF_HOME", "three", "three/hub")],
)
def test_the_cache_is_where_the_environment_says_now(server, tmp_path, monkeypatch, name, value, folder):
    for other in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / value))
    assert hub.cache_folder() == tmp_path / folder
    assert fetch("README.md").path.is_relative_to(tmp_path / folder)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder() == Path("~/.cache/huggingface/hub").expanduser()


def test_a_disk_without_links_holds_a_file_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    download = fetch()
    assert download.path.read_bytes() == CONTENT
    assert (download.path.is_symlink(), blobs(tmp_path)) == (False, [])
    (file,) = hub.list_files(REPO, offline=True).files
    assert file == hub.HubFile(CSV, len(CONTENT), None, None)
    hub.forget(download)
    assert not download.snapshot.exists()


def test_missing_bytes_counts_what_is_not_there_yet(server, tmp_path):
    listing = hub.list_files(REPO)
    file = pick(listing)
    assert hub.missing_bytes(listing, file) == len(CONTENT)
    server.fail(CSV, stop_at=BREAK, times=None)
    with pytest.raises(IntegrityError):
        hub.download(listing, file, retry=QUICK)
    assert hub.missing_bytes(listing, file) == len(CONTENT) - BREAK
    server.heal()
    hub.download(listing, file)
    assert hub.missing_bytes(listing, file) == 0


# Interruptions


def test_a_dropped_connection_is_continued_where_it_broke(server, pauses):
    server.fail(CSV, drop_after=BREAK, times=2)
    assert fetch().path.read_bytes() == CONTENT
    assert server.bytes_sent(CSV) == len(CONTENT)
    ranges = [request.range for request in server.seen(CSV, stage="storage", method="GET")]
    assert ranges == ["", f"bytes={BREAK}-", f"bytes={2 * BREAK}-"]
    assert pauses == [1.0, 1.0]  # it advanced, so the count began again


def test_a_second_call_continues_what_the_first_one_left(server, tmp_path):
    server.fail(CSV, stop_at=BREAK, times=None)
    with pytest.raises(IntegrityError, match=rf"truncated: {BREAK} of 602400 bytes"):
        fetch()
    server.heal()
    assert fetch().path.read_bytes() == CONTENT
    assert server.bytes_sent(CSV) == len(CONTENT)
    assert blobs(tmp_path) == [hashlib.sha256(CONTENT).hexdigest()]  # no unfinished file is left


def test_a_server_without_ranges_sends_all_of_it_again(server):
    server.ranges = False
    server.fail(CSV, drop_after=BREAK)
    assert fetch().path.read_bytes() == CONTENT
    assert server.bytes_sent(CSV) == BREAK + len(CONTENT)


def test_ctrl_c_passes_and_leaves_a_resumable_file(server):
    listing = hub.list_files(REPO)
    with pytest.raises(KeyboardInterrupt):
        hub.download(listing, pick(listing), progress=failing_with(KeyboardInterrupt()))
    missing = hub.missing_bytes(listing, pick(listing))
    assert 0 < missing < len(CONTENT)
    assert hub.download(listing, pick(listing)).path.read_bytes() == CONTENT
    assert server.seen(CSV, stage="storage", method="GET")[-1].range == f"bytes={len(CONTENT) - missing}-"


def failing_with(error):
    """Return a progress function that fails as the writing would, once something has arrived."""

    def fail(count):
        if count:
            raise error

    return fail


def test_a_killed_download_continues(server, tmp_path):
    server.rate = 600_000
    code = (
        f"from cxu import hub; l = hub.list_files({REPO!r}); [hub.download(l, f) for f in l.files if f.path == {CSV!r}]"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while server.bytes_sent(CSV) < 200_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = sum(path.stat().st_size for path in tmp_path.glob("hf/hub/*/blobs/*.incomplete"))
    assert kept > 100_000
    server.rate = None
    assert fetch().path.read_bytes() == CONTENT
    assert server.seen(CSV, stage="storage", method="GET")[-1].range == f"bytes={kept}-"


def test_two_at_once_download_once(server):
    server.rate = 3_000_000
    listing = hub.list_files(REPO)
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(hub.download(listing, pick(listing)).path)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert paths[0] == paths[1]
    assert server.bytes_sent(CSV) == len(CONTENT)


# Integrity


def test_an_altered_file_is_removed_and_the_second_call_gets_the_right_one(server, tmp_path):
    server.fail(CSV, alter=True)
    found = hashlib.sha256(bytes([CONTENT[0] ^ 1]) + CONTENT[1:]).hexdigest()
    with pytest.raises(IntegrityError) as error:
        fetch()
    assert all(part in str(error.value) for part in (CSV, REPO, found, hashlib.sha256(CONTENT).hexdigest()))
    assert blobs(tmp_path) == []
    assert fetch().path.read_bytes() == CONTENT


def test_a_small_file_is_checked_by_its_git_hash(server):
    server.fail("README.md", alter=True)
    with pytest.raises(IntegrityError, match=r"README\.md"):
        fetch("README.md")
    assert fetch("README.md").path.read_bytes() == FILES["README.md"]


def test_a_spoilt_unfinished_file_is_downloaded_anew_at_once(server, tmp_path):
    listing = hub.list_files(REPO)
    folder = tmp_path / "hf" / "hub" / "datasets--ann--chest" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{pick(listing).sha256}.incomplete").write_bytes(b"nonsense" * 1000)
    assert hub.download(listing, pick(listing)).path.read_bytes() == CONTENT
    (folder / f"{pick(listing, 'README.md').git_oid}.incomplete").write_bytes(b"longer than the file itself")
    assert hub.download(listing, pick(listing, "README.md")).path.read_bytes() == FILES["README.md"]


def test_a_damaged_cached_file_is_downloaded_anew(server, caplog):
    first = fetch()
    first.path.write_bytes(CONTENT[:-1] + b"?")
    second = fetch()
    assert (second.path.read_bytes(), second.was_cached) == (CONTENT, False)
    assert "Downloading it anew" in caplog.text


def test_a_damaged_blob_of_another_revision_is_downloaded_anew(server):
    first = fetch()
    first.path.write_bytes(b"damaged")
    server.add(REPO, {"renamed.csv": CONTENT}, revision="v2")
    listing = hub.list_files(REPO, revision="v2")
    assert hub.download(listing, listing.files[0]).path.read_bytes() == CONTENT
    assert first.path.read_bytes() == CONTENT  # the two share it


def test_a_file_of_another_revision_is_not_downloaded_twice(server):
    fetch()
    server.add(REPO, {"renamed.csv": CONTENT}, revision="v2")
    listing = hub.list_files(REPO, revision="v2")
    assert hub.download(listing, listing.files[0]).path.read_bytes() == CONTENT
    assert server.bytes_sent("renamed.csv") == 0


@pytest.mark.parametrize(("difference", "message"), [(10, "truncated"), (-10, "is damaged")])
def test_a_file_whose_size_is_not_the_listed_one(server, difference, message):
    listing = hub.list_files(REPO)
    file = dataclasses.replace(pick(listing), size=len(CONTENT) + difference)
    with pytest.raises(IntegrityError, match=message):
        hub.download(listing, file, retry=QUICK)
    assert hub.download(listing, pick(listing)).path.read_bytes() == CONTENT


# Refusals


def test_401_without_a_token(server, pauses):
    server.token = "hf_secret"
    with pytest.raises(HubAccessError, match=r"401.*HF_TOKEN.*hf auth login.*/datasets/ann/chest") as error:
        hub.list_files(REPO)
    assert isinstance(error.value, PermissionError)
    assert pauses == []


def test_403_on_a_file_says_to_accept_the_terms(server):
    server.fail(CSV, status=403)
    with pytest.raises(HubAccessError, match=rf"403.*accept the terms at {server.endpoint}/datasets/ann/chest"):
        fetch()


def test_404_repository(server):
    with pytest.raises(HubNotFoundError, match=r"127.0.0.1:\d+ has no dataset repository 'ann/nothing'"):
        hub.list_files("ann/nothing")


def test_404_revision(server):
    with pytest.raises(HubNotFoundError, match="'ann/chest' has no revision 'v9'"):
        hub.list_files(REPO, revision="v9")


def test_404_file(server):
    listing = hub.list_files(REPO)
    missing = dataclasses.replace(pick(listing), path="Preprocessed/gone.csv")
    with pytest.raises(HubNotFoundError, match=r"no file 'Preprocessed/gone.csv' of dataset repository 'ann/chest'"):
        hub.download(listing, missing)


def test_another_refusal_is_passed_on(server, pauses):
    server.fail(CSV, status=410, headers={"X-Error-Message": "Gone for good"})
    with pytest.raises(HubError, match=r"410 \(Gone for good\)"):
        fetch()
    assert pauses == []


@pytest.mark.parametrize(("status", "error"), [(403, HubAccessError), (410, HubError), (404, HubNotFoundError)])
def test_a_refusal_of_huggingface_hub_s_own_request_loses_nothing(server, status, error):
    server.fail(CSV, status=status, methods=("HEAD",))
    with pytest.raises(error, match=CSV):
        fetch()
    assert fetch().path.read_bytes() == CONTENT
    assert server.bytes_sent(CSV) == len(CONTENT)


def test_the_token_is_sent_to_the_hub_only_and_never_shown(server, monkeypatch, caplog):
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    authorizations = {stage: {r.authorization for r in server.seen(stage=stage)} for stage in ("api", "resolve")}
    assert authorizations == {"api": {"Bearer hf_secret"}, "resolve": {"Bearer hf_secret"}}
    assert {r.authorization for r in server.seen(stage="storage")} == {""}
    for status in (403, 503):
        server.fail(status=status, times=3, headers={"X-Error-Message": "Authorization: Bearer hf_secret"})
        with pytest.raises(HubError) as error:
            hub.list_files(REPO, retry=QUICK)
        assert "***" in str(error.value)
        assert "secret" not in str(error.value) + caplog.text
        server.heal()


def test_a_token_that_cannot_be_sent_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u2026")
    with pytest.raises(UsageError, match="HF_TOKEN") as error:
        hub.list_files(REPO)
    assert "secret" not in str(error.value)


# Failures that may pass


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(server, pauses, status):
    server.fail(status=status, times=2)
    listing = hub.list_files(REPO)
    server.fail(CSV, status=status, stage="resolve")
    server.fail(CSV, status=status, stage="storage")
    assert hub.download(listing, pick(listing)).path.read_bytes() == CONTENT
    assert pauses == [1.0, 2.0, 1.0, 2.0]


def test_a_lasting_failure_ends_with_status_and_tries(server, pauses):
    server.fail(CSV, status=503, times=None)
    with pytest.raises(HubConnectionError, match=r"503.*\(3 tries\).*continues") as error:
        fetch()
    assert isinstance(error.value, ConnectionError)
    assert pauses == [1.0, 2.0]
    assert len(server.seen(CSV)) == 3


def test_pauses_double_up_to_the_longest(server, pauses):
    server.fail(status=500, times=5)
    hub.list_files(REPO, retry=hub.RetryPolicy(attempts=6, first_wait_s=0.5, longest_wait_s=3))
    assert pauses == [0.5, 1.0, 2.0, 3, 3]


@pytest.mark.parametrize("header", [("Retry-After", "7"), ("RateLimit", '"resolvers";r=0;t=7')])
def test_the_pause_a_server_asks_for_is_kept(server, pauses, header):
    server.fail(CSV, status=429, headers=dict([header]))
    assert fetch().path.read_bytes() == CONTENT
    assert pauses == [7.0]


def test_too_long_a_pause_is_an_error_at_once(server, pauses):
    server.fail(CSV, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubConnectionError, match=r"429.*pause of 3600 s"):
        fetch()
    assert pauses == []


def test_no_network(server, monkeypatch, pauses):
    with socket.socket() as closed:  # bound, not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(HubConnectionError, match=r"cannot reach 127\.0\.0\.1:\d+ .*\(3 tries\).*--offline"):
            hub.list_files(REPO, retry=QUICK)
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "http://", "ftp://127.0.0.1", "http://[oops", "http://me:secret@a:99999"]
)
def test_what_is_no_address_is_refused(server, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match=r"HF_ENDPOINT=.*https://") as error:
        hub.list_files(REPO)
    assert "secret" not in str(error.value)


# Offline


@pytest.mark.parametrize("variable", [False, True])
def test_offline_uses_what_is_cached(server, monkeypatch, variable):
    online = hub.list_files(REPO)
    path = hub.download(online, pick(online)).path
    small = hub.download(online, pick(online, "README.md"))
    server.requests.clear()
    if variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    listing = hub.list_files(REPO, offline=not variable)
    assert set(listing.files) == {pick(online), pick(online, "README.md")}
    assert (listing.commit, listing.revision) == (online.commit, "main")
    assert hub.download(listing, pick(listing), offline=not variable).path == path
    assert hub.download(listing, pick(listing, "README.md"), offline=not variable).sha256 == small.sha256
    assert hub.list_files(REPO, revision=online.commit, offline=not variable).files == listing.files
    assert server.requests == []


@pytest.mark.parametrize("revision", [None, "v1", "..", "0" * 40])
def test_offline_with_an_empty_cache(server, revision):
    with pytest.raises(HubConnectionError, match=r"nothing of dataset repository 'ann/chest'.*without --offline"):
        hub.list_files(REPO, revision=revision, offline=True)
    assert server.requests == []


def test_offline_with_a_file_that_is_not_cached(server):
    listing = hub.list_files(REPO)
    with pytest.raises(HubConnectionError, match=rf"offline.*{CSV}.*not in the cache.*without --offline"):
        hub.download(listing, pick(listing), offline=True)
    with (
        pytest.raises(HubConnectionError, match="not in the cache"),
        hub.open_stream(listing, pick(listing), offline=True),
    ):
        pass


def test_offline_with_a_damaged_file_says_so_and_keeps_it(server):
    path = fetch().path
    path.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=r"is damaged.*online"):
        fetch_offline()
    assert path.exists()


def fetch_offline():
    listing = hub.list_files(REPO, offline=True)
    return hub.download(listing, pick(listing), offline=True)


# Forget


def test_forget_removes_what_the_download_brought(server, tmp_path):
    download = fetch()
    hub.forget(download)
    assert blobs(tmp_path) == []
    assert not download.snapshot.exists()
    assert huggingface_hub.scan_cache_dir(tmp_path / "hf" / "hub").warnings == []
    hub.forget(download)  # again is no error
    assert fetch().was_cached is False


def test_forget_leaves_what_was_cached_before(server):
    fetch()
    download = fetch()
    hub.forget(download)
    assert download.path.read_bytes() == CONTENT


def test_forget_leaves_other_files_and_other_revisions(server, tmp_path):
    readme = fetch("README.md")
    server.add(REPO, {"renamed.csv": CONTENT}, revision="v2")
    listing = hub.list_files(REPO, revision="v2")
    other = hub.download(listing, listing.files[0])
    download = fetch()
    hub.forget(download)
    assert not download.path.exists()
    assert other.path.read_bytes() == CONTENT
    assert readme.path.read_bytes() == FILES["README.md"]
    assert (tmp_path / "hf/hub/datasets--ann--chest/refs/main").read_text() == listing_commit()


def listing_commit():
    return hub.list_files(REPO).commit


def test_discard_removes_a_file_and_what_an_interrupted_download_left(server, tmp_path):
    server.fail(CSV, stop_at=BREAK, times=None)
    with pytest.raises(IntegrityError):
        fetch()
    server.heal()
    listing = hub.list_files(REPO)
    assert blobs(tmp_path) == [f"{pick(listing).sha256}.incomplete"]
    hub.discard(listing, pick(listing))
    assert blobs(tmp_path) == []
    fetch()
    hub.discard(listing, pick(listing))
    assert blobs(tmp_path) == []
    hub.discard(listing, pick(listing))  # again is no error


# Streams


def test_a_stream_reads_the_beginning_only(server):
    content = os.urandom(1 << 20) * 24
    server.add(REPO, {"big.csv": content})
    listing = hub.list_files(REPO)
    with hub.open_stream(listing, listing.files[0]) as stream:
        assert stream.read(1000) == content[:1000]
        part = bytearray(70_000)
        assert stream.readinto(part) == 70_000
        assert part == content[1000:71_000]
    assert server.bytes_sent("big.csv") < len(content) // 2  # what the system's buffers took in
    assert hub.missing_bytes(listing, listing.files[0]) == len(content)


def test_a_stream_continues_over_a_broken_connection_to_the_end(server):
    server.fail(CSV, drop_after=BREAK)
    listing = hub.list_files(REPO)
    with hub.open_stream(listing, pick(listing)) as stream:
        assert stream.read() == CONTENT
    assert server.bytes_sent(CSV) == len(CONTENT)


def test_a_stream_reads_a_cached_file_from_the_cache(server):
    fetch()
    sent = server.bytes_sent(CSV)
    listing = hub.list_files(REPO, offline=True)
    with hub.open_stream(listing, pick(listing), offline=True) as stream:
        assert stream.read() == CONTENT
    assert server.bytes_sent(CSV) == sent


def test_a_stream_of_an_empty_file(server):
    listing = hub.list_files(REPO)
    with hub.open_stream(listing, pick(listing, "OriginalResolution/empty.txt")) as stream:
        assert stream.read() == b""


def test_a_refusal_is_raised_when_a_stream_is_opened(server):
    server.fail(CSV, status=403)
    listing = hub.list_files(REPO)
    with pytest.raises(HubAccessError), hub.open_stream(listing, pick(listing)):
        pytest.fail("the stream must not open")


# Disk


def test_space_is_checked_where_the_folder_will_be(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or usage)
    hub.check_space(tmp_path / "not" / "yet", 1_500_000, "mimic")
    assert asked == [tmp_path]
    with pytest.raises(DiskSpaceError, match=r"for mimic: 4\.3 GB needed, 1\.5 MB free in .*yet.*larger disk"):
        hub.check_space(tmp_path / "not" / "yet", 4_321_000_000, "mimic")


def test_a_disk_that_fills_up(server):
    listing = hub.list_files(REPO)
    full = failing_with(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DiskSpaceError, match=rf"filled up while {CSV} \(602\.4 kB\).*HF_HOME.*continues"):
        hub.download(listing, pick(listing), progress=full)


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(HubError, match=r"cannot write .*file.*HF_HOME"):
        fetch()


# Progress


def test_progress_adds_up_to_the_file_with_what_was_there_before(server):
    steps = []
    server.fail(CSV, stop_at=BREAK, times=None)
    with pytest.raises(IntegrityError):
        fetch(progress=steps.append)
    assert sum(steps) == BREAK
    server.heal()
    steps.clear()
    fetch(progress=steps.append)
    assert (steps[0], sum(steps)) == (BREAK, len(CONTENT))


def test_progress_starts_again_with_a_file_that_was_altered(server, tmp_path):
    steps = []
    first = fetch()
    hub.forget(first)
    leftover = tmp_path / "hf/hub/datasets--ann--chest/blobs" / f"{first.sha256}.incomplete"
    leftover.write_bytes(b"?" * BREAK)
    fetch(progress=steps.append)
    assert (steps[0], sum(steps)) == (BREAK, len(CONTENT))


def test_nothing_is_printed(server, capsys):
    fetch()
    assert capsys.readouterr() == ("", "")


# Locks


def test_a_lock_makes_others_wait(tmp_path):
    order = []
    waiting = threading.Event()

    def second():
        with hub.locked(tmp_path / "below" / "a.lock", lambda: (order.append("waits"), waiting.set())):
            order.append("second")

    with hub.locked(tmp_path / "below" / "a.lock"):
        other = threading.Thread(target=second)
        other.start()
        assert waiting.wait(20)
        order.append("first")
    other.join(20)
    assert order == ["waits", "first", "second"]


# The server itself, for what other tests ask of it


def test_the_server_answers_the_rest_of_the_client(server, tmp_path):
    api = huggingface_hub.HfApi(endpoint=server.endpoint)
    info = api.dataset_info(REPO, files_metadata=True)
    assert {sibling.rfilename: sibling.size for sibling in info.siblings} == {p: len(c) for p, c in FILES.items()}
    top = [entry.path for entry in api.list_repo_tree(REPO, repo_type="dataset", expand=True)]
    assert top == ["OriginalResolution", "Preprocessed", ".gitattributes", "README.md"]
    assert [entry.size for entry in api.get_paths_info(REPO, [CSV], repo_type="dataset")] == [len(CONTENT)]
    folder = api.snapshot_download(REPO, repo_type="dataset", cache_dir=tmp_path / "other")
    assert (Path(folder) / CSV).read_bytes() == CONTENT


def test_the_server_runs_as_a_process(server, tmp_path, monkeypatch):
    (tmp_path / "files" / "Preprocessed").mkdir(parents=True)
    (tmp_path / "files" / CSV).write_bytes(b"a,b\n")
    port_file = tmp_path / "port"
    script = Path(__file__).parent / "hub_server.py"
    options = ["--root", tmp_path / "files", "--repo", REPO, "--port-file", port_file, "--rate", "1000000"]
    with subprocess.Popen([sys.executable, script, *options]) as process:
        deadline = time.monotonic() + 20
        while not port_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port_file.read_text()}")
        try:
            assert fetch().path.read_bytes() == b"a,b\n"
        finally:
            process.terminate()
    assert process.returncode == 0
