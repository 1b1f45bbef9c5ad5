"""A new one of a kind is a file (a kernel: a folder) and a line in the table: a toy one is used as every other is."""

import json
from importlib import import_module
from textwrap import dedent

import pytest
import torch

TOY_KERNEL = {
    "toy_kernels/double/__init__.py": """
        import torch

        from fastarat_kernels.torch_op import torch_op
        from toy_kernels.double import twin

        double = torch_op(twin.double, torch.empty_like)
    """,
    "toy_kernels/double/twin.py": """
        from torch import Tensor


        def double(x: Tensor) -> Tensor:
            return 2 * x
    """,
    "toy_kernels/double/triton.py": """
        from functools import partial

        import torch
        import triton
        import triton.language as tl
        from fastarat_kernels.launch import launch


        @triton.jit
        def _double(x, out, n, BLOCK: tl.constexpr):
            i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(out + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


        def double(x):
            out = torch.empty_like(x)
            launch(_double, (triton.cdiv(x.numel(), 256),), x, out, x.numel(), BLOCK=256)
            return out


        def configurations():
            yield "thousand", partial(double, torch.empty(1000, device="meta"))
    """,
    # Its benchmark is a file more, which is found by its name.
    "cases/double.py": """
        from functools import partial

        from bench.kernels.cases import Case, named, variants_of
        from toy_kernels.double import double, twin


        def cases(scale, dtype):
            def inputs(draw):
                return {"x": draw.normal(scale.batch).to(dtype)}

            plain, num_bytes = partial(named, twin.double), {"forward": 2 * scale.batch * dtype.itemsize}
            ours = partial(named, double)
            yield Case("double", "a batch", (scale.batch,), dtype, num_bytes, inputs, plain, variants_of(plain, ours))
    """,
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the files of a package by their paths; a test may import what is in the folder, which it is given."""

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(dedent(text))
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return write


def test_a_toy_kernel_is_compiled_ahead_and_measured_by_its_name(write, monkeypatch, capsys):
    pytest.importorskip("triton")
    from fastarat_kernels import aot
    from fastarat_kernels.launch import recording
    from fastarat_kernels.registry import KERNELS

    from bench import kernels
    from bench.kernels.__main__ import main

    folder = write(TOY_KERNEL)
    monkeypatch.setitem(KERNELS, "double", "toy_kernels.double")
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(folder / "cases")])

    ((label, start),) = aot.configurations("double")
    with recording() as launches:
        start()
    assert label == "thousand" and [launch.kernel.__name__ for launch in launches] == ["_double"]
    with pytest.raises(SystemExit):
        aot.main(["--kernels", "dubble"])
    assert "unknown kernel 'dubble'; available: dual_batch_norm" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("double")

    assert main(["--device", "cpu", "--smoke", "--kernels", "double", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["variant"] for row in rows} == {"eager", "twin"}
    assert all(row["kernel"] == "double" and row["correct"] and row["ms_p50"] > 0 for row in rows)

    double = import_module("toy_kernels.double.triton").double
    x = torch.randn(1000, device="cuda" if torch.cuda.is_available() else "cpu")
    assert torch.equal(double(x), 2 * x)
