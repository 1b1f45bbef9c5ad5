"""Write a model for people without fastarat: weights, a `model.py` that needs torch and no more (but for a net
of torchvision or timm), a model card, ONNX."""

import html
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_atomically, write_text
from fastarat.config.model import FOREIGN
from fastarat.models.foreign import foreign_net
from fastarat.models.registry import architecture
from fastarat.models.split_batch_norm import PlainBatchNorm2d
from fastarat.runs.weights import Description, save_weights

MARKUP = re.compile(r"[\\`*_{}\[\]#|~!()$:@]|(?<=www)\.")

MODEL_PY = '''"""A robust image classifier. Needs {packages}: `model = load("model.safetensors")`.

Input: float32 [N, {channels}, {height}, {width}], pixels in [0, 1], no other normalisation. Output: logits
[N, {num_classes}].
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

{imports}

CLASSES = {classes!r}
ARGUMENTS = {arguments!r}
DTYPES = {{"F32": torch.float32, "I64": torch.int64}}


{parts}def read_safetensors(path):
    """Tensors by name: eight bytes of header length, a JSON header, the raw bytes."""
    data = bytearray(Path(path).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {{}}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = data[8 + length + first : 8 + length + last]
        tensors[name] = torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def load(path=Path(__file__).with_name("model.safetensors")):
    """The net with its weights, in eval mode."""
    model = {call}
    model.load_state_dict(read_safetensors(path))
    return model.eval()
'''

CARD = """# {model}, {method}, {data}

An image classifier trained by adversarial training with fastarat.

| | |
| --- | --- |
| net | {model}, {parameters:,} parameters |
| method | {method}, epoch {epoch}, weights averaged: {averaging} |
| batch-norm branch | {branch} |
| data | {data}: {num_classes} classes, {channels}x{height}x{width} |
| threat model of the training | {norm}, eps {eps_255:g}/255 |
| input | float32 [N, {channels}, {height}, {width}], pixels in [0, 1] (stored values / {max_value}), not normalised |
| images | {shown} |

```python
from model import CLASSES, load

logits = load()(images)
```

Classes: {class_names}.

Measure its robustness before you rely on it (`fastarat eval DIRECTORY`); it holds for this threat model
only, and says nothing of other changes to an image.
"""


def export(model: nn.Module, description: Description, out: Path | str, onnx: bool = False) -> list[Path]:
    """Write `model` (a plain net) into the directory `out`; returns the files.

    Raises `UserError` if `out` has such a file already, cannot be made, or ONNX is asked for and not installed;
    `WorkError` if the disk is full: nothing is left of it then.
    """
    if onnx:
        _require_onnx()
    # Whoever gets it learns the data set's name, and not where it lay.
    description = replace(description, data=Path(description.data).name)
    model = model.float()
    names = ["model.safetensors", "model.py", "README.md"] + ["model.onnx"] * onnx
    with _new_files(Path(out), names) as files:
        save_weights(files[0], model, description)
        write_text(files[1], model_py(description))
        write_text(files[2], card(model, description))
        if onnx:
            write_onnx(files[3], model, description)
    return files


@contextmanager
def _new_files(out: Path, names: list[str]) -> Iterator[list[Path]]:
    """Places in the directory `out` for files that are not there yet; all of them come to be, or none."""
    files, is_new = [out / name for name in names], not out.exists()
    there = [path.name for path in files if os.path.lexists(path)]
    if there:
        raise UserError(f"{out} holds a {there[0]} already: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}; give another --out") from error
    try:
        yield files
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def model_py(description: Description) -> str:
    """A Python file with the net and its loader: with the very classes that fastarat trains, or a call of the package
    whose net it is."""
    height, width = description.image_size
    foreign = FOREIGN.fullmatch(description.model)
    return MODEL_PY.format(
        **(_call_of_package if foreign else _own_classes)(description),
        channels=description.in_channels,
        height=height,
        width=width,
        num_classes=description.num_classes,
        classes=description.classes,
    )


def _own_classes(description: Description) -> dict[str, Any]:
    cls, arguments = architecture(description.model, description.num_classes, description.in_channels)
    return {
        "packages": "torch only",
        "imports": "import torch\nfrom torch import Tensor, nn",
        "arguments": arguments,
        "parts": "".join(f"{inspect.getsource(part)}\n\n" for part in (PlainBatchNorm2d, *_defined_beside(cls))),
        "call": f"{cls.__name__}(norm=PlainBatchNorm2d, **ARGUMENTS)",
    }


def _defined_beside(cls: type) -> Iterator[Any]:
    """The classes and functions of the file that defines `cls`, in its order."""
    for value in vars(sys.modules[cls.__module__]).values():
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == cls.__module__:
            yield value


def _call_of_package(description: Description) -> dict[str, Any]:
    library, function, net, arguments = foreign_net(description.model, description.num_classes, description.in_channels)
    return {
        "packages": f"torch and {library.partition('.')[0]}",
        "imports": f"import {library}\nimport torch",
        "arguments": arguments,
        "parts": "",
        "call": f"{library}.{function}({net!r}, **ARGUMENTS)",
    }


def card(model: nn.Module, description: Description) -> str:
    """The model card."""
    height, width = description.image_size
    values = {name: getattr(description, name) for name in description.__dataclass_fields__}
    texts = {name: in_markdown(value) for name, value in values.items() if isinstance(value, str)}
    return CARD.format(
        **{**values, **texts},
        channels=description.in_channels,
        height=height,
        width=width,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        class_names=", ".join(map(in_markdown, description.classes)),
        shown=_shown(description),
    )


def in_markdown(text: str) -> str:
    """A text of a file as itself in a Markdown page: no markup, link or HTML, and no line of its own."""
    visible = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return MARKUP.sub(r"\\\g<0>", html.escape(visible, quote=False))


def _shown(description: Description) -> str:
    share = description.central_share
    if share is None:
        return "as they are stored"
    height, width = description.image_size
    return f"the middle of each, {share:g} of its shorter side, resized to {width}x{height}"


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("--onnx needs the onnx extra: pip install 'fastarat[onnx]'") from error


def write_onnx(path: Path, model: nn.Module, description: Description) -> None:
    """The net as ONNX: input `images`, output `logits`, any batch size. Raises `WorkError` if it cannot be exported."""
    example = torch.rand(2, *description.image_shape)
    dynamic = ({0: torch.export.Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of optional packages that nothing here needs
    try:
        with warnings.catch_warnings():  # the exporter's own deprecations are none of the user's business
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise WorkError(f"torch could not export the net to ONNX: {str(error).splitlines()[0]}") from error
    assert program is not None
    _forget_origins(program.model)
    write_atomically(path, lambda temporary: program.save(temporary))


def _forget_origins(model: Any) -> None:
    """Leave out where in this machine's files each operation came from."""
    graphs = [model.graph, *model.functions.values()]
    for part in (model, *graphs, *(node for graph in graphs for node in graph.all_nodes())):
        part.metadata_props.clear()
        part.doc_string = None
        for value in getattr(part, "outputs", ()):
            value.metadata_props.clear()
