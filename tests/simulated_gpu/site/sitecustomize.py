"""On PYTHONPATH of a process on the simulated GPU: what fastarat has to be told there, in one of two modes.

- SIMGPU_VALUES=1: numbers are true (`true_values.py`). What inductor compiles computes nothing here, so that a compiled
  step is traced as ever and then runs operator by operator (`aot_eager`).
- Else: launches are real and numbers mean nothing. What looks at numbers is content with any; what it asks of the
  device, it still asks.
"""

import importlib.abc
import importlib.util
import os
import sys
from dataclasses import replace
from typing import Any

HAS_VALUES = os.environ.get("SIMGPU_VALUES") == "1"


def _torch(module: Any) -> None:
    import true_values

    true_values.install(all_operators=HAS_VALUES)


def _operators(module: Any) -> None:
    import true_values

    make = module.torch_op

    def torch_op(*given: Any, **named: Any) -> Any:
        op = make(*given, **named)
        true_values.replace_one(op._qualname)
        return op

    module.torch_op = torch_op


def _compiled(module: Any) -> None:
    module.build_step.__kwdefaults__["backend"] = "aot_eager"


def _training(module: Any) -> None:
    def never(self: Any) -> None:
        int(self.first_bad_step)  # waits for the device as the check does

    module.Training.first_not_finite = never
    module.Training.epoch_metrics = lambda self: dict.fromkeys(self.parts.method.metrics, 0.0)


def _accuracies(module: Any) -> None:
    measure = module.accuracies

    def some(*given: Any, **named: Any) -> Any:
        measure(*given, **named)
        return (module.Accuracy((1, 1), (2, 2)),) * 2

    module.accuracies = some


def _ladder(module: Any) -> None:
    compare = module.compare

    def content(*given: Any) -> Any:
        try:
            return replace(compare(*given), problem=None)
        except ZeroDivisionError:  # of a loss that is 0
            return module.Verdict({}, 0.0, None)

    module.compare = content


def _doctor(module: Any) -> None:
    check = module._is_finite
    module._is_finite = lambda loss: check(loss) or True


def _subjects(module: Any) -> None:
    check = module.Subject.is_finite
    module.Subject.is_finite = lambda self: check(self) or True


def _kernels(module: Any) -> None:
    compare = module._compare
    module._compare = lambda *given: (None, compare(*given)[1])


def _checks(module: Any) -> None:
    module.check_images = lambda images: None
    module.check_logits = lambda logits, size, task: None


TRUE = {"fastarat_kernels.torch_op": _operators, "fastarat.training.compiling.compiled": _compiled}
COUNTED = {
    "fastarat.training.state": _training,
    "fastarat.evaluation.accuracies": _accuracies,
    "fastarat.evaluation.autoattack.checks": _checks,
    "fastarat.training.tuning.gate": _ladder,
    "fastarat.training.tuning.subject": _subjects,
    "fastarat.verification.doctor": _doctor,
    "bench.kernels.measure": _kernels,
}
AFTER = {"torch": _torch, **(TRUE if HAS_VALUES else COUNTED)}
"""what is done once a module has been imported"""


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of `AFTER` as others do, and has what is to be done after them done."""

    def __init__(self) -> None:
        self.searched: set[str] = set()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in AFTER or name in self.searched:
            return None
        self.searched.add(name)  # the search below comes here again
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searched.discard(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                AFTER[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
