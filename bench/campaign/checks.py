"""The tests that a campaign runs on a GPU."""

from bench.common.processes import ROOT

TESTS = ROOT / "tests"
KERNEL_TESTS = {
    "augment": ["test_augment_triton.py::test_the_kernel_gives_the_twin_s_batch_for_images_of_several_blocks"],
    "dual_batch_norm": [
        "test_dual_batch_norm.py::test_the_forward_kernel_gives_what_the_twin_gives[bfloat16]",
        "test_dual_batch_norm.py::test_the_backward_kernels_give_what_the_twins_give[bfloat16]",
        "test_dual_batch_norm.py::test_they_add_another_gradient_as_the_twins_do[bfloat16]",
    ],
    "pgd_step": [
        "test_pgd_step.py::test_the_kernel_makes_the_twin_s_step_in_half_precision[dtype0-linf]",
        "test_pgd_step.py::test_the_kernel_starts_where_the_twin_does_in_half_precision[dtype0-linf]",
    ],
    "philox": ["test_philox_triton.py::test_words_and_uniforms_are_the_twin_s_bit_for_bit[30064771077]"],
    "pooled_features": [
        "test_pooled_features.py::test_the_kernel_gives_the_features_of_the_twin[1x130x3x23-bfloat16]",
        "test_pooled_features.py::test_the_kernel_gives_the_gradient_of_the_twin[1x130x3x23-bfloat16]",
    ],
    "running_statistics": [
        "test_running_statistics.py::test_every_entry_moves_by_its_own_momentum_towards_its_own_scaled_batch"
    ],
}
"""one case of each kernel, which begin the correctness of a GPU: all cases would compile for longer than it may take"""

_STEP_TESTS = TESTS / "gpu" / "test_captured_step.py"
CAPTURED_STEP = f"{_STEP_TESTS}::test_the_captured_step_tracks_the_eager_one_over_200_replays"


def gpu_tests() -> list[str]:
    """The files with tests that are marked as a GPU's, and the folders whose conftest.py marks them."""
    marked = [path for path in TESTS.rglob("*.py") if "mark.gpu" in path.read_text()]
    return sorted({str(path.parent if path.name == "conftest.py" else path) for path in marked})


def kernel_tests() -> list[str]:
    """`KERNEL_TESTS` as pytest is given them."""
    return [f"{TESTS / 'kernels'}/{test}" for tests in KERNEL_TESTS.values() for test in tests]
