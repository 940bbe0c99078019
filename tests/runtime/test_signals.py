import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from autoencoders.runtime.signals import Signals

LISTEN = """
import os, signal
from autoencoders.runtime.signals import Signals
signals = Signals()
signals.listen()
os.kill(os.getpid(), signal.SIGTERM)
print("recorded", int(signals.received), flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("not reached")
"""


def test_the_first_signal_is_recorded_and_the_second_ends_the_process():
    process = subprocess.run([sys.executable, "-c", LISTEN], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.stdout == f"recorded {int(signal.SIGTERM)}\n" and process.returncode == 128 + signal.SIGINT
    assert process.stderr == "finishing this step, then saving; press Ctrl-C again to quit now\n"


def test_a_thread_of_a_larger_program_may_train_and_leaves_its_signals_alone():
    before, errors = signal.getsignal(signal.SIGINT), []

    def listen():
        try:
            signals = Signals()
            signals.listen()
            signals.restore()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert not errors and signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name == "nt", reason="needs signals between processes")
def test_after_restore_ctrl_c_is_pythons_own_again():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signals = Signals()
        signals.listen()
        signals.restore()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
