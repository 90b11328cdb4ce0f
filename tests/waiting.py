"""Waiting for what other processes do."""
import time


def wait_for(condition, seconds, every=.02):
    """Return what `condition()` returns, once that is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain")
