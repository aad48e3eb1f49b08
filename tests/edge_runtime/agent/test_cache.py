"""Artifacts fetched from a real HTTP server."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent.cache import MAX_ARTIFACTS, RESERVE_BYTES, ArtifactCache
from edge_runtime.bounds.versioned import encode_description
from edge_runtime.errors import ManifestError
from edge_runtime.formats.manifest import (
    FORMAT_VERSION,
    FileRef,
    Manifest,
    TensorSpec,
    TextSpec,
    digest_of,
)
from edge_runtime.link.errors import ArtifactCorruptedError, ArtifactUnreachableError
from edge_runtime.system.files import DiskFullError

FILES = {"training.onnx": b"graph" * 1000, "base.safetensors": b"weights" * 3000}


def write_artifact(folder: Path, name: str = "small") -> str:
    """Write an artifact's files; returns its digest. Its graphs are never loaded here."""
    refs = {n: FileRef(digest=digest_of(data), size_bytes=len(data), on_device=True) for n, data in FILES.items()}
    refs["config.json"] = FileRef(digest="0" * 64, size_bytes=9, on_device=False)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family="bert",
        task="text-classification",
        model_name=name,
        num_layers=1,
        block_prefixes=("layer.0.",),
        word_embedding="embedding",
        post_norm=False,
        hidden_size=4,
        labels=("a", "b"),
        text=TextSpec(pad_token_id=0, eos_token_id=None, append_eos=False, max_length=8, vocab_size=9),
        groups=(),
        tensors=(TensorSpec(name="embedding", shape=(9, 4), dtype="float32", layer=None),),
        targets=(),
        dense=(),
        files=refs,
        producer={},
    )
    data = encode_description(manifest)
    target = folder / digest_of(data)
    target.mkdir()
    (target / "manifest.json").write_bytes(data)
    for file_name, content in FILES.items():
        (target / file_name).write_bytes(content)
    return digest_of(data)


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path.rpartition("/")[2])
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, digest: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{digest}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    yield site
    site.close()


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    folder = tmp_path / "cache"
    folder.mkdir()
    return ArtifactCache(folder, lambda _: None)


def ignore(_arrived: int, _lacking: int) -> None:
    pass


def test_an_artifact_is_fetched_and_opened(site: Site, cache: ArtifactCache) -> None:
    digest = write_artifact(site.folder)
    progress: list[tuple[int, int]] = []
    artifact = cache.fetch(site.url(digest), digest, lambda *step: progress.append(step))
    artifact.verify()
    assert artifact.digest == digest
    assert progress[-1][1] == 0
    assert sum(arrived for arrived, _ in progress) >= sum(map(len, FILES.values()))


def test_files_that_only_the_server_needs_are_not_fetched(site: Site, cache: ArtifactCache) -> None:
    digest = write_artifact(site.folder)
    cache.fetch(site.url(digest), digest, ignore)
    assert "config.json" not in site.requests


def test_a_second_start_fetches_nothing(site: Site, cache: ArtifactCache) -> None:
    digest = write_artifact(site.folder)
    cache.fetch(site.url(digest), digest, ignore)
    site.requests.clear()
    cache.fetch(site.url(digest), digest, ignore)
    assert site.requests == []


@pytest.mark.parametrize("name", ["manifest.json", "base.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"bad"], ids=["empty", "changed"])
def test_a_damaged_cached_file_is_fetched_again(
    site: Site, cache: ArtifactCache, tmp_path: Path, name: str, damage: bytes
) -> None:
    digest = write_artifact(site.folder)
    cache.fetch(site.url(digest), digest, ignore)
    (tmp_path / "cache" / digest / name).write_bytes(damage)
    site.requests.clear()
    cache.fetch(site.url(digest), digest, ignore).verify()
    assert site.requests == [name]


def test_a_server_with_another_artifact_is_refused(site: Site, cache: ArtifactCache) -> None:
    digest = write_artifact(site.folder)
    with pytest.raises(ArtifactCorruptedError, match="the coordinator promised") as caught:
        cache.fetch(site.url(digest), "ab" * 32, ignore)
    assert digest[:12] not in str(caught.value).replace(site.url(digest), ""), "what is there is not published"


def test_a_server_with_a_corrupted_file_is_refused_and_nothing_of_it_stays(
    site: Site, cache: ArtifactCache, tmp_path: Path
) -> None:
    digest = write_artifact(site.folder)
    (site.folder / digest / "base.safetensors").write_bytes(b"x" * len(FILES["base.safetensors"]))
    with pytest.raises(ArtifactCorruptedError, match=r"base\.safetensors"):
        cache.fetch(site.url(digest), digest, ignore)
    assert not list((tmp_path / "cache" / digest).glob("base*"))


def test_a_server_without_the_artifact_is_unreachable(site: Site, cache: ArtifactCache) -> None:
    with pytest.raises(ArtifactUnreachableError, match="HTTP 404"):
        cache.fetch(site.url("ab" * 32), "ab" * 32, ignore)


def test_only_the_last_artifacts_stay(site: Site, cache: ArtifactCache, tmp_path: Path) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS + 2)]
    for digest in digests:
        cache.fetch(site.url(digest), digest, ignore)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == set(digests[-MAX_ARTIFACTS:])


def test_the_artifact_in_use_stays_when_the_clock_was_set_back(
    site: Site, cache: ArtifactCache, tmp_path: Path
) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS + 1)]
    tomorrow = time.time_ns() + 86_400 * 10**9
    for digest in digests[:-1]:
        cache.fetch(site.url(digest), digest, ignore)
        os.utime(tmp_path / "cache" / digest, ns=(tomorrow, tomorrow))
    cache.fetch(site.url(digests[-1]), digests[-1], ignore).verify()
    assert digests[-1] in {p.name for p in (tmp_path / "cache").iterdir()}


def test_room_is_made_before_anything_is_downloaded(site: Site, cache: ArtifactCache, tmp_path: Path) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS + 1)]
    for digest in digests[:-1]:
        cache.fetch(site.url(digest), digest, ignore)
    numbers: list[int] = []

    def count(_arrived: int, lacking: int) -> None:
        if lacking:
            numbers.append(len(list((tmp_path / "cache").iterdir())))

    cache.fetch(site.url(digests[-1]), digests[-1], count)
    assert set(numbers) == {MAX_ARTIFACTS}


def test_what_the_cache_did_not_make_stays(site: Site, cache: ArtifactCache, tmp_path: Path) -> None:
    others = {"lost+found", "models of mine", "ab" * 31}
    for name in others:
        (tmp_path / "cache" / name).mkdir()
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS + 1)]
    for digest in digests:
        cache.fetch(site.url(digest), digest, ignore)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {*others, *digests[-MAX_ARTIFACTS:]}


def test_artifacts_that_were_never_ready_do_not_push_out_one_that_was(
    site: Site, cache: ArtifactCache, tmp_path: Path
) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(3 * MAX_ARTIFACTS)]
    cache.fetch(site.url(digests[0]), digests[0], ignore)
    cache.used(digests[0])
    for digest in digests[1:]:
        cache.fetch(site.url(digest), digest, ignore)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {digests[0], digests[-1]}
    site.requests.clear()
    cache.fetch(site.url(digests[0]), digests[0], ignore).verify()
    assert site.requests == []


def test_of_artifacts_that_were_ready_the_one_longest_ago_goes(
    site: Site, cache: ArtifactCache, tmp_path: Path
) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS + 1)]
    for age, digest in enumerate(digests[:-1]):
        cache.fetch(site.url(digest), digest, ignore)
        cache.used(digest)
        os.utime(tmp_path / "cache" / digest / ".used", ns=(10**18 - age, 10**18 - age))
    cache.fetch(site.url(digests[-1]), digests[-1], ignore)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {*digests[: MAX_ARTIFACTS - 1], digests[-1]}


def test_what_is_not_there_or_is_no_manifest_leaves_nothing_and_removes_nothing(
    site: Site, cache: ArtifactCache, tmp_path: Path
) -> None:
    digests = [write_artifact(site.folder, f"model-{i}") for i in range(MAX_ARTIFACTS)]
    for digest in digests:
        cache.fetch(site.url(digest), digest, ignore)
    bad = digest_of(b"no manifest")
    (site.folder / bad).mkdir()
    (site.folder / bad / "manifest.json").write_bytes(b"no manifest")
    for number in range(5):
        with pytest.raises(ArtifactUnreachableError):
            cache.fetch(site.url(f"{number}" * 64), f"{number}" * 64, ignore)
    with pytest.raises(ManifestError):
        cache.fetch(site.url(bad), bad, ignore)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == set(digests)


def test_an_artifact_leaves_space_for_the_rest_of_the_board(
    site: Site, cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = write_artifact(site.folder)
    needed = sum(map(len, FILES.values()))
    usage = shutil.disk_usage(site.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed + RESERVE_BYTES - 1))
    with pytest.raises(DiskFullError, match="disk full: the artifact needs"):
        cache.fetch(site.url(digest), digest, ignore)
    assert site.requests == ["manifest.json"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed + RESERVE_BYTES))
    cache.fetch(site.url(digest), digest, ignore).verify()
