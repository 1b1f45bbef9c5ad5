"""Files that are written in the background, from a copy, so that no step waits for the disk."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class Writer:
    """Writes one state at a time. What goes wrong is raised at the next call, whichever that is."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the last state is not on disk yet. Raises what went wrong with it."""
        if self._writing is not None and not self._writing.done():
            return True
        self.wait()
        return False

    def write(self, save: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
        """Let `save` write `state` as it is now, after the one before."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, "fastarat-writer")
        self._writing = self._thread.submit(save, copied(state))

    def wait(self) -> None:
        """Wait until all is on disk. Raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def copied(value: Any) -> Any:
    """A state of nested dicts and lists, its tensors copied to the CPU, that does not change with the training."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        new = copy.copy(value)  # a net's is no plain dict
        new.update({name: copied(inner) for name, inner in value.items()})
        return new
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value
