"""Progress: sparse plain lines away from a terminal, a bar on one, compile time apart, nothing on stdout."""

import io

import pytest

from jaxdiff.progress import duration, progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(total=100, seconds=1.0, stream=None, compile_seconds=0.0, **options):
    clock, stream = Clock(), stream or io.StringIO()
    with progress("invert", total, stream=stream, clock=clock, **options) as task:
        if compile_seconds:
            with task.compiling():
                clock.now += compile_seconds
        for _ in range(total - options.get("done", 0)):
            clock.now += seconds
            task.advance()
    return stream.getvalue().splitlines()


def test_plain_lines_are_rate_limited_and_hold_no_control_codes():
    lines = run(total=100, seconds=1.0, interval=10.0)
    assert 10 <= len(lines) <= 12
    assert all("\x1b" not in line and "\r" not in line for line in lines)
    assert lines[-1] == "invert: 100/100 clips, in 1 min 40 s · 1 clips/s"


def test_short_work_says_nothing():
    assert run(total=3, seconds=0.1) == []


def test_time_left_counts_run_time_only_and_compile_time_is_shown_apart():
    lines = run(total=10, seconds=6.0, compile_seconds=90.0, interval=5.0)
    assert lines[0] == "invert: 0/10 clips, compiling"
    assert lines[1] == "invert: 0/10 clips, compile 1 min 30 s"
    assert lines[2] == "invert: 1/10 clips, 54 s left · 0.167 clips/s · compile 1 min 30 s"
    assert lines[-1] == "invert: 10/10 clips, in 1 min 00 s · 0.167 clips/s · compile 1 min 30 s"


def test_work_of_an_earlier_run_does_not_count_towards_the_rate():
    lines = run(total=10, seconds=4.0, done=8)
    assert lines[-1] == "invert: 10/10 clips, in 8.0 s · 0.25 clips/s"


def test_fields_are_shown():
    clock, stream = Clock(), io.StringIO()
    with progress("train", 2, unit="steps", stream=stream, clock=clock, interval=0.0) as task:
        clock.now = 3.0
        task.advance(loss=0.31234567)
    assert "loss 0.3123" in stream.getvalue()


def test_an_error_ends_the_lines_and_passes_through():
    clock, stream = Clock(), io.StringIO()

    def work():
        with progress("invert", 9, stream=stream, clock=clock) as task:
            clock.now = 20.0
            task.advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert stream.getvalue().splitlines()[-1].endswith("stopped")


def test_a_terminal_gets_a_bar_and_keeps_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    run(total=5, seconds=2.0, stream=stream)
    assert "\x1b[" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("invert: 5/5 clips, in 10 s · 0.5 clips/s")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert all("\x1b" not in line for line in run(total=5, seconds=2.0, stream=Terminal()))


def test_nothing_reaches_stdout(capsys):
    with progress("invert", 1, delay=0.0) as task:
        task.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "invert: 1/1 clips" in captured.err


def test_durations_are_written_as_people_write_them():
    texts = [duration(s) for s in (0.84, 9.97, 42, 59.7, 185, 7800)]
    assert texts == ["0.8 s", "10 s", "42 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
