"""--compile and --kernels on the command line: what they refuse, and that a compiled run is the eager run."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.command_line import (
    ONE_EPOCH,
    TINY,
    assert_same,
    finish,
    metrics,
    newest,
    record,
    start,
    state_of,
)

EVERY_STEP = ("--checkpoint.every-s", "0", "--checkpoint.keep", "20")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--compile", "graph"), ("--compile graph", "CUDA graph", "compile or eager")),
        (("--kernels", "triton"), ("--kernels triton", "need a GPU", "--kernels pytorch")),
        (("--compile", "fast"), ("--compile", "eager", "graph")),
        (("--kernels", "cuda"), ("--kernels", "pytorch", "triton")),
    ],
    ids=" ".join,
)
def test_what_this_machine_cannot_do_is_refused_before_anything_starts(fastarat, tmp_path, args, words):
    result = fastarat("train", *ONE_EPOCH, *args, "--device", "cpu", "--out", "run")
    assert result.code == 2 and all(word in result.error for word in words), result.error
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_refused_with_what_to_install(fastarat, tmp_path, monkeypatch):
    for name in ("PATH", "CXX"):
        monkeypatch.setenv(name, "")
    result = fastarat("train", *ONE_EPOCH, "--compile", "compile", "--out", tmp_path / "run")
    assert result.code == 2 and "C++ compiler" in result.error and "--compile eager" in result.error
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_written_is_refused(fastarat, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    result = fastarat("train", *ONE_EPOCH, "--compile", "compile", "--out", tmp_path / "run")
    assert result.code == 2 and "TORCHINDUCTOR_CACHE_DIR" in result.error and "--compile eager" in result.error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "run_of",
    [("digits-arat",), ("digits-at", "--procs", "2", "--sync-bn")],  # AT compiles in half the time
    ids=["one process", "two processes"],
)
def test_a_compiled_run_is_the_eager_run_and_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, run_of):
    # float64, so that both stay together for a whole run; with an average beside the step.
    settings = (*run_of, *TINY, "--dtype", "fp64", "--averaging.kind", "ema", "--averaging.start-epoch", "1")
    settings = (*settings, *EVERY_STEP)
    eager = finish(start("train", *settings, "--out", tmp_path / "eager"))
    assert eager.code == 0, eager.err
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = tmp_path / "compiled"
    compiled = finish(start("train", *settings, "--compile", "compile", "--out", run, environment=cache), 900)
    assert compiled.code == 0, compiled.err
    assert "compiling the step" in compiled.err and "compiled for images of" in compiled.err
    for ours, theirs in zip(metrics(run), metrics(tmp_path / "eager"), strict=True):
        # metrics.jsonl holds six decimals.
        assert ours["train"] == pytest.approx(theirs["train"], rel=1e-5, abs=2e-6)
    assert metrics(run)[-1]["evaluation"] == metrics(tmp_path / "eager")[-1]["evaluation"]
    assert_it_goes_on_to_the_same_bits(run, cache)


@pytest.mark.slow
def test_a_compiled_run_in_bf16_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    """As a CPU that computes bf16 natively trains where nothing else is asked for."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    settings = ("digits-at", *TINY, "--dtype", "bf16", "--compile", "compile", *EVERY_STEP)
    compiled = finish(start("train", *settings, "--out", tmp_path / "run", environment=cache), 900)
    assert compiled.code == 0, compiled.err
    assert_it_goes_on_to_the_same_bits(tmp_path / "run", cache)
    assert {session["dtype"] for session in record(tmp_path / "run")["sessions"]} == {"bf16"}


def assert_it_goes_on_to_the_same_bits(run: Path, cache: dict[str, str]) -> None:
    """From its fifth step, as after a kill there, by what is compiled already."""
    built = set(Path(cache["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.so"))
    assert built
    finished, deployed = state_of(newest(run)), load_file(run / "model.safetensors")
    for path in (run / "checkpoints").iterdir():
        if int(path.stem.removeprefix("step-")) > 5:
            path.unlink()
    again = finish(start("train", "--resume", run, environment=cache), 900)
    assert again.code == 0 and "step 5" in again.err, again.err
    assert_same(load_file(run / "model.safetensors"), deployed, "model.safetensors")
    for part in ("model", "method", "momenta"):
        assert_same(state_of(newest(run))[part], finished[part], part)
    assert set(Path(cache["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.so")) == built, "it was compiled anew"
    assert [session["compile"] for session in record(run)["sessions"]] == ["compile", "compile"]


def failing(error: Exception):
    def build(*_, **__):
        def step(batch):
            raise error

        return step

    return build


def test_a_kernel_that_refuses_its_input_or_does_not_load_is_one_line(fastarat, monkeypatch):
    from fastarat_kernels.launch import UnsupportedInput
    from triton.runtime.errors import OutOfResources

    for error in (UnsupportedInput("x is torch.int8"), OutOfResources(300000, 232448, "shared memory")):
        monkeypatch.setattr("fastarat.training.build.build_step", failing(error))
        result = fastarat("train", *ONE_EPOCH, "--out", f"run-{type(error).__name__}")
        assert result.code == 1 and "--kernels pytorch" in result.error, result.error
