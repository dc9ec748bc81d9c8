"""Downloads from a server of our own, archives that nobody trusts, and what the prepare_* commands write and print."""

import contextlib
import gc
import hashlib
import io
import random
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from common import bytes_below, times_below

from errors import InputError
from exchange import archives

CONTENT = random.Random(0).randbytes(2_500_000)  # more than two blocks
MD5 = hashlib.md5(CONTENT).hexdigest()
FILES = {
    "a/one.bin": CONTENT[:30_000],
    "a/b/c/two.txt": b"two\n" * 3000,
    "three.txt": b"",
    "a/ä ö.txt": b"\xff\x00",
}
KINDS = ("tar", "tar.gz", "zip")
BEGUN = [
    (None, []),
    (None, ["has_length"]),
    (0, []),
    (1_000_000, []),
    (1_000_000, ["has_ranges"]),
    (len(CONTENT), []),
]
BEGUN += [(len(CONTENT) + 4, ["has_ranges"])]  # too much


@contextlib.contextmanager
def raises(start: object) -> Iterator[None]:
    """InputError in one line that names a file or an address."""
    with pytest.raises(InputError) as error:
        yield
    assert str(error.value).startswith(f"{start}: ")
    assert "\n" not in str(error.value)


class Server(ThreadingHTTPServer):
    """Serves CONTENT as /a.tar, and notes the Range header of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.has_ranges, self.has_length, self.limit = (
            [],
            True,
            True,
            None,
        )  # limit: bytes before the connection is cut
        self.url = f"http://127.0.0.1:{self.server_port}/a.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.has_ranges else 0
        if self.path != "/a.tar" or start >= len(CONTENT):
            return self.send_error(416 if self.path == "/a.tar" else 404)
        self.send_response(206 if start else 200)
        if server.has_length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: server.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def begin(path: Path, content: bytes) -> None:
    """Leave what a stopped download leaves."""
    path.parent.mkdir()
    path.with_name("a.tar.part").write_bytes(content)


class TestDownload:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "new/a.tar"

    @pytest.mark.parametrize(("begun", "lacks"), BEGUN)
    def test_a_file_comes_whole_into_its_folder(self, begun, lacks, server, path):
        if begun is not None:
            begin(path, (CONTENT + b"more")[:begun])
        vars(server).update(dict.fromkeys(lacks, False))
        archives.download(server.url, path, MD5)
        assert bytes_below(path.parent) == {"a.tar": CONTENT}
        assert server.asked == [f"bytes={begun}-" if begun else None]
        archives.download(server.url, path, "any: it is there")
        assert len(server.asked) == 1

    def test_a_cut_connection_leaves_a_part_that_is_resumed(self, server, path):
        for limit in (1_200_000, 500_000):
            server.limit = limit
            with raises(server.url):
                archives.download(server.url, path, MD5)
        assert bytes_below(path.parent) == {"a.tar.part": CONTENT[:1_700_000]}
        server.limit = None
        archives.download(server.url, path, MD5)
        assert bytes_below(path.parent) == {"a.tar": CONTENT}
        assert server.asked == [None, "bytes=1200000-", "bytes=1700000-"]

    @pytest.mark.parametrize(
        "begun", [b"of something else", b"other" * 1_000_000], ids=["a part", "too much"]
    )
    def test_a_wrong_md5_sum_leaves_nothing(self, begun, server, path):
        begin(path, begun)
        with raises(server.url):
            archives.download(server.url, path, MD5)
        assert bytes_below(path.parent) == {}

    @pytest.mark.parametrize("trouble", ["404", "silent", "gone", "folder"])
    def test_a_download_that_fails_is_named_and_the_part_stays(
        self, trouble, server, path, monkeypatch
    ):
        stop, url = threading.Event(), server.url
        begin(path, b"begun")
        if trouble == "404":
            url = url.replace("a.tar", "nothing")
        elif trouble == "silent":
            monkeypatch.setattr(archives, "TIMEOUT", 0.1)
            monkeypatch.setattr(Handler, "do_GET", lambda self: stop.wait(20))
        elif trouble == "gone":
            with Server() as gone:
                url = gone.url
        with raises(url):
            archives.download(
                url, path.with_name("a.tar.part") / "a.tar" if trouble == "folder" else path, MD5
            )
        stop.set()
        assert bytes_below(path.parent) == {"a.tar.part": b"begun"}
        if trouble == "404":
            gc.collect()  # a response that was not closed is a warning, hence an error

    def test_only_the_official_file_passes_the_check(self, tmp_path):
        path = tmp_path / "a.tar"
        for content in (None, CONTENT[:-1], CONTENT):
            if content:
                path.write_bytes(content)
            with contextlib.nullcontext() if content == CONTENT else raises(path):
                archives.check_md5(path, MD5)


def pack(kind: str, files: dict[str, bytes], special: bytes = b"") -> bytes:
    """An archive with a folder and some files; special: the type of one more member, "evil" (a zip knows links alone)."""
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {
                "a/": b"",
                **files,
                **({"evil": b"a/good.txt"} if special else {}),
            }.items():
                info = zipfile.ZipInfo(name)
                info.compress_type, info.external_attr = (
                    zipfile.ZIP_DEFLATED,
                    (0o120777 if name == "evil" else 0) << 16,
                )
                archive.writestr(info, data)
        return packed.getvalue()
    members = [
        ("a", tarfile.DIRTYPE, b""),
        *((name, tarfile.REGTYPE, data) for name, data in files.items()),
    ]
    with tarfile.open(fileobj=packed, mode="w:gz" if kind == "tar.gz" else "w") as archive:
        for name, member_type, data in [*members, *[("evil", special, b"")] * bool(special)]:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = member_type, len(data), "a/good.txt"
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


GOOD, NOISE = {"a/good.txt": b"good"}, {"one.bin": CONTENT[:30_000]}
TWO = pack(
    "tar", {"one": b"1" * 1024, "two": b"2" * 1024}
)  # 512 bytes of the folder, 512 + 1024 of each file
OUTSIDE, SPECIAL = (
    ("../evil.txt", "a/../../evil.txt", "/evil.txt", ".."),
    ("SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"),
)
STARTS = [
    b"",
    b"a text, not an archive\n" * 100,
    b"PK\x03\x04 no zip",
    b"\x1f\x8b no gzip",
    b"BZh9 no bzip2",
    bytes(2000),
]
REFUSED = {
    **{
        f"{kind} with {name}": pack(kind, {**GOOD, name: b"evil"})
        for kind in KINDS
        for name in OUTSIDE
    },
    "zip with a link": pack("zip", GOOD, tarfile.SYMTYPE),
    **{f"tar with a {what}": pack("tar", GOOD, getattr(tarfile, what)) for what in SPECIAL},
    **{f"cut {kind}": (packed := pack(kind, FILES))[: len(packed) // 2] for kind in KINDS},
    "tar cut between members": TWO[: 512 + 1536],
    "tar cut in a header": TWO[: 512 + 1536 + 100],
    "tar with a damaged header": flip(TWO, 512 + 1536 + 10),
    **{
        f"{kind} with damaged content": flip(pack(kind, NOISE), 15_000)
        for kind in ("tar.gz", "zip")
    },
    "zip with damaged codes": flip(pack("zip", {"one.txt": bytes(range(256)) * 40}), 350),
    "tar with NUL in a name": pack("tar", {"ä" * 99 + "\0": b""}),
    "zip with a name that is not UTF-8": pack("zip", {"é": b""}).replace("é".encode(), b"\xc3\x28"),
    **{repr(start[:4]): start for start in STARTS},
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_an_unsafe_or_damaged_archive_is_refused_and_nothing_is_written(content, tmp_path):
    (tmp_path / "around/root").mkdir(parents=True)
    (tmp_path / "archive").write_bytes(content)
    with raises(tmp_path / "archive"):
        archives.unpack(
            tmp_path / "archive", tmp_path / "around/root", lambda name: "evil" not in name
        )
    assert {path.name for path in tmp_path.rglob("*")} == {"archive", "around", "root"}


@pytest.mark.parametrize("kind", KINDS)
class TestUnpack:
    @pytest.fixture
    def archive(self, kind, tmp_path) -> Path:
        (tmp_path / "archive").write_bytes(
            pack(kind, {f"./{name.replace('/', '//')}": data for name, data in FILES.items()})
        )
        return tmp_path / "archive"

    def test_only_wanted_members_are_written(self, archive, tmp_path):
        archives.unpack(archive, tmp_path / "root", lambda name: name == "three.txt")
        assert bytes_below(tmp_path / "root") == {"three.txt": b""}
        for path in (archive, tmp_path, tmp_path / "missing"):
            with raises(path):
                archives.unpack(path, tmp_path / "other", lambda name: False)
        assert not (tmp_path / "other").exists()

    def test_files_come_out_byte_for_byte_and_those_that_are_there_are_kept_and_listed_if_they_differ(
        self, archive, tmp_path, capsys
    ):
        root = tmp_path / "new/root"
        archives.unpack(archive, root, FILES.__contains__)
        assert bytes_below(root) == FILES
        (root / "a/one.bin").write_bytes(b"mine")
        (root / "three.txt").unlink()
        before = times_below(root)
        archives.unpack(archive, root, FILES.__contains__)
        assert bytes_below(root) == {**FILES, "a/one.bin": b"mine"}
        assert before.items() <= times_below(root).items()
        assert re.findall(r"^  (.+)", capsys.readouterr().out, re.MULTILINE) == ["a/one.bin"]

    def test_the_root_and_its_folders_may_be_links_to_another_disk(self, archive, tmp_path):
        for folder in ("disk", "root"):
            (tmp_path / folder).mkdir()
        (tmp_path / "root/a").symlink_to(tmp_path / "disk")
        (tmp_path / "link").symlink_to(tmp_path / "root")
        archives.unpack(archive, tmp_path / "link", FILES.__contains__)
        assert (tmp_path / "disk/one.bin").read_bytes() == FILES["a/one.bin"]


def test_a_table_shows_what_is_missing(capsys):
    rows = [("images", 17_125, 17_125), ("tags", 5, 1_005), ("masks", 12_031, 1_000)]
    assert archives.print_counts(rows[:2]) and not archives.print_counts(rows)
    assert [line.split()[3:] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        ["OK"],
        ["1,000", "more"],
        ["11,031", "missing"],
    ]


@pytest.mark.parametrize(
    ("is_whole", "number", "more"),
    [(True, 0, 0), (False, 0, 0), (True, 10, 0), (True, 1011, "1,001")],
)
def test_only_a_whole_dataset_without_problems_is_ready(is_whole, number, more, tmp_path, capsys):
    problems = [f"a{i}.png: wrong" for i in range(number)]
    with contextlib.nullcontext() if is_whole and not problems else raises(tmp_path):
        archives.finish(tmp_path, "voc", "VOC 2012", is_whole, problems)
    printed = capsys.readouterr().out
    assert (f"bash run_voc.sh --dataset_root {tmp_path}\n" in printed) == (
        is_whole and not problems
    )
    expected = [
        f"problems ({number:,})",
        *(f"  {line}" for line in problems[:10]),
        *[f"  and {more} more"] * bool(more),
    ]
    assert not problems or printed.splitlines()[1:] == expected
