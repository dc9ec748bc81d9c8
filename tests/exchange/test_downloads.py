"""Downloads from a server of our own."""

import gc
import hashlib
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from common import bytes_below, refused

from exchange import downloads

CONTENT = random.Random(0).randbytes(2_500_000)  # more than two blocks
MD5 = hashlib.md5(CONTENT).hexdigest()
BEGUN = {  # the part that is there, and what the server lacks
    "nothing": (None, []),
    "nothing, of unknown length": (None, ["has_length"]),
    "an empty part": (b"", []),
    "a part": (CONTENT[:1_000_000], []),
    "a part, without ranges": (CONTENT[:1_000_000], ["has_ranges"]),
    "all": (CONTENT, []),
    "too much, without ranges": (CONTENT + b"more", ["has_ranges"]),
}


class Server(ThreadingHTTPServer):
    """Serves CONTENT as /a.tar, and notes the Range header of every request.

    limit: bytes before the connection is cut.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.has_ranges = True
        self.has_length = True
        self.limit = None
        self.url = f"http://127.0.0.1:{self.server_port}/a.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        requested = self.headers["Range"]
        server.ranges.append(requested)
        if self.path != "/a.tar":
            return self.send_error(404)
        start = 0
        if requested and server.has_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if server.has_length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: server.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "new/a.tar"


def begin(path: Path, content: bytes) -> None:
    """Leave what a stopped download leaves."""
    path.parent.mkdir()
    path.with_name("a.tar.part").write_bytes(content)


@pytest.mark.parametrize(("begun", "lacks"), BEGUN.values(), ids=BEGUN)
def test_a_file_comes_whole_into_its_folder(begun, lacks, server, path):
    if begun is not None:
        begin(path, begun)
    for name in lacks:
        setattr(server, name, False)
    downloads.download(server.url, path, MD5)
    assert bytes_below(path.parent) == {"a.tar": CONTENT}
    first = None
    if begun:
        first = f"bytes={len(begun)}-"
    assert server.ranges == [first]
    downloads.download(server.url, path, "any: it is there")
    assert len(server.ranges) == 1


def test_a_cut_connection_leaves_a_part_that_is_resumed(server, path):
    for limit in (1_200_000, 500_000):
        server.limit = limit
        with refused(server.url):
            downloads.download(server.url, path, MD5)
    assert bytes_below(path.parent) == {"a.tar.part": CONTENT[:1_700_000]}
    server.limit = None
    downloads.download(server.url, path, MD5)
    assert bytes_below(path.parent) == {"a.tar": CONTENT}
    assert server.ranges == [None, "bytes=1200000-", "bytes=1700000-"]


@pytest.mark.parametrize(
    "begun", [b"of something else", b"other" * 1_000_000], ids=["a part", "too much"]
)
def test_a_wrong_md5_sum_leaves_nothing(begun, server, path):
    begin(path, begun)
    with refused(server.url):
        downloads.download(server.url, path, MD5)
    assert bytes_below(path.parent) == {}


class TestFailure:
    """A download that fails is named, and the part stays."""

    @pytest.fixture(autouse=True)
    def begun(self, path) -> Iterator[None]:
        begin(path, b"begun")
        yield
        assert bytes_below(path.parent) == {"a.tar.part": b"begun"}

    def test_a_file_that_the_server_lacks(self, server, path):
        url = server.url.replace("a.tar", "nothing")
        with refused(url):
            downloads.download(url, path, MD5)
        gc.collect()  # a response that was not closed is a warning, hence an error

    def test_a_silent_server(self, server, path, monkeypatch):
        stop = threading.Event()
        monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
        monkeypatch.setattr(Handler, "do_GET", lambda self: stop.wait(20))
        with refused(server.url):
            downloads.download(server.url, path, MD5)
        stop.set()

    def test_a_server_that_is_gone(self, path):
        with Server() as gone:
            url = gone.url
        with refused(url):
            downloads.download(url, path, MD5)

    def test_a_folder_that_cannot_be_made(self, server, path):
        with refused(server.url):
            downloads.download(server.url, path.with_name("a.tar.part") / "a.tar", MD5)


def test_only_the_official_file_passes_the_check(tmp_path):
    path = tmp_path / "a.tar"
    with refused(path):
        downloads.check_md5(path, MD5)
    path.write_bytes(CONTENT[:-1])
    with refused(path):
        downloads.check_md5(path, MD5)
    path.write_bytes(CONTENT)
    downloads.check_md5(path, MD5)
