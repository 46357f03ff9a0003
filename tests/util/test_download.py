"""Checkpoints from the network: fetched once, verified by the hash in their name, never kept half."""

import hashlib
import pathlib

import pytest
import torch

from tests.file_server import serving, url_without_server
from tests.util.test_checkpoint_file import WEIGHTS, assert_weights, written
from util.checkpoint_file import is_url, load_checkpoint, model_state
from util.download import fetch
from util.errors import UserError


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def hashed(folder, digest=None):
    """A checkpoint whose name carries its hash, or the given one; gives the name."""
    path = written(folder / "new.pth", {"model": WEIGHTS})
    digits = digest or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(folder / f"detr-r50-{digits}.pth").name


def test_urls_are_no_paths():
    assert is_url("http://host/a.pth") and is_url("https://host/a.pth")
    assert not is_url("a.pth") and not is_url("/http://a.pth") and not is_url(pathlib.Path("https.pth"))


def test_a_download_is_verified_and_fetched_once(hub_cache, shared):
    name = hashed(shared)
    with serving(shared) as server:
        for _ in range(2):
            assert_weights(load_checkpoint(f"{server.url}/{name}"))
        assert server.requested == [f"/{name}"]
    assert_weights(load_checkpoint(f"{url_without_server()}/{name}"))  # no server needed any more


def test_a_query_is_no_part_of_the_name(hub_cache, shared):
    name = hashed(shared)
    with serving(shared) as server:
        assert fetch(f"{server.url}/{name}?download=1") == hub_cache / name


def test_two_places_with_one_file_name_are_two_files(hub_cache, shared):
    """Every run calls its file checkpoint.pth: the weights of one must not stand in for those of another."""
    for run in ("first", "second"):
        (shared / run).mkdir()
        written(shared / run / "checkpoint.pth", {"model": {"run": torch.tensor(float(len(run)))}})
    with serving(shared) as server:
        for run in ("first", "second"):
            state = model_state(load_checkpoint(f"{server.url}/{run}/checkpoint.pth"))
            assert state["run"] == len(run)


def test_a_download_with_another_hash_is_refused_and_not_kept(hub_cache, shared):
    name = hashed(shared, "0123abcd")
    with serving(shared) as server, pytest.raises(UserError, match=rf"{name}.*hash"):
        load_checkpoint(f"{server.url}/{name}")
    assert list(hub_cache.iterdir()) == []


@pytest.mark.parametrize("named_by_hash", [True, False])
def test_a_connection_that_breaks_leaves_nothing(hub_cache, shared, named_by_hash):
    name = hashed(shared)
    if not named_by_hash:
        name = (shared / name).rename(shared / "checkpoint.pth").name
    with serving(shared) as server:
        server.hangs_up = True
        with pytest.raises(UserError, match=name):
            load_checkpoint(f"{server.url}/{name}")
        server.hangs_up = False
        assert_weights(load_checkpoint(f"{server.url}/{name}"))  # fetched anew


def test_a_damaged_file_in_the_cache_is_refused(hub_cache, shared):
    name = hashed(shared)
    (hub_cache / name).write_bytes(b"half of it")
    with pytest.raises(UserError, match=rf"{name}: .*hash.*delete"):
        load_checkpoint(f"https://host.invalid/{name}")


@pytest.mark.parametrize("place", ["/missing.pth", "/", ":port/x.pth"])
def test_what_cannot_be_fetched_says_how_to_go_on(hub_cache, shared, place):
    with serving(shared) as server:
        url = f"http://127.0.0.1{place}" if place.startswith(":") else f"{server.url}{place}"
        with pytest.raises(UserError, match=url):
            load_checkpoint(url)
    assert [each for each in hub_cache.rglob("*") if each.is_file()] == []


def test_no_network_says_how_to_go_on(hub_cache):
    url = f"{url_without_server()}/detr-r50-e632da11.pth"
    message = f"{url}: could not be downloaded .*pass its path, or place it in {hub_cache}"
    with pytest.raises(UserError, match=message):
        load_checkpoint(url)
    assert list(hub_cache.iterdir()) == []


def test_a_date_in_a_name_is_no_hash(hub_cache, shared):
    written(shared / "detr-20240131.pth", {"model": WEIGHTS})
    with serving(shared) as server:
        assert_weights(load_checkpoint(f"{server.url}/detr-20240131.pth"))
