"""What is read ahead comes in order, no more of it than was asked for, and errors come where their results would."""

from __future__ import annotations

import threading

import pytest

from coar_dist.store.ahead import read_ahead


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
def test_results_come_in_order_and_only_so_many_are_read_ahead(num: int, num_items: int) -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return -item

    found = []
    for result in read_ahead(read, range(num_items), num):
        found.append(result)
        assert len(begun) <= len(found) + num
    assert found == [-item for item in range(num_items)]
    assert sorted(begun) == list(range(num_items))


def test_the_next_is_read_while_one_is_in_use() -> None:
    is_used = threading.Event()
    results = read_ahead(lambda item: item == 0 or is_used.wait(30), range(2))
    assert next(results)
    is_used.set()  # only then can the second reading end, which has begun
    assert next(results)


def test_an_error_comes_in_its_place_and_ends_the_reading() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    results = read_ahead(read, range(100), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert max(begun) <= 4


def test_a_reader_that_is_left_stops() -> None:
    begun: list[int] = []
    results = read_ahead(lambda item: begun.append(item), range(100), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5
