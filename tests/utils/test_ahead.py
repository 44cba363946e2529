"""Work ahead of its reader: in order, bounded, and ended when nobody reads on."""

import threading
import time

import pytest

from utils.ahead import ahead, behind


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def helpers():
    return [t for t in threading.enumerate() if t.name.startswith("ahead")]


@pytest.mark.parametrize("staged", [ahead, behind])
@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_the_order_of_the_items(staged, threads):
    def work(item):
        time.sleep(0.003 * (item % 3))  # later ones are done earlier
        return item * item

    assert list(staged(range(40), work, threads)) == [item * item for item in range(40)]
    assert list(staged([], work, threads)) == [] and not helpers()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_waits_is_bounded(threads):
    drawn = []
    results = ahead((drawn.append(item) or item for item in range(100)), lambda item: item, threads)
    assert next(results) == 0
    wait_until(lambda: len(drawn) == threads + 2)
    time.sleep(0.05)
    assert len(drawn) == threads + 2
    assert next(results) == 1
    wait_until(lambda: len(drawn) == threads + 3)
    results.close()
    assert len(drawn) <= threads + 3 and not helpers()


def test_it_works_while_its_reader_does():
    started = threading.Event()
    results = ahead(range(2), lambda item: started.set() if item else None)
    next(results)
    assert started.wait(60)
    results.close()


def fail(item):
    if item == 3:
        raise KeyError("work")
    return item


def broken():
    yield from range(3)
    raise OSError("items")


@pytest.mark.parametrize("staged", [ahead, behind])
@pytest.mark.parametrize(("items", "kind"), [(range, KeyError), (broken, OSError)])
def test_errors_come_in_their_turn(staged, items, kind):
    got = []
    with pytest.raises(kind):
        for result in staged(items(9) if items is range else items(), fail, 2):
            got.append(result)
    assert got == [0, 1, 2] and not helpers()


def test_stages_follow_one_another():
    first = ahead(range(20), lambda item: item + 1, 2)
    second = ahead((item * 10 for item in first), lambda item: -item, 2)
    assert [next(second) for _ in range(3)] == [-10, -20, -30]
    second.close()
    first.close()
    assert not helpers()


def test_an_error_of_a_stage_passes_the_next():
    first = ahead(range(20), fail, 2)
    second = ahead(first, lambda item: item, 2)
    with pytest.raises(KeyError):
        list(second)
    first.close()
    assert not helpers()


def test_the_caller_makes_the_items_while_threads_finish_earlier_ones():
    threads, gate = [], threading.Event()

    def make():
        for item in range(4):
            threads.append(threading.current_thread())
            if item == 2:
                gate.set()
            yield item

    def work(item):
        assert gate.wait(60)  # the first is done only once the third has been made
        return item

    assert list(behind(make(), work, 2)) == [0, 1, 2, 3]
    assert set(threads) == {threading.main_thread()} and not helpers()
