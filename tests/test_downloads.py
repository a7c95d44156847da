"""Downloads over a local server that truncates, corrupts, crawls, refuses and recovers."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import threading
from pathlib import Path

import pytest

from eoslib import downloads
from eoslib.downloads import DownloadError, RemoteFile, data_folder, fetch
from tests.file_server import FileServer, serving

CONTENT = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


def remote(server: FileServer, *paths: str, size: int | None = len(CONTENT)) -> RemoteFile:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return RemoteFile("file.bin", digest, size, tuple(server.url(path) for path in paths))


def get(wanted: RemoteFile, folder: Path, **options) -> Path:
    return fetch(wanted, folder, **({"timeout": 5, "pause": 0} | options))


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what works ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["good", "moved", "no-length", "no-ranges"])
def test_a_file_arrives_whole_and_is_fetched_once(server, tmp_path, path):
    folder = tmp_path / "new" / "folder"
    assert get(remote(server, path), folder).read_bytes() == CONTENT
    asked = len(server.requests)
    assert get(remote(server, path), folder) == folder / "file.bin"
    assert len(server.requests) == asked
    assert in_folder(folder) == ["file.bin"]


def test_a_size_that_nobody_knows(server, tmp_path):
    path = get(remote(server, "no-length", size=None), tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_file_put_there_by_hand_needs_no_network(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    tmp_path.chmod(0o500)
    wanted = RemoteFile("file.bin", hashlib.sha256(CONTENT).hexdigest(), None, ("http://[bad",))
    assert get(wanted, tmp_path).read_bytes() == CONTENT
    tmp_path.chmod(0o700)


def test_another_file_of_that_name_is_named_and_left_alone(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"file\.bin \(4 bytes\) is damaged or another.*remove it"):
        get(remote(server, "good"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert not server.requests


# ---- broken off and taken up again -----------------------------------------------------------


@pytest.mark.parametrize("path", ["truncated", "reset"])
def test_a_transfer_that_breaks_is_taken_up_where_it_stopped(server, tmp_path, path, monkeypatch):
    """The server sends a third or a half of what is left, and leaves."""
    monkeypatch.setattr(downloads, "_WORTHWHILE", 1)
    assert get(remote(server, path, "good"), tmp_path).read_bytes() == CONTENT
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) if r else 0 for r in ranges(server)]
    assert starts == sorted(starts)
    assert len(set(starts)) > 3
    if path == "truncated":  # a reset may drop what is still on its way
        assert starts[:3] == [0, 34_133, 34_133 + 22_755]
        assert server.paths()[-1] == "truncated"  # ever further, so the mirror was not given up


def ranges(server: FileServer) -> list[str | None]:
    return [asked for _, asked in server.requests]


def test_another_run_and_another_mirror_go_on_from_the_part(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    assert get(remote(server, "404", "good"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("404", "bytes=70000-"), ("good", "bytes=70000-")]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 70_000)
    assert get(remote(server, "no-ranges"), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("part", [b"x" * 70_000, b"x" * len(CONTENT), b"x" * 200_000])
def test_a_spoilt_part_is_thrown_away(server, tmp_path, part):
    (tmp_path / "file.bin.part").write_bytes(part)
    assert get(remote(server, "good"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("good", None)
    assert in_folder(tmp_path) == ["file.bin"]


def test_a_complete_part_is_not_lost(server, tmp_path):
    """Stopped after the last byte and before it got its name."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(remote(server, "good"), tmp_path).read_bytes() == CONTENT
    assert not server.requests


def test_a_part_of_a_file_of_unknown_size_is_kept(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    assert get(remote(server, "good", size=None), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("good", "bytes=70000-")]
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")  # all of it
    assert get(remote(server, "good", size=None), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_wrong_range_is_not_appended(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    assert get(remote(server, "shifted"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("shifted", "bytes=70000-"), ("shifted", None)]


# ---- mirrors that fail -----------------------------------------------------------------------


def refused_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("path", "told", "requests"),
    [
        ("404", "HTTP 404 Not Found", 1),
        ("503", "HTTP 503 Service Unavailable", 3),
        ("corrupt", "sent 102,400 bytes with a wrong SHA-256", 1),
        ("page", "offers a file of 25 bytes, expected 102,400", 1),
        ("truncated-no-ranges", "closed the connection after 34,133 of 102,400 bytes", 3),
        ("stuck", "no data for 0.2 seconds", 3),
    ],
)
def test_a_bad_mirror_gives_way_to_the_next(server, tmp_path, path, told, requests):
    wanted = remote(server, path)
    with pytest.raises(DownloadError, match="could not download") as caught:
        get(wanted, tmp_path, timeout=0.2)
    assert told in str(caught.value)
    assert server.paths() == [path] * requests
    assert "file.bin" not in in_folder(tmp_path)

    assert get(remote(server, path, "good"), tmp_path, timeout=0.2).read_bytes() == CONTENT
    assert in_folder(tmp_path) == ["file.bin"]


def test_a_refused_connection(server, tmp_path):
    wanted = remote(server, "good")
    address = refused_address()
    both = RemoteFile(wanted.name, wanted.sha256, wanted.size, (address, *wanted.mirrors))
    assert get(both, tmp_path / "a").read_bytes() == CONTENT
    alone = RemoteFile(wanted.name, wanted.sha256, wanted.size, (address,))
    with pytest.raises(DownloadError, match="Connection refused"):
        get(alone, tmp_path / "b")


def test_a_failure_says_which_file_to_put_where(server, tmp_path):
    wanted = remote(server, "truncated-no-ranges", "404")
    with pytest.raises(DownloadError) as caught:
        get(wanted, tmp_path)
    told = str(caught.value)
    for part in (
        server.url("truncated-no-ranges") + ": closed the connection",
        server.url("404") + ": HTTP 404",
        "34,133 bytes are kept",
        "102,400 bytes, SHA-256 " + wanted.sha256,
        f"put it at {tmp_path / 'file.bin'}",
        "EOSLIB_DATA",
    ):
        assert part in told
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:34_133]


def test_a_slow_mirror_gives_way_and_the_next_goes_on_from_there(server, tmp_path):
    wanted = remote(server, "crawl", "good")
    assert get(wanted, tmp_path, slow=1e6, patience=0.1).read_bytes() == CONTENT
    (_, first), (last, start) = server.requests
    assert (first, last) == (None, "good")
    assert int(re.sub(r"\D", "", start)) > 0


def test_when_all_are_slow_the_slow_ones_have_to_do(server, tmp_path):
    server.content = CONTENT[:40]
    digest = hashlib.sha256(CONTENT[:40]).hexdigest()
    wanted = RemoteFile("file.bin", digest, 40, (server.url("crawl"), server.url("404")))
    assert get(wanted, tmp_path, slow=1e6, patience=0.05).read_bytes() == CONTENT[:40]
    assert server.paths() == ["crawl", "404", "crawl"]
    assert server.requests[2][1] is not None  # and nothing is fetched twice


# ---- the disk --------------------------------------------------------------------------------


def test_too_little_space_is_found_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        downloads.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 50_000})
    )
    with pytest.raises(DownloadError, match=r"no space .* 102,400 bytes are needed, 50,000 are fr"):
        get(remote(server, "good", "good"), tmp_path)
    assert in_folder(tmp_path) == []
    assert len(server.requests) == 1  # no mirror helps against a full disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_fills_up_on_the_way(server, tmp_path):
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"no space .* it ended after 0 bytes.*EOSLIB_DATA"):
        get(remote(server, "good", "good"), tmp_path)
    assert in_folder(tmp_path) == []
    assert len(server.requests) == 1


def test_a_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "folder").write_text("mine")
    with pytest.raises(DownloadError, match=r"cannot write to .*folder.*Set EOSLIB_DATA"):
        get(remote(server, "good"), tmp_path / "folder")
    assert (tmp_path / "folder").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write_to(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match=r"cannot write to .*Permission denied"):
        get(remote(server, "good"), tmp_path)


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EOSLIB_DATA", str(tmp_path / "here"))
    assert data_folder() == tmp_path / "here"
    monkeypatch.setenv("EOSLIB_DATA", "~/there")
    assert data_folder() == Path.home() / "there"
    monkeypatch.delenv("EOSLIB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert data_folder() == tmp_path / "eoslib"


# ---- several at once, and what is seen -------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock on a folder")
def test_two_who_want_the_same_file_fetch_it_once(server, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(get(remote(server, "good"), tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "file.bin"] * 4
    assert server.requests == [("good", None)]


def test_a_terminal_shows_the_progress_and_a_pipe_shows_nothing(server, tmp_path, capsys):
    get(remote(server, "good"), tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        get(remote(server, "good"), tmp_path / "b")
    assert capsys.readouterr().err.endswith("downloading file.bin: 0.1 of 0.1 MB\n")
