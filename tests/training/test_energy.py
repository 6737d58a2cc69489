"""Energy is what the counters of all packages went up by, also where one starts anew."""

from __future__ import annotations

from pathlib import Path

from luban.training.energy import Energy
from luban.training.progress import Progress


def put(root: Path, zone: str, microjoules: int, name: str = "package-0") -> None:
    (root / zone).mkdir(exist_ok=True)
    (root / zone / "name").write_text(f"{name}\n")
    (root / zone / "energy_uj").write_text(f"{microjoules}\n")
    (root / zone / "max_energy_range_uj").write_text("10000000\n")


def test_joules_of_all_packages_are_added_up(tmp_path: Path) -> None:
    put(tmp_path, "intel-rapl:0", 1_000_000)
    put(tmp_path, "intel-rapl:1", 9_000_000)
    put(tmp_path, "intel-rapl:2", 0, "psys")  # the whole platform, in which the packages are
    put(tmp_path, "intel-rapl:0:0", 0, "core")  # the cores of package 0, which are in it already
    energy = Energy(tmp_path)
    energy.on_start(tmp_path, {})
    put(tmp_path, "intel-rapl:0", 3_000_000)
    put(tmp_path, "intel-rapl:0:0", 1_500_000, "core")
    put(tmp_path, "intel-rapl:2", 8_000_000, "psys")
    energy.on_step(Progress(), {})
    put(tmp_path, "intel-rapl:1", 500_000)  # started anew after 10 J
    energy.on_end(Progress())
    assert energy.joules == 2.0 + 1.5

    resumed = Energy(tmp_path)
    resumed.restore(energy.state())
    resumed.on_start(tmp_path, {})
    put(tmp_path, "intel-rapl:0", 4_000_000)
    resumed.on_end(Progress())
    assert resumed.joules == 4.5


def test_where_no_counter_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    energy = Energy(tmp_path)
    energy.on_start(tmp_path, {})
    energy.on_end(Progress())
    assert energy.joules is None
    assert energy.state() == {"joules": None, "known": True}
    resumed = Energy(tmp_path / "nowhere")
    resumed.restore({})
    assert resumed.joules is None


def test_a_counter_that_started_anew_nobody_knows_where_is_not_counted(tmp_path: Path) -> None:
    put(tmp_path, "intel-rapl:0", 9_000_000)
    energy = Energy(tmp_path)
    energy.on_start(tmp_path, {})
    put(tmp_path, "intel-rapl:0", 500_000)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    energy.on_step(Progress(), {})
    put(tmp_path, "intel-rapl:0", 2_500_000)
    energy.on_end(Progress())
    assert energy.joules is None, "2 J would be too few"

    resumed = Energy(tmp_path)
    resumed.restore(energy.state())
    resumed.on_start(tmp_path, {})
    resumed.on_end(Progress())
    assert resumed.joules is None, "what came before an interruption is not known either"


def test_a_counter_that_stands_at_its_end_starts_anew(tmp_path: Path) -> None:
    put(tmp_path, "intel-rapl:0", 10_000_000)
    energy = Energy(tmp_path)
    energy.on_start(tmp_path, {})
    put(tmp_path, "intel-rapl:0", 0)
    energy.on_end(Progress())
    assert energy.joules == 0.0
    put(tmp_path, "intel-rapl:0", 1)
    energy.on_end(Progress())
    assert energy.joules == 1e-6
