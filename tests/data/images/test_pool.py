"""Work on many items by processes: what becomes of them when nobody waits for it any more."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastarat.data.images.pool import in_order
from tests.helpers.unmeasured import UNMEASURED

FOR_EVER_S = 3600.0


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_processes_in_mid_work():
    def items() -> Iterator[float]:
        yield from (FOR_EVER_S, FOR_EVER_S)
        while not any(process.is_alive() for process in multiprocessing.active_children()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(time.sleep, items(), 8, processes=2, batch=1))
    assert multiprocessing.active_children() == before


@pytest.mark.timeout(60)
def test_a_caller_that_wants_no_more_waits_for_nothing():
    before = multiprocessing.active_children()
    results = in_order(time.sleep, [0.0, FOR_EVER_S, FOR_EVER_S, FOR_EVER_S, *[0.0] * 4], 8, processes=2, batch=1)
    assert next(results) is None
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == before


SCRIPT = """
import multiprocessing, time
from fastarat.data.images.pool import in_order

def items():
    yield from (3600.0, 3600.0)
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print("working", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    list(in_order(time.sleep, items(), 8, processes=2, batch=1))
"""


@pytest.mark.timeout(60)
def test_a_parent_that_is_killed_leaves_no_process_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[3]
    environment = {**os.environ, **UNMEASURED, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == b"working\n"
    parent.send_signal(signal.SIGKILL)
    parent.communicate()  # every process has that pipe: it is closed when the last one ends
