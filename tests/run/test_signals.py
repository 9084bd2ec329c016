"""Ctrl-C and SIGTERM, once and twice."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cxr_ray.run import signals

SLOW_TO_END = """
import signal, time
from cxr_ray.run import signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background inherits as ignored
with signals.handled():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(signals.was_terminated(), flush=True)
        time.sleep(60)  # what ends in peace takes its time
"""


@pytest.mark.parametrize(
    ("first", "second", "terminated", "code"),
    [
        (signal.SIGINT, signal.SIGINT, b"False\n", 130),
        (signal.SIGTERM, signal.SIGTERM, b"True\n", 143),
        (signal.SIGTERM, signal.SIGINT, b"True\n", 130),
    ],
)
def test_the_second_signal_ends_a_process_that_is_slow_to_end(first, second, terminated, code):
    command = [sys.executable, "-c", SLOW_TO_END]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == terminated
        process.send_signal(second)
        assert process.wait(timeout=30) == code
        assert process.stderr.read() == signals.SECOND


AFTER_RAY = """
import ctypes, signal, time
from cxr_ray.run import signals
with signals.handled():
    ctypes.CDLL(None).signal(int(signal.SIGTERM), None)  # to the system, as Ray's end does
    signals.again()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(signals.was_terminated(), flush=True)
"""


def test_a_signal_that_ray_gave_back_to_the_system_is_taken_again():
    with subprocess.Popen([sys.executable, "-c", AFTER_RAY], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"True\n"
        assert process.wait(timeout=30) == 0


def test_handlers_are_given_back_also_after_another_took_them():
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        with signals.handled():
            signal.signal(signal.SIGTERM, lambda number, frame: None)  # as Ray does
            signals.listen()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        end()
    assert signals.was_terminated()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_is_not_the_main_one_changes_nothing():
    seen = []

    def look() -> None:
        with signals.handled():
            signals.listen()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_what_is_started_in_the_background_still_ignores_ctrl_c():
    code = SLOW_TO_END.replace("signal.default_int_handler", "signal.SIG_IGN")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"True\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
