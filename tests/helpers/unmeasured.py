"""The environment of a process that a test's signal interrupts wherever it happens to be.

An exception that a signal's handler raises may come in the midst of coverage's own code, between taking its lock and
giving it back: the process would then wait for the lock for ever. So such a process runs without coverage.
"""

UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
