"""Time and memory of a piece of work."""

from __future__ import annotations

import time

import pytest
import torch

from lab.benchmarks import magicface, magicid, persona
from lab.benchmarks.measure import Demand, Meter, demand, device_name, measure, place

CPU = torch.device("cpu")


def test_time_and_memory_of_a_block() -> None:
    with Meter(CPU) as meter:
        held = torch.ones(64 * 2**20, dtype=torch.uint8)
        time.sleep(0.05)
    del held
    assert 0.05 <= meter.seconds < 5
    assert 56 < meter.above_mib < 128 and meter.peak_mib > meter.above_mib


def test_what_is_freed_before_the_end_counts() -> None:
    def work() -> None:
        held = torch.ones(64 * 2**20, dtype=torch.uint8)
        time.sleep(0.05)
        del held

    assert measure(work, CPU).above_mib > 56
    assert measure(lambda: None, CPU).above_mib < 16
    assert "threads" in device_name(CPU)


def test_a_failing_block_stops_watching_and_keeps_its_error() -> None:
    with pytest.raises(KeyError, match="first"), Meter(CPU) as meter:
        raise KeyError("first")
    assert not meter._memory._watcher.is_alive()


def test_magicface_benchmark_prints_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--shape", "tiny", "--size", "64", "--references", "1", "--naive", "1", "--rounds", "1", "--device", "cpu"]
    assert magicface.main(asked) == 0
    printed = capsys.readouterr().out
    for row in ("| vanilla |", "| ours, N = 1 |", "| ours cached, N = 1 |", "| naive, N = 1 |"):
        assert row in printed


def test_persona_benchmark_prints_steps_and_their_limits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="likeness"):
        assert persona.main(["--shape", "miniature", "--rounds", "1", "--batch", "1"]) == 0
    assert "training step, batch 1" in caplog.text and "with a persona" in caplog.text


def test_what_work_asks_of_a_gpu() -> None:
    def make(device: torch.device):
        layer, x = place(torch.nn.Linear(4, 8), device, torch.float32), torch.ones(2, 4).to(device)
        return lambda: layer(x).relu().sum().item()

    asked = demand(make)
    assert asked == Demand(launches=3, syncs=1, flops=2 * 2 * 4 * 8)
    assert Demand(6, 3, 256).columns(asked) == "2.00 | 2 | 2.000"


def test_magicid_asks_little_of_a_gpu_however_many_people() -> None:
    asked = magicid.demands("tiny", 8, torch.float32, (1, 4))
    plain = asked[magicid.VANILLA, 0]
    more = {variant: one.launches - plain.launches for variant, one in asked.items()}
    layers = 16
    assert more[magicid.OURS, 1] <= 3 * layers and more[magicid.OURS, 4] <= 7 * layers < more[magicid.LOOP, 4]
    assert {one.syncs for one in asked.values()} == {plain.syncs} and magicid.kept(asked)
    assert all(row in magicid.table(asked, {}) for row in ("| vanilla |", "| MGMICA | 4 |", "| loop | 4 |"))


def test_magicid_benchmark_prints_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--shape", "tiny", "--size", "64", "--identities", "2", "8", "--rounds", "1", "--training", "1"]
    assert magicid.main(asked) == 0
    printed = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    limits = {(row[1], row[2]): row[5:7] for row in printed if len(row) == 11}
    assert [limits[row][0] for row in (("MGMICA", "2"), ("MGMICA", "8"), ("loop", "2"))] == ["1.05", "", ""]
    assert limits["vanilla", ""][1] == "" and 0 < float(limits["MGMICA", "2"][1]) < 1
    trained = {row[1].split(",")[0]: row[3] for row in printed if len(row) == 6}
    assert trained["limit: UNet forward"] == "1" and float(trained["training step"]) > 0
