"""Signals are notes for the loop; the second request to stop is obeyed at once; traces are taken when asked."""

import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from lpm_jax.training.profiler import STEPS, Profiler
from lpm_jax.training.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_noted(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with Signals() as signals:
        assert signals.stop == "" and not signals.trace_asked()
        os.kill(os.getpid(), number)
        assert signals.stop == number.name and not signals.trace_asked()
    assert before == {n: signal.getsignal(n) for n in before}


def test_a_trace_is_asked_for_once():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [signals.trace_asked(), signals.trace_asked()] == [True, False] and signals.stop == ""


def test_outside_the_main_thread_handlers_stay():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


SCRIPT = """
import os, signal, time
from lpm_jax.training import signals
signals.ECHO = 0.2
with signals.Signals() as noted:
    os.kill(os.getpid(), signal.{first})
    os.kill(os.getpid(), signal.{first})  # the same request by another way
    print("noted", noted.stop, flush=True)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.{second})
    print("not reached", flush=True)
"""


@pytest.mark.parametrize("first, second", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_the_second_request_is_obeyed_at_once(first, second):
    code = SCRIPT.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -getattr(signal, second) and done.stdout == f"noted {first}\n"


def test_traces_hold_three_steps(tmp_path):
    said = []
    profiler = Profiler(tmp_path / "profile", 2, said.append)
    step, state = jax.jit(lambda x: x + 1), jnp.zeros(3)
    for at in range(1, 12):
        profiler.before(at, at in (7, 8, 11), state)
        state = step(state)
        profiler.after(at, state)
    profiler.close()  # the run ends within a trace
    folders = [tmp_path / "profile" / f"{at:06d}" for at in (2, 7, 11)]
    assert said == [
        f"steps 2 to {1 + STEPS} traced: xprof --logdir {folders[0]}",
        f"steps 7 to {6 + STEPS} traced: xprof --logdir {folders[1]}",  # asked again within it: once
        f"steps 11 to 11 traced: xprof --logdir {folders[2]}",
    ]
    for folder in folders:
        assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
