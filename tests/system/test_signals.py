"""Signals as a process gets them: each test sends real ones, to a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from siamdetr.system.signals import Interrupted, SignalWatch

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
SENDING = """
import os, signal, time
from siamdetr.system.signals import Interrupted, SignalWatch

def send(signum):
    os.kill(os.getpid(), signum)
    time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
"""


def program(text: str) -> subprocess.CompletedProcess[str]:
    """Run a program that can `send` itself signals."""
    return subprocess.run([sys.executable, "-c", SENDING + text], capture_output=True, text=True, timeout=60)


def test_a_signal_sets_a_flag_and_gives_the_exit_code() -> None:
    done = program("""
with SignalWatch() as watch:
    watch.raise_if_received()
    send(signal.SIGTERM)
    assert watch.received == signal.SIGTERM
    try:
        watch.raise_if_received()
    except Interrupted as error:
        assert str(error) == "stopped by SIGTERM"
        stopped = error
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
raise stopped
""")
    assert (done.returncode, done.stdout) == (143, ""), done.stderr
    assert done.stderr.splitlines() == ["SIGTERM: finishing the step and saving; once more to leave at once"]


def test_a_second_signal_leaves_at_once() -> None:
    done = program("""
with SignalWatch():
    send(signal.SIGINT)
    send(signal.SIGINT)
    time.sleep(50)
""")
    assert done.returncode == 130, done.stderr


def test_a_watch_inside_another_has_its_flag() -> None:
    done = program("""
with SignalWatch() as outer:
    with SignalWatch() as inner:
        send(signal.SIGTERM)
        assert inner.received == outer.received == signal.SIGTERM
    with SignalWatch() as later:  # what came is not forgotten between two pieces of work
        assert later.received == signal.SIGTERM
with SignalWatch() as other:
    assert other.received is None
""")
    assert done.returncode == 0, done.stderr


def test_a_signal_on_its_way_when_the_work_was_stopped_is_not_a_second_one() -> None:
    done = program("""
with SignalWatch() as watch:
    watch.stop(signal.SIGINT)
    watch.stop(signal.SIGTERM)
    assert watch.received == signal.SIGINT  # the first
    send(signal.SIGTERM)
""")
    assert done.returncode == 0, done.stderr


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    done = program("""
signal.signal(signal.SIGINT, signal.SIG_IGN)
with SignalWatch() as watch:
    watch.install()
    send(signal.SIGINT)
    assert watch.received is None
    send(signal.SIGTERM)
    assert watch.received == signal.SIGTERM
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
""")
    assert done.returncode == 0, done.stderr


def test_a_watch_in_a_thread_has_the_flag_of_the_one_around_it() -> None:
    found: list[int | None] = []

    def look() -> None:
        with SignalWatch() as watch:
            found.append(watch.received)

    with SignalWatch() as outer:
        for _ in range(2):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            outer.stop(15)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            outer.raise_if_received()
    assert found == [None, 15]
