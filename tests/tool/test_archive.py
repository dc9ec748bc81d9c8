"""Archives that somebody else made: unpacked byte for byte, or refused with nothing written."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from common import bytes_below, cut_in_half, times_below

from errors import InputError
from tool.archive import unpack

RNG_BYTES = os.urandom(30_000)  # cannot be packed
CONTENT = {"a/one.bin": RNG_BYTES, "a/b/c/two.txt": b"two\n" * 3000, "three.txt": b"", "a/ä ö.txt": b"\xff\x00"}
KINDS = ("tar", "tar.gz", "zip")
LONG_AGO = 10**18


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def pack(path: Path, content: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    """An archive of the kind that its name says; `special`: members of a tar without content."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/", b"")
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            archive.addfile(member("a", tarfile.DIRTYPE))
            for name, data in content.items():
                info = member(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            for info in special:
                archive.addfile(info)
    return path


def everything(name: str) -> bool:
    return True


def assert_refused(archive: Path, root: Path, match: str, wanted: Callable[[str], bool] = everything) -> None:
    """In one line that names the archive and says what to do, and nothing is written."""
    around = set(root.parent.rglob("*"))
    with pytest.raises(InputError, match=match) as error:
        unpack(archive, root, wanted)
    assert str(error.value).startswith(f"{archive}: ")
    assert "; " in str(error.value)
    assert set(root.parent.rglob("*")) == around
    assert "\n" not in str(error.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "around/root"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_files_come_out_byte_for_byte(kind, prefix, root, tmp_path):
    unpack(pack(tmp_path / f"a.{kind}", {prefix + name: data for name, data in CONTENT.items()}), root, everything)
    assert bytes_below(root) == CONTENT


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_wanted_comes_out_and_is_asked_for_by_its_plain_name(kind, root, tmp_path):
    asked = []
    unpack(
        pack(tmp_path / f"a.{kind}", {"./a//one.txt": b"1", "./two.txt": b"2"}),
        root,
        lambda name: asked.append(name) or name == "a/one.txt",
    )
    assert bytes_below(root) == {"a/one.txt": b"1"}
    assert sorted(asked) == ["a/one.txt", "two.txt"]


def test_the_root_is_made(tmp_path):
    unpack(pack(tmp_path / "a.tar", CONTENT), tmp_path / "new/root", everything)
    assert bytes_below(tmp_path / "new/root") == CONTENT


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_again_writes_only_what_is_missing_and_tells_what_is_of_another_size(kind, root, tmp_path, capsys):
    archive = pack(tmp_path / f"a.{kind}", CONTENT)
    unpack(archive, root, everything)
    for name in CONTENT:
        os.utime(root / name, ns=(LONG_AGO, LONG_AGO))
    cut_in_half(root / "a/one.bin")
    mine = (root / "a/one.bin").read_bytes()
    (root / "three.txt").unlink()
    capsys.readouterr()
    unpack(archive, root, everything)
    assert bytes_below(root) == {**CONTENT, "a/one.bin": mine}
    assert {name for name, time in times_below(root).items() if time > LONG_AGO + 10**15} <= {"a/one.bin", "three.txt"}
    told = capsys.readouterr().out
    assert f"are not as large as in {archive.name}, and are kept (1)" in told and "a/one.bin" in told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", ".."])
def test_a_member_outside_of_the_root_is_refused_also_if_nobody_wants_it(kind, name, root, tmp_path):
    archive = pack(tmp_path / f"a.{kind}", {"a/good.txt": b"good", name: b"evil"})
    assert_refused(archive, root, "would lie outside of", lambda name: name == "a/good.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_by_its_absolute_path_is_refused(kind, root, tmp_path):
    evil = tmp_path / "around/evil.txt"
    assert_refused(pack(tmp_path / f"a.{kind}", {"a/good.txt": b"good", str(evil): b"evil"}), root, "would lie outside of")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_the_user_put_on_another_disk_is_filled_there(kind, root, tmp_path):
    (tmp_path / "disk").mkdir()
    (root / "a").symlink_to(tmp_path / "disk")
    unpack(pack(tmp_path / f"a.{kind}", {"a/good.txt": b"good"}), root, lambda name: True)
    assert (tmp_path / "disk/good.txt").read_bytes() == b"good"


def test_the_root_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    unpack(pack(tmp_path / "a.tar", CONTENT), tmp_path / "link", everything)
    assert bytes_below(root) == CONTENT


@pytest.mark.parametrize(
    "special",
    [
        member("evil", tarfile.SYMTYPE, "/etc/hostname"),
        member("evil", tarfile.SYMTYPE, "a/good.txt"),
        member("evil", tarfile.LNKTYPE, "a/good.txt"),
        member("evil", tarfile.CHRTYPE),
        member("evil", tarfile.BLKTYPE),
        member("evil", tarfile.FIFOTYPE),
    ],
    ids=["symlink out", "symlink within", "hard link", "character device", "block device", "fifo"],
)
def test_a_tar_with_a_link_or_a_device_is_refused(special, root, tmp_path):
    archive = pack(tmp_path / "a.tar", {"a/good.txt": b"good"}, special)
    assert_refused(archive, root, "member evil is a link or a device", lambda name: name == "a/good.txt")


def test_a_zip_with_a_link_is_refused(root, tmp_path):
    archive = pack(tmp_path / "a.zip", {"a/good.txt": b"good"})
    with zipfile.ZipFile(archive, "a") as opened:
        info = zipfile.ZipInfo("evil")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/hostname")
    assert_refused(archive, root, "member evil is a link or a device")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_is_refused(kind, root, tmp_path):
    archive = pack(tmp_path / f"a.{kind}", CONTENT)
    cut_in_half(archive)
    assert_refused(archive, root, "damaged, cut, or no tar or zip archive")


@pytest.mark.parametrize("more", [0, 100], ids=["between two members", "within a header"])
def test_a_tar_that_is_cut_where_a_member_begins_is_refused_too(more, root, tmp_path):
    archive = pack(tmp_path / "a.tar", {"one": b"1" * 1024, "two": b"2" * 1024})
    archive.write_bytes(archive.read_bytes()[: 512 + 512 + 1024 + more])  # the folder, the header of one, one
    assert_refused(archive, root, "damaged, cut, or no tar or zip archive")


def test_a_tar_with_a_damaged_header_is_refused(root, tmp_path):
    archive = pack(tmp_path / "a.tar", {"one": b"1" * 1024, "two": b"2" * 1024})
    data = bytearray(archive.read_bytes())
    data[512 + 512 + 1024 + 10] ^= 0xFF
    archive.write_bytes(data)
    assert_refused(archive, root, "damaged, cut, or no tar or zip archive")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_damaged_content_never_becomes_a_file(kind, root, tmp_path):
    archive = pack(tmp_path / f"a.{kind}", {"a/one.bin": RNG_BYTES})
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(InputError, match="damaged, cut, or no tar or zip archive") as error:
        unpack(archive, root, everything)
    assert "\n" not in str(error.value)
    assert bytes_below(root) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"a text, not an archive\n" * 100, b"PK\x03\x04 and no more", b"\x1f\x8b and no more", b"BZh9 and no more", bytes(2000)],
    ids=["empty", "text", "start of a zip", "start of a gzip", "start of a bzip2", "zeros"],
)
def test_what_is_no_archive_is_refused(content, root, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    assert_refused(tmp_path / "a.tar", root, ": ")


def test_a_missing_archive_is_refused(root, tmp_path):
    assert_refused(tmp_path / "a.tar", root, "there is no such archive; correct the path")


def test_a_folder_is_no_archive(root, tmp_path):
    assert_refused(tmp_path, root, "no tar or zip archive")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_something_else_is_refused(kind, root, tmp_path):
    assert_refused(pack(tmp_path / f"a.{kind}", CONTENT), root, "holds nothing of what belongs here", lambda name: False)


def test_a_tar_with_a_name_that_no_file_can_have_is_refused(root, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = member("good")
        info.pax_headers = {"path": "a\0b"}
        archive.addfile(info)
    assert_refused(tmp_path / "a.tar", root, ": ")


def test_a_zip_with_a_name_that_is_not_utf8_is_refused(root, tmp_path):
    packed = pack(tmp_path / "a.zip", {"é": b""}).read_bytes()
    (tmp_path / "a.zip").write_bytes(packed.replace("é".encode(), b"\xc3\x28"))  # no UTF-8
    assert_refused(tmp_path / "a.zip", root, ": ")
