"""Archives that nobody trusts."""

import io
import random
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from common import bytes_below, refused, times_below

from exchange import archives

NOISE = random.Random(0).randbytes(30_000)  # does not compress
FILES = {
    "a/one.bin": NOISE,
    "a/b/c/two.txt": b"two\n" * 3000,
    "three.txt": b"",
    "a/ä ö.txt": b"\xff\x00",
}
KINDS = ("tar", "tar.gz", "zip")


def pack(kind: str, files: dict[str, bytes], special: bytes = b"") -> bytes:
    """An archive with a folder and some files.

    special: the type of one more member, "evil", among those of tar; a zip knows links alone.
    """
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            fill_zip(archive, files, has_link=special != b"")
    else:
        mode = {"tar": "w", "tar.gz": "w:gz"}[kind]
        with tarfile.open(fileobj=packed, mode=mode) as archive:
            fill_tar(archive, files, special)
    return packed.getvalue()


def fill_zip(archive: zipfile.ZipFile, files: dict[str, bytes], has_link: bool) -> None:
    members = {"a/": b"", **files}
    if has_link:
        members["evil"] = b"a/good.txt"
    for name, data in members.items():
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        if name == "evil":
            info.external_attr = 0o120777 << 16  # a link, as Unix notes it
        archive.writestr(info, data)


def fill_tar(archive: tarfile.TarFile, files: dict[str, bytes], special: bytes) -> None:
    add_to_tar(archive, "a", tarfile.DIRTYPE)
    for name, data in files.items():
        add_to_tar(archive, name, tarfile.REGTYPE, data)
    if special:
        add_to_tar(archive, "evil", special)


def add_to_tar(archive: tarfile.TarFile, name: str, kind: bytes, data: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.linkname = "a/good.txt"
    archive.addfile(info, io.BytesIO(data))


def flip(data: bytes, place: int) -> bytes:
    """Spoil one byte."""
    spoiled = bytearray(data)
    spoiled[place] ^= 0xFF
    return bytes(spoiled)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


GOOD = {"a/good.txt": b"good"}
# a header of 512 bytes for the folder, then a header and 1024 bytes for each file
TWO = pack("tar", {"one": b"1" * 1024, "two": b"2" * 1024})
SECOND = 512 + 512 + 1024  # where the second file's header begins
OUTSIDE = ("../evil.txt", "a/../../evil.txt", "/evil.txt", "..")
REFUSED = {
    "zip with a link": pack("zip", GOOD, tarfile.SYMTYPE),
    "tar cut between members": TWO[:SECOND],
    "tar cut in a header": TWO[: SECOND + 100],
    "tar with a damaged header": flip(TWO, SECOND + 10),
    "tar.gz with damaged content": flip(pack("tar.gz", {"one.bin": NOISE}), 15_000),
    "zip with damaged content": flip(pack("zip", {"one.bin": NOISE}), 15_000),
    "zip with damaged codes": flip(pack("zip", {"one.txt": bytes(range(256)) * 40}), 350),
    "tar with NUL in a name": pack("tar", {"ä" * 99 + "\0": b""}),
    "zip with a name that is not UTF-8": pack("zip", {"é": b""}).replace("é".encode(), b"\xc3\x28"),
    "nothing": b"",
    "a text": b"a text, not an archive\n" * 100,
    "no zip": b"PK\x03\x04 no zip",
    "no gzip": b"\x1f\x8b no gzip",
    "no bzip2": b"BZh9 no bzip2",
    "zeros": bytes(2000),
}
for kind in KINDS:
    REFUSED[f"cut {kind}"] = half(pack(kind, FILES))
    for name in OUTSIDE:
        REFUSED[f"{kind} with {name}"] = pack(kind, {**GOOD, name: b"evil"})
for name in ("SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"):
    REFUSED[f"tar with a {name}"] = pack("tar", GOOD, getattr(tarfile, name))


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_an_unsafe_or_damaged_archive_is_refused_and_nothing_is_written(content, tmp_path):
    archive = tmp_path / "archive"
    root = tmp_path / "around/root"
    root.mkdir(parents=True)
    archive.write_bytes(content)
    with refused(archive):
        archives.unpack(archive, root, lambda name: "evil" not in name)
    assert {path.name for path in tmp_path.rglob("*")} == {"archive", "around", "root"}


@pytest.mark.parametrize("kind", KINDS)
class TestUnpack:
    @pytest.fixture
    def archive(self, kind, tmp_path) -> Path:
        files = {}
        for name, data in FILES.items():
            files[f"./{name.replace('/', '//')}"] = data
        (tmp_path / "archive").write_bytes(pack(kind, files))
        return tmp_path / "archive"

    def test_only_wanted_members_are_written(self, archive, tmp_path):
        archives.unpack(archive, tmp_path / "root", lambda name: name == "three.txt")
        assert bytes_below(tmp_path / "root") == {"three.txt": b""}

    def test_what_holds_no_wanted_member_is_refused(self, archive, tmp_path):
        for path in (archive, tmp_path, tmp_path / "missing"):
            with refused(path):
                archives.unpack(path, tmp_path / "other", lambda name: False)
        assert not (tmp_path / "other").exists()

    def test_files_come_out_byte_for_byte(self, archive, tmp_path):
        archives.unpack(archive, tmp_path / "new/root", FILES.__contains__)
        assert bytes_below(tmp_path / "new/root") == FILES

    def test_files_that_are_there_are_kept_and_listed_if_they_differ(
        self, archive, tmp_path, capsys
    ):
        root = tmp_path / "root"
        archives.unpack(archive, root, FILES.__contains__)
        (root / "a/one.bin").write_bytes(b"mine")
        (root / "three.txt").unlink()
        before = times_below(root)
        archives.unpack(archive, root, FILES.__contains__)
        assert bytes_below(root) == {**FILES, "a/one.bin": b"mine"}
        assert before.items() <= times_below(root).items()
        listed = re.findall(r"^  (.+)", capsys.readouterr().out, re.MULTILINE)
        assert listed == ["a/one.bin"]

    def test_the_root_and_its_folders_may_be_links_to_another_disk(self, archive, tmp_path):
        for folder in ("disk", "root"):
            (tmp_path / folder).mkdir()
        (tmp_path / "root/a").symlink_to(tmp_path / "disk")
        (tmp_path / "link").symlink_to(tmp_path / "root")
        archives.unpack(archive, tmp_path / "link", FILES.__contains__)
        assert (tmp_path / "disk/one.bin").read_bytes() == FILES["a/one.bin"]
