"""Work done before it is asked for, by a thread."""

from collections.abc import Generator, Iterable
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], n: int) -> Generator[Item, None, None]:
    """The items, made by a thread that is at most `n` ahead. What it raises is raised here, at its item; closing stops it."""
    ready: Queue[tuple[Item | None, BaseException | None]] = Queue(n)
    stop = Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    break
            end: BaseException = StopIteration()
        except BaseException as error:
            end = error
        finally:
            if hasattr(items, "close"):
                items.close()
        put((None, end))

    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
