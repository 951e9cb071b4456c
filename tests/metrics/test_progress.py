"""Progress: plain lines word for word; the living line in any width and encoding."""

import io
import threading

import pytest
from rich.console import Console

from jscale.metrics import Progress
from jscale.metrics.lines import Lines
from jscale.metrics.live import Live


class Stream(io.StringIO):
    """A pipe; `seen(word)` is set as soon as the word was written."""

    def __init__(self):
        super().__init__()
        self.awaited: dict[str, threading.Event] = {}

    def seen(self, word: str) -> threading.Event:
        return self.awaited.setdefault(word, threading.Event())

    def write(self, text: str) -> int:
        for word, event in self.awaited.items():
            if word in text:
                event.set()
        return super().write(text)

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def now():
    return [0.0]


def plain(stream, now, total=100, **more):
    return Progress(total, console=Console(file=stream), clock=lambda: now[0], **more)


def terminal(width=100, encoding="utf-8"):
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    return raw, Console(file=raw, force_terminal=True, width=width, height=10, legacy_windows=False)


def output(raw) -> str:
    raw.flush()
    return raw.buffer.getvalue().decode(raw.encoding)


def test_a_pipe_gets_every_nth_step_and_the_first_and_the_last(stream, now):
    with plain(stream, now, total=25, every=10) as progress:
        for step in range(1, 26):
            progress.step(step, {"loss": 1 / step})
    assert [line.split()[1] for line in stream.lines()] == ["1/25", "10/25", "20/25", "25/25"]


def test_a_pipe_gets_a_line_after_ten_silent_seconds(stream, now):
    progress = plain(stream, now, every=1000)
    for step in range(1, 31):
        progress.step(step, {})
        now[0] += 1.0
    assert stream.lines() == ["step 1/100", "step 11/100", "step 21/100"]


def test_a_line_reads_like_a_sentence(stream, now):
    values = {"loss": 2.34567, "tokens_per_second": 12_345.0, "mfu": 0.4123, "eta_seconds": 185.0}
    plain(stream, now).step(10, values)
    assert stream.lines() == ["step 10/100  loss 2.346  12.3k tokens/s  MFU 41.2%  ETA 3 min 5 s"]


def test_a_phase_says_when_it_begins_and_ends(stream, now):
    with plain(stream, now).phase("compiling the train step"):
        assert stream.lines() == ["compiling the train step ..."]
        now[0] += 12.3
    assert stream.lines()[1:] == ["compiling the train step ... done in 12.3 s"]


def test_a_phase_that_fails_says_so(stream, now):
    with pytest.raises(MemoryError), plain(stream, now).phase("saving"):
        raise MemoryError
    assert stream.lines() == ["saving ...", "saving ... failed after 0 ms"]


def test_a_long_phase_ticks_in_a_pipe(stream, now):
    threads, ticked = set(threading.enumerate()), stream.seen("compiling ... 1 min 5 s")
    with plain(stream, now, still=0.001).phase("compiling"):
        now[0] += 65.0
        assert ticked.wait(timeout=30)
    assert stream.lines()[-1] == "compiling ... done in 1 min 5 s"
    assert set(threading.enumerate()) == threads


def test_work_shows_bytes_at_first_every_ten_seconds_and_at_the_end(stream, now):
    progress = plain(stream, now)
    for done in range(0, 31):
        progress.work(done * 10**6, 30 * 10**6, "tokenizing")
        now[0] += 1.0
    assert stream.lines() == [
        "tokenizing 0% (0 B of 30.0 MB)",
        "tokenizing 33% (10.0 MB of 30.0 MB)",
        "tokenizing 67% (20.0 MB of 30.0 MB)",
        "tokenizing 100% (30.0 MB of 30.0 MB)",
    ]


def test_notes_are_taken_literally_in_any_encoding(now):
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    with plain(raw, now) as progress:
        progress.note("[bold]naïve[/bold] ☃ " + "x" * 300)
    assert output(raw) == "[bold]na?ve[/bold] ? " + "x" * 300 + "\n"


def test_a_text_cannot_steer_the_terminal(stream, now):
    plain(stream, now).note("a\tsample\nwith \x1b[31mcodes\x9b\r")
    raw, console = terminal(80)
    with Progress(1, console=console) as progress:
        progress.note("two \x1b[31mcodes")
    assert stream.getvalue() == "a\tsample\nwith ?[31mcodes??\n"
    assert "two ?[31mcodes" in output(raw)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("width", [1, 2, 7, 20, 200])
def test_a_terminal_of_any_width_and_encoding_is_served(width, encoding):
    raw, console = terminal(width, encoding)
    with Progress(1000, console=console) as progress:
        progress.work(1, 10**9, "tokenizing ☃")
        with progress.phase("compiling ☃"):
            progress.note("[/] naïve ☃ \x1b[31m")
        progress.step(500, {"loss": float("nan"), "mfu": 0.4, "eta_seconds": float("inf")})
        with pytest.raises(KeyError), progress.phase("evaluating"):
            raise KeyError
    assert output(raw)


def test_the_living_line_shows_step_values_and_phase(now):
    _, console = terminal(200)
    live = Live(console, total=1000, clock=lambda: now[0])
    live.step(250, {"loss": 2.5, "mfu": 0.4})
    assert live.line() == "training  " + "━" * 6 + "─" * 18 + " 250/1000  loss 2.5  MFU 40.0%"
    with live.phase("compiling the train step"):
        now[0] += 62.0
        assert live.line().startswith("compiling the train step 1 min 2 s  ━")
        now[0] += 1.0
        assert live.line().startswith("compiling the train step 1 min 3 s  ━")
    assert live.line().startswith("training  ━")


def test_the_living_line_shows_work_until_it_is_done(now):
    _, console = terminal(100, "ascii")
    live = Live(console, total=10, clock=lambda: now[0])
    live.work(10**9, 4 * 10**9, "tokenizing")
    assert live.line() == "tokenizing  " + "#" * 5 + "." * 15 + " 1.0 GB of 4.0 GB"
    live.work(4 * 10**9, 4 * 10**9, "tokenizing")
    assert live.line() == "training  " + "." * 20 + " 0/10"


def test_the_terminal_line_is_redrawn_while_the_main_thread_waits(now):
    raw, console = terminal(200)
    drawn = threading.Event()
    with Progress(10, console=console, clock=lambda: now[0]) as progress:
        with progress.phase("compiling"):
            now[0] = 90.0
            for _ in range(100):  # the drawing thread alone can make this true
                if "compiling 1 min 30 s" in output(raw):
                    drawn.set()
                    break
                drawn.wait(0.1)
        assert drawn.is_set()
    assert "compiling ... done in 1 min 30 s" in output(raw)


def test_the_display_fits_the_stream(stream, now):
    assert isinstance(plain(stream, now)._display, Lines)
    assert isinstance(Progress(1, console=terminal()[1])._display, Live)


def test_an_empty_run_has_a_full_bar():
    _, console = terminal(50, "ascii")
    assert Live(console, total=0).line() == "training  " + "#" * 10 + " 0/0"
