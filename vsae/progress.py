"""Long work shows its rate and its ETA: a bar on a terminal, a line now and then where the output goes to a file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
LINE_SECONDS = 10.0


def track(items: Iterable[Item], what: str, total: int, done: int = 0) -> Iterator[Item]:
    """The items, while showing how many of `total` have been worked on; `done` of them were before."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, began, last = Console(file=sys.stderr), time.monotonic(), time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        for number, item in enumerate(items, 1):
            yield item
            bar.advance(task)
            if not console.is_terminal and (now := time.monotonic()) - last >= LINE_SECONDS:
                last, rate = now, number / (now - began)
                left = max(total - done - number, 0) / rate
                print(
                    f"{what}: {done + number:,} of {total:,}, {rate:.3g} a second, {left:,.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
