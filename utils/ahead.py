"""Work that is done in threads, before its result is asked for or after its item has been made."""

import threading
from collections import deque
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


def behind(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int = 1
) -> Iterator[Result]:
    """`work` of every item, in their order, done while the caller's thread makes the next items.

    At most `threads` + 1 results wait or are in the making; the rest as in `ahead`. It is for
    items that a network makes: PyTorch on a CPU is slower in any thread but the main one.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        pending: deque[Future] = deque()
        try:
            iterator, failure = iter(items), None
            while failure is None:
                try:
                    pending.append(pool.submit(work, next(iterator)))
                except StopIteration:
                    break
                except BaseException as error:  # noqa: BLE001  (raised after what came before it)
                    failure = error
                while pending and (len(pending) > threads or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(cancel_futures=True)
