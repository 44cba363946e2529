"""Work that is done in threads before its result is asked for."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int = 1
) -> Iterator[Result]:
    """`work` of every item, in their order, made before the caller asks for it.

    One thread of its own draws the items, `threads` others work. At most `threads` + 1 results
    wait or are in the making. What items or work raise is raised here, in its turn. Closing this
    ends the threads after what they are at.
    """
    room, made = threading.Semaphore(threads + 1), SimpleQueue()
    closed = threading.Event()

    def draw(pool: ThreadPoolExecutor) -> None:
        iterator = iter(items)
        while room.acquire() and not closed.is_set():
            try:
                made.put(pool.submit(work, next(iterator)))
            except StopIteration:
                made.put(None)
                return
            except BaseException as error:  # noqa: BLE001  (it is raised where it is waited for)
                failed = Future()
                failed.set_exception(error)
                made.put(failed)
                return

    with ThreadPoolExecutor(threads, "ahead") as pool:
        drawer = threading.Thread(target=draw, args=(pool,), name="ahead-draws")
        drawer.start()
        try:
            while (future := made.get()) is not None:
                result = future.result()
                room.release()
                yield result
        finally:
            closed.set()
            room.release()
            drawer.join()
            pool.shutdown(cancel_futures=True)
