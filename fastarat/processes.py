"""Whether this process is one of several; asked before torch is there."""

import os


def launched() -> bool:
    """Whether this process was started by the elastic launcher."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is alone or the first of several: the one that prints."""
    return not launched() or os.environ.get("RANK", "0") == "0"
