from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.datasets.archives import read_members
from luban.datasets.arrays import unpickle_array
from luban.errors import DataError

MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
MEMBERS = {"p/data/b.txt": b"bb", "p/data/a.txt": b"a", "p/setup.py": b"import os"}


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    return path


def _deb(path: Path, data: bytes) -> Path:
    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    path.write_bytes(b"!<arch>\n" + member("debian-binary", b"2.0") + member("data.tar.gz", data))
    return path


def test_zip_tar_and_deb_give_the_same_members_sorted(tmp_path: Path, make_tar: MakeTar) -> None:
    tar = make_tar(tmp_path / "a.tgz", MEMBERS)
    expected = [("p/data/a.txt", b"a"), ("p/data/b.txt", b"bb")]
    for carrier in (
        tar,
        _zip(tmp_path / "a.whl"),
        _deb(tmp_path / "a.deb", tar.read_bytes()),
        tar.read_bytes(),
    ):
        assert list(read_members(carrier, "*/data/*.txt").items()) == expected


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(file := tarfile.TarInfo("p/a.txt"), io.BytesIO())
        link = tarfile.TarInfo("p/b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, file.name
        archive.addfile(link)
    assert list(read_members(tmp_path / "a.tar", "p/*")) == ["p/a.txt"]


def test_no_member_matches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.whl: the archive has no member that matches '\*\.csv'"):
        read_members(_zip(tmp_path / "a.whl"), "*.csv")


@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_damaged_archive_is_a_data_error_or_reads_well(cut: int, flip: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("p/data/a.txt")
        info.size = 300
        archive.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(300)))
    blob = bytearray(buffer.getvalue())
    blob[flip % len(blob)] ^= 0xFF
    try:
        found = read_members(bytes(blob[: len(blob) - cut % len(blob)]), "*")
    except DataError:
        return
    assert all(isinstance(content, bytes) for content in found.values())


@pytest.mark.parametrize("dtype", ["u1", "<i8", "<f4", "<U5"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickled_array_comes_back(dtype: str, protocol: int) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    back = unpickle_array(pickle.dumps(array, protocol), at="a.pkl")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_a_pickle_written_by_numpy_1_is_read() -> None:
    blob = pickle.dumps(np.arange(3), 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert unpickle_array(blob, at="a.pkl").tolist() == [0, 1, 2]


class _Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(DataError, match=r"it asks for (posix|nt)\.system"):
        unpickle_array(pickle.dumps(_Command(marker)), at="a.pkl")
    with pytest.raises(DataError, match="system"):
        unpickle_array(pickle.dumps(np.array([_Command(marker)], object)), at="a.pkl")
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Command(marker)))  # an ordinary unpickler does run it
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [([1, 2], "holds list"), (np.array([[1], None], object), "holds an array of object")],
)
def test_a_pickle_of_something_else_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        unpickle_array(pickle.dumps(value), at="a.pkl")


@pytest.mark.parametrize("blob", [b"", b"\x80", b"not a pickle", pickle.dumps(np.arange(9))[:-4]])
def test_a_damaged_pickle_is_a_data_error(blob: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.pkl: the pickle is refused"):
        unpickle_array(blob, at="a.pkl")
