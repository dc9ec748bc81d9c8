"""Downloads from a server of our own: whole, in two goes, over and over, and checked."""

import gc
import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from errors import InputError
from tool import download

CONTENT = os.urandom(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
LONG_AGO = 10**18


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every path but /nothing, and notes the Range header of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.knows_ranges = True
        self.tells_length = True
        self.content = CONTENT
        self.most: int | None = None  # bytes before the connection is cut
        self.url = f"http://127.0.0.1:{self.server_port}/a.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers["Range"])
        start, status = 0, 200
        if self.headers["Range"] and server.knows_ranges:
            start, status = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]), 206
        if self.path == "/nothing":
            return self.send_error(404)
        if start and start >= len(server.content):
            return self.send_error(416)
        self.send_response(status)
        rest = server.content[start:]
        if server.tells_length:
            self.send_header("Content-Length", str(len(rest)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        self.wfile.write(rest[: server.most])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new/a.tar"


@pytest.fixture
def part(path: Path) -> Path:
    path.parent.mkdir()
    return path.with_name("a.tar.part")


def assert_fails(server: Server, path: Path, match: str, url: str = "", md5: str = MD5) -> None:
    """In one line that names the address and says what to do."""
    url = url or server.url
    with pytest.raises(InputError, match=match) as error:
        download.fetch(url, path, md5)
    assert str(error.value).startswith(f"{url}: ")
    assert "; " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_comes_whole_into_a_new_folder(tells_length, server, path):
    server.tells_length = tells_length
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a.tar"]
    assert server.asked == [None]


def test_a_connection_that_is_cut_goes_on_where_it_stopped(server, path):
    server.most = 2_000_000
    assert_fails(server, path, "the same command goes on from 2 MB")
    assert os.listdir(path.parent) == ["a.tar.part"]
    assert path.with_name("a.tar.part").read_bytes() == CONTENT[:2_000_000]
    server.most = 500_000
    assert_fails(server, path, "the same command goes on from 2 MB")
    server.most = None
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a.tar"]
    assert server.asked == [None, "bytes=2000000-", "bytes=2500000-"]


@pytest.mark.parametrize("begun", [CONTENT[:1_000_000], b"of something else", CONTENT + b"more"])
def test_a_server_without_ranges_starts_over(begun, server, path, part):
    part.write_bytes(begun)
    server.knows_ranges = False
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(begun)}-"]


def test_what_came_whole_before_it_was_renamed_is_not_fetched_again(server, path, part):
    part.write_bytes(CONTENT)
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a.tar"]
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_an_empty_beginning_is_none(server, path, part):
    part.touch()
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize("begun", [b"", b"of something else", b"other" * 1_000_000], ids=["nothing", "a part", "too much"])
def test_another_md5_sum_leaves_nothing_and_the_next_call_starts_over(begun, server, path, part):
    part.write_bytes(begun)
    server.content = CONTENT if begun else CONTENT[::-1]
    assert_fails(server, path, f"another MD5 sum than {MD5} and is deleted; try again")
    assert os.listdir(path.parent) == []
    server.content = CONTENT
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("begun", [0, 1_000_000])
def test_what_the_server_lacks_is_told_and_a_beginning_stays(begun, server, path, part):
    part.write_bytes(CONTENT[:begun])
    assert_fails(server, path, f"404.*goes on from {begun // 1_000_000} MB", url=server.url.replace("a.tar", "nothing"))
    assert part.read_bytes() == CONTENT[:begun]
    assert not path.exists()
    gc.collect()  # an answer that was not closed is a warning, hence an error


def test_a_server_that_is_silent_is_not_waited_for_forever(server, path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    stop = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: stop.wait(20))
    assert_fails(server, path, "timed out.*goes on from 0 MB")
    stop.set()
    assert os.listdir(path.parent) == []


def test_no_server_is_one_line(server, path):
    with Server() as gone:
        url = gone.url
    assert_fails(server, path, "cannot be downloaded .*or give the path of a file got elsewhere", url=url)


def test_a_file_that_is_there_is_not_fetched_again(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    download.fetch(server.url, path, MD5)
    assert path.stat().st_mtime_ns == LONG_AGO
    assert server.asked == []


def test_another_file_than_the_official_one_is_refused(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    download.check_md5(path, MD5)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=f"is not the official file: its MD5 sum is .*, not {MD5}; get it again"):
        download.check_md5(path, MD5)
    assert path.read_bytes() == CONTENT[:-1]


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    assert_fails(server, tmp_path / "file/a.tar", "cannot be downloaded")
    assert server.asked == []


def test_check_md5_tells_the_official_file_from_another(tmp_path):
    path = tmp_path / "a.tar"
    with pytest.raises(InputError, match=r"a\.tar: cannot be read .*; correct the path"):
        download.check_md5(path, MD5)
    path.write_bytes(CONTENT)
    assert download.check_md5(path, MD5) is None
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=r"a\.tar: is not the official file") as error:
        download.check_md5(path, MD5)
    assert "\n" not in str(error.value)
