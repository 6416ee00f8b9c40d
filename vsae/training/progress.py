"""What a person sees while it trains: a bar on a terminal; a line now and then where the output goes to a file."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Display:
    """Progress of `budget` tokens, `tokens` of which are done. `enabled=False` shows nothing."""

    def __init__(self, budget: int, tokens: int, enabled: bool, line_seconds: float) -> None:
        self.budget, self.began_at, self.start = budget, tokens, time.monotonic()
        self.enabled, self.line_seconds, self.last_line = enabled, line_seconds, self.start
        console = Console(file=sys.stderr)
        self.numbers = ""
        self.bar: Progress | None = None
        if enabled and console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=console, refresh_per_second=4)
            self.task = self.bar.add_task("train", total=budget, completed=tokens, numbers="")

    def __enter__(self) -> "Display":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, sentence: str) -> None:
        if self.enabled:
            (self.bar.console.print if self.bar else lambda text: print(text, file=sys.stderr, flush=True))(sentence)

    def speed(self, tokens: int) -> float:
        """Tokens a second since this process began."""
        return (tokens - self.began_at) / max(time.monotonic() - self.start, 1e-9)

    def show(self, step: int, tokens: int, numbers: Sequence[Mapping[str, float]] = ()) -> None:
        """Move the bar; `numbers`, of each run that has new ones, renew what stands beside it."""
        if numbers:
            nmse, l0, dead = ([each[name] for each in numbers] for name in ("nmse", "l0", "dead_share"))
            self.numbers = (
                f"step {step:,} | {self.speed(tokens):,.0f} tokens/s | NMSE {span(nmse, '.4f')} | "
                f"L0 {span(l0, '.1f')} | dead {span([100 * share for share in dead], '.1f')} %"
            )
        if self.bar:
            self.bar.update(self.task, completed=tokens, numbers=self.numbers)
        elif self.enabled and self.numbers and time.monotonic() - self.last_line >= self.line_seconds:
            self.last_line = time.monotonic()
            left = (self.budget - tokens) / max(self.speed(tokens), 1e-9)
            print(f"{tokens / self.budget:4.0%} {self.numbers} | {clock(left)} left", file=sys.stderr, flush=True)


def span(values: Sequence[float], form: str) -> str:
    """The value, or the least and the largest."""
    ends = dict.fromkeys(format(end(values), form) for end in (min, max))
    return " to ".join(ends)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
