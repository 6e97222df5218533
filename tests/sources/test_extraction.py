"""Archives of strangers: what would be written elsewhere, is too large or ambiguous is refused, whatever the format."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_agents.sources.extraction import BadArchive, extract

#: zipfile says so when a test makes one with a name twice.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")

Item = tuple[str, str, str]  # name, kind, content or target


def tar(path: Path, items: list[Item], mode: str = "w:gz", **more: object) -> Path:
    kinds = {
        "link": tarfile.SYMTYPE,
        "same": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    with tarfile.open(path, mode) as archive:
        for name, kind, text in items:
            info = tarfile.TarInfo(name)
            info.mode = 0o6755
            if kind == "file":
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
            elif kind == "folder":
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.type, info.linkname = kinds[kind], text
                archive.addfile(info)
    return path


def zipped(path: Path, items: list[Item]) -> Path:
    kinds = {"file": stat.S_IFREG, "link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "device": stat.S_IFCHR}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind, text in items:
            info = zipfile.ZipInfo(name + "/" if kind == "folder" else name)
            if kind != "folder":
                info.external_attr = (kinds[kind] | 0o6755) << 16
            archive.writestr(info, "" if kind == "folder" else text, zipfile.ZIP_DEFLATED)
    return path


GOOD: list[Item] = [
    ("./", "folder", ""),
    ("a.txt", "file", "1"),
    ("deep/er/b.py", "file", "2"),
    ("deep", "folder", ""),
    ("deep/up", "link", "../a.txt"),
    ("alias", "link", "deep/er"),
]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_file_is_unpacked(tmp_path: Path, mode: str) -> None:
    extract(tar(tmp_path / "x", [*GOOD, ("again", "same", "a.txt")], mode), tmp_path / "out")
    _is_unpacked(tmp_path / "out")
    assert (tmp_path / "out/again").read_text() == "1"
    assert stat.S_IMODE((tmp_path / "out/a.txt").stat().st_mode) == 0o755, "no set-id bits"


def test_a_zip_file_is_unpacked(tmp_path: Path) -> None:
    extract(zipped(tmp_path / "x", GOOD[1:]), tmp_path / "out")
    _is_unpacked(tmp_path / "out")


def test_one_with_zstd_is_unpacked_or_says_what_it_wants(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"rest")
    with pytest.raises(BadArchive, match=r"zstandard|damaged"):
        extract(path, tmp_path / "out")


def _is_unpacked(out: Path) -> None:
    assert (out / "deep/er/b.py").read_text() == "2"
    assert (out / "deep/up").read_text() == "1"
    assert (out / "alias/b.py").read_text() == "2"


Make = Callable[[Path, list[Item]], Path]


@pytest.mark.parametrize("make", [tar, zipped], ids=["tar", "zip"])
@pytest.mark.parametrize(
    "items",
    [
        pytest.param([("../out.txt", "file", "x")], id="up"),
        pytest.param([("a/../../out.txt", "file", "x")], id="up-within"),
        pytest.param([("/tmp/shunter-escaped", "file", "x")], id="absolute"),
        pytest.param([("a\\..\\..\\x", "file", "x")], id="backslash"),
        pytest.param([("l", "link", "/etc/passwd")], id="link-absolute"),
        pytest.param([("l", "link", "../out")], id="link-up"),
        pytest.param([("a/l", "link", "../../x")], id="link-up-deep"),
        pytest.param([("l", "link", "."), ("l/x", "file", "x")], id="through-link"),
        pytest.param([("l/x", "file", "x"), ("l", "link", "..")], id="link-over-folder"),
        pytest.param([("l", "link", "x"), ("l", "file", "x")], id="file-over-link"),
        pytest.param([("a/b", "link", ".."), ("c", "link", "a/b/../..")], id="through-other-link"),
        pytest.param([("a", "link", "b"), ("b", "link", "a")], id="ring"),
        pytest.param([("x", "file", "1"), ("x", "file", "2")], id="twice"),
        pytest.param([("x", "file", "1"), ("X", "file", "2")], id="case"),
        pytest.param([("\u00e9", "file", "1"), ("e\u0301", "file", "2")], id="unicode"),
        pytest.param([("p", "pipe", "")], id="pipe"),
        pytest.param([("d", "device", "")], id="device"),
    ],
)
def test_what_would_be_written_elsewhere_is_refused(tmp_path: Path, make: Make, items: list[Item]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    archive = make(tmp_path / "x", [("first", "file", "1"), *items])
    with pytest.raises(BadArchive):
        extract(archive, place / "out")
    assert os.listdir(place) == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "x"]
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert not os.path.exists("/tmp/shunter-escaped")


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "later", "."])
def test_a_hard_link_is_to_a_file_before_it(tmp_path: Path, target: str) -> None:
    archive = tar(tmp_path / "x", [("h", "same", target), ("later", "file", "1")])
    with pytest.raises(BadArchive):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("make", [tar, zipped], ids=["tar", "zip"])
def test_bombs_are_refused_before_they_fill_the_disk(tmp_path: Path, make: Make) -> None:
    archive = make(tmp_path / "x", [("zeros", "file", "0" * 3_000_000)])
    assert archive.stat().st_size < 20_000
    with pytest.raises(BadArchive, match="larger than"):
        extract(archive, tmp_path / "out", byte_limit=1_000_000)
    assert (tmp_path / "out/zeros").stat().st_size <= 1_000_000
    archive = make(tmp_path / "y", [(f"f{n}", "file", "") for n in range(101)])
    with pytest.raises(BadArchive, match="more than 100 entries"):
        extract(archive, tmp_path / "many", entry_limit=100)
    extract(archive, tmp_path / "fit", entry_limit=101)


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("make", [tar, zipped], ids=["tar", "zip"])
def test_one_that_is_cut_off_or_none_at_all_is_told(tmp_path: Path, make: Make, cut: float) -> None:
    archive = make(tmp_path / "x", [("a", "file", os.urandom(3000).hex())])
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(BadArchive):
        extract(archive, tmp_path / "out")
    archive.write_bytes(b"<html>Not found</html>")
    with pytest.raises(BadArchive):
        extract(archive, tmp_path / "out2")


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("also_zip", [False, True])
def test_what_is_said_of_an_entry_does_not_fill_the_memory(
    tmp_path: Path, kind: bytes, also_zip: bool
) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 64 * 2**20
    archive = tmp_path / "a.tar"
    with archive.open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(header.size + 512)  # a hole
    if also_zip:  # it is looked at by both
        with zipfile.ZipFile(archive, "a") as both:
            both.writestr("a.txt", "1")
    tracemalloc.start()
    try:
        with pytest.raises(BadArchive, match="more than 1 MiB of one entry"):
            extract(archive, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
