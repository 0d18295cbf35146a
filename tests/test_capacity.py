"""What docs/scaling.md computes is what bench/capacity.py computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.capacity import (
    Costs,
    bandwidth,
    memory,
    processes,
    redis_load,
    redis_table,
    storm,
    storm_table,
    subscribers_table,
)

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text("utf-8")


@pytest.mark.parametrize("table", [subscribers_table, redis_table, storm_table])
def test_the_page_has_the_tables_that_the_script_makes(table: object) -> None:
    assert callable(table)
    assert table() in PAGE


def test_the_sums_are_those_of_the_page_at_round_numbers() -> None:
    costs = Costs(
        fanout_us=10, connect_us=100, subscriber_kib=3, kernel_kib=1, event_bytes=125, append_us=50, read_us=25
    )
    assert processes(60_000, 1, costs) == 3, "by their number"
    assert processes(60_000, 10, costs) == 10, "by what they get"
    assert memory(1_024, costs) == 4 * 1024 * 1024
    assert bandwidth(1_000, 2, costs) == 2_000_000
    assert redis_load(1_000, 2, costs) == pytest.approx(0.1)
    assert storm(10_000, 2, costs) == pytest.approx(0.5)
