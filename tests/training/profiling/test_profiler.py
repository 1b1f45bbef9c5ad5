"""A recorded step is divided among its parts: every kernel is known, nothing counts twice, nothing is lost."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastarat_kernels import aot
from fastarat_kernels.launch import recording
from fastarat_kernels.registry import KERNELS

from fastarat.common.errors import UserError
from fastarat.common.tf32 import without_tf32
from fastarat.training.profiling.cost import Cost
from fastarat.training.profiling.parts import PARTS, Shapes, part_of_kernel
from fastarat.training.profiling.profiler import first_recorded
from fastarat.training.profiling.report import as_text, summary
from fastarat.training.profiling.roofs import Roofs, measure_roofs, named_format
from fastarat.training.profiling.trace import GAPS, Activity, activities, times_of

KNOWN = Shapes((3, 32, 32), frozenset({(64, 3, 3, 3), (64, 64, 3, 3), (64,)}))

ATEN = "void at::native::"
ELEMENTWISE = f"{ATEN}vectorized_elementwise_kernel<4, at::native::"
FOREACH = f"{ATEN}(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
NAMES = {
    "convolutions": [
        "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_stage3_warpsize2x2x1_g1",
        "sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64_cgasize1x1x1_execute_kernel",
        "sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize256x128x64_execute_segment_k",
        "sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4_kernel",
        "_ZN10cask_cudnn54sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x128_32x5_nhwc_align8>",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x4_tn_align8>",
        "void cudnn::cnn::wgrad2d_c1_k1_nhwc_kernel<float, float, float, 3, 3, 1, 0>",
        "void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>",
        "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>",
        "void cudnn::ops::nhwcToNchwKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>",
        "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true, (cudnnKernelDataType_t)2>",
        "void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float>",
        "void cask_cudnn__5x_cudnn::computeOffsetsKernel(cask__5x_cudnn::ComputeOffsetsParams)",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT",
        "nvjet_tst_64x8_64x16_1x4_h_bz_splitK_TNT",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>",
        "ampere_bf16_s16816gemm_bf16_64x64_ldg8_f2f_stages_64x6_nn",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, float, 128, 16, 4, 4, false>",
        "triton_tem_fused_convolution_12",
        "triton_poi_fused__to_copy_convolution_5",
    ],
    "batch-norm": [
        "triton_poi_fused__native_batch_norm_legit_functional_add_relu_3",
        "triton_red_fused__native_batch_norm_legit_functional_1",
        "triton_per_fused__native_batch_norm_legit_functional_copy__2",
        "triton_red_fused_native_batch_norm_backward_threshold_backward_21",
        "triton_poi_fused_convolution_backward_native_batch_norm_backward_threshold_backward_34",
        "triton_per_fused__foreach_add__foreach_mul__foreach_sub_native_batch_norm_backward_18",
        "triton_poi_fused_add_17",
        "triton_per_fused_mean_9",
        "graph_2_cpp_fused_add_threshold_backward_20",
        "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::Var, c10::BFloat16, float, 4>",
        "void at::native::batch_norm_transform_input_channels_last_kernel<c10::BFloat16, float, c10::BFloat16, 4>",
        "void at::native::batch_norm_backward_reduce_channels_last_kernel<4, c10::BFloat16, float, c10::BFloat16>",
        "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>",
        "void cudnn::bn_bw_1C11_singleread_specialized<float, 512, 1, 2, 14>",
        f"{ELEMENTWISE}(anonymous namespace)::threshold_kernel_impl<float>",
        f"{FOREACH}TensorListScalarListMetadata<float, 2>, TernaryOpScalarListFunctor<float, 2, 2, 0>, LerpFunctor>",
    ],
    "attack update": [
        "triton_poi_fused_add_clamp_maximum_minimum_mul_sign_sub_12",
        "triton_poi_fused___lshift_____rshift____to_copy_add_arange_bitwise_and_bitwise_xor_full_like_mul_0",
        ELEMENTWISE + "sign_kernel_cuda(at::TensorIteratorBase&)::{lambda",
        ELEMENTWISE + "maximum_kernel_cuda(at::TensorIteratorBase&)",
    ],
    "optimizer": [
        "triton_for_fused_7",
        "triton_poi_fused__foreach_add__foreach_mul__foreach_sub_40",
        f"{FOREACH}TensorListMetadata<3>, BinaryOpListAlphaFunctor<float, 3, 2, 2>, std::plus<float>, float>",
        f"{FOREACH}FusedOptimizerTensorListMetadata<3>, FusedSgdMathFunctor<float, 3>>",
    ],
    "loss and the rest": [
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
        "triton_per_fused__log_softmax__log_softmax_backward_data_nll_loss_backward_6",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 4, true, false>",
    ],
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NAMES.items() for name in names])
def test_a_kernel_is_known_by_its_name(part, name):
    assert part_of_kernel(name) == part


@pytest.mark.parametrize(
    "name",
    [
        f"{ELEMENTWISE}CUDAFunctor_add<float>>",
        "triton_poi_fused_clone_1",
    ],
)
def test_a_kernel_whose_name_does_not_say_is_not_guessed(name):
    assert part_of_kernel(name) is None


OURS = {
    "augment": "augmentation",
    "dual_batch_norm": "batch-norm",
    "pgd_step": "attack update",
    "pooled_features": "batch-norm",
    "sgd": "optimizer",
}


@pytest.mark.parametrize("module", KERNELS)
def test_every_triton_kernel_that_is_launched_is_known(module):
    names = set()
    for _, call in aot.configurations(module):
        with recording() as launches:
            call()
        names |= {launch.kernel.__name__ for launch in launches}
    assert names
    assert {name: part_of_kernel(name) for name in names} == dict.fromkeys(names, OURS[module])


def event(name: str, start: float, duration: float, category: str = "cpu_op", dims: Any = (), id: int = -1) -> Any:
    """An event of a trace; `dims` and `id` of an operation, and the `id` of what started a kernel."""
    args = {"External id": id, "Input Dims": dims}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "args": args}


def test_activities_at_the_same_time_count_once_and_the_rest_of_the_wall_time_is_gaps():
    found = [
        Activity("convolutions", "a", 0, 4000),
        Activity("batch-norm", "b", 2000, 5000),  # 2 ms of its own
        Activity("optimizer", "c", 3000, 4500),  # wholly inside of others
        Activity(None, "d", 7000, 8000),
    ]
    times = times_of(reversed(found), wall_ms=10)
    assert times.parts == {"convolutions": 4, "batch-norm": 1, "optimizer": 0, "loss and the rest": 1, GAPS: 4}
    assert times.unknown == {"d": 1}
    assert sum(times.parts.values()) == 10


def test_on_a_gpu_only_what_ran_there_counts_and_a_kernel_without_a_name_belongs_to_what_started_it():
    events = [
        event("aten::add", 0, 50, dims=[[8, 3, 32, 32], [8, 3, 32, 32], []], id=7),
        event("aten::add", 50, 50, dims=[[8, 64, 32, 32], [8, 64, 32, 32], []], id=8),
        event("elementwise_kernel", 10, 5, "kernel", id=7),
        event("elementwise_kernel", 20, 5, "kernel", id=8),
        event("elementwise_kernel", 30, 5, "kernel"),
        event("_apply_kernel", 40, 5, "kernel"),
        event("Memcpy DtoD (Device -> Device)", 50, 5, "gpu_memcpy"),
        {"ph": "M", "name": "process_name"},
    ]
    parts = [activity.part for activity in activities(events, KNOWN, gpu=True)]
    assert parts == ["attack update", "batch-norm", None, "batch-norm", "loss and the rest"]


def test_on_a_cpu_the_outermost_operations_count_and_what_runs_between_steps_loads_the_batch():
    events = [
        event("aten::index", 0, 10, dims=[[100, 32, 32, 3]]),
        event("training step", 20, 200, "user_annotation"),
        event("Torch-Compiled Region: 0/0", 21, 190),
        event("aten::conv2d", 30, 20, dims=[[8, 3, 32, 32], [64, 3, 3, 3]]),
        event("aten::clone", 35, 5, dims=[[8, 3, 32, 32]]),  # of the convolution
        event("autograd::engine::evaluate_function: ReluBackward0", 60, 20),
        event("aten::threshold_backward", 62, 5, dims=[[8, 64, 32, 32], [8, 64, 32, 32], []]),
        event("graph_0_cpp_fused_add_clamp_maximum_minimum_mul_sign_sub_12", 90, 5),
        event("aten::_foreach_add", 100, 9, dims=[[[64, 3, 3, 3], [64]], [[64, 3, 3, 3], [64]], []]),
        event("aten::_to_copy", 110, 9, dims=[[64, 3, 3, 3]]),
        event("aten::argmax", 120, 9, dims=[[8, 10]]),
    ]
    parts = [activity.part for activity in activities(events, KNOWN, gpu=False)]
    assert parts == [
        "augmentation",
        "convolutions",
        "batch-norm",
        "attack update",
        "optimizer",
        "loss and the rest",
        None,
    ]


def test_the_tables_shares_are_all_of_the_time_and_roofs_are_by_the_slower_of_bytes_and_flops():
    times = times_of([Activity("convolutions", "a", 0, 6000), Activity("batch-norm", "b", 6000, 8000)], wall_ms=10)
    costs = dict.fromkeys(PARTS, Cost())
    costs |= {"convolutions": Cost(1, 10**6, 3 * 10**9), "batch-norm": Cost(1, 10**6, 0)}
    table = summary(times, 2, costs, Roofs(flops_per_s=10**12, bytes_per_s=2 * 10**9))
    rows = {row["part"]: row for row in table["parts"]}
    assert list(rows) == [*PARTS, GAPS]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert (rows["convolutions"]["ms"], rows["convolutions"]["share"]) == (3, pytest.approx(0.6))
    assert rows["convolutions"]["roof_share"] == pytest.approx(1)  # 3 ms of matrix work; its bytes take 0.5 ms
    assert rows["batch-norm"]["roof_share"] == pytest.approx(0.5)
    assert rows[GAPS]["ms"] == 1 and rows[GAPS]["roof_share"] is None
    assert rows["optimizer"]["ms"] == 0 and rows["optimizer"]["roof_share"] is None


def training(step: int, per_epoch: int, epochs: int) -> Any:
    loader, config = SimpleNamespace(steps_per_epoch=per_epoch), SimpleNamespace(epochs=epochs)
    return SimpleNamespace(step=step, loader=loader, config=config)


@pytest.mark.parametrize(
    ("step", "per_epoch", "epochs", "num_steps", "begin"),
    [
        (0, 100, 1, 10, 3),  # after the first, which compiles, and two that are timed
        (0, 100, 1, 97, 3),
        (4, 100, 2, 96, 103),  # all in one epoch: the second, whose first step follows an evaluation
        (0, 4, 2, 1, 3),
        (40, 100, 1, 10, 43),  # a run that goes on
        (98, 100, 3, 10, 103),
    ],
)
def test_steps_are_recorded_after_a_warm_up_and_within_one_epoch(step, per_epoch, epochs, num_steps, begin):
    assert first_recorded(training(step, per_epoch, epochs), num_steps) == begin


@pytest.mark.parametrize(
    ("step", "per_epoch", "epochs", "num_steps", "says"),
    [
        (0, 100, 1, 98, "give --profile 97 or fewer"),
        (0, 100, 9, 98, "give --profile 97 or fewer"),
        (95, 100, 1, 3, "give --profile 2 or fewer"),
        (97, 100, 1, 1, "give more --epochs"),
        (0, 3, 9, 1, "give a smaller --batch"),
    ],
)
def test_more_steps_than_there_are_is_refused_with_how_many_there_are(step, per_epoch, epochs, num_steps, says):
    with pytest.raises(UserError, match=says):
        first_recorded(training(step, per_epoch, epochs), num_steps)


def test_measuring_roofs_leaves_the_random_state():
    before = torch.get_rng_state()
    roofs = measure_roofs(torch.device("cpu"), torch.float32)
    assert roofs.flops_per_s > 0 and roofs.bytes_per_s > 0
    assert torch.equal(torch.get_rng_state(), before)


def profile(unknown: dict[str, float]) -> dict[str, Any]:
    times = times_of([Activity("convolutions", "a", 0, 1000)], wall_ms=2)
    costs = dict.fromkeys(PARTS, Cost(1, 10**9, 0))
    table = summary(times._replace(unknown=unknown), 1, costs, Roofs(10**12, 10**11))
    facts = {"recipe": "r", "batch": 8, "attack_steps": 1, "dtype": "bfloat16", "kernels": "triton", "torch": "2"}
    facts |= {"compile": "graph", "device": "a GPU", "recorded_steps": 1, "ms_a_step": 2.0, "launches_a_step": 1.0}
    return {**facts, "ms_a_step_unrecorded": 1.9, **table}


@pytest.mark.parametrize(("rounds", "name"), [(True, "float32 (convolutions in TF32)"), (False, "float32")])
def test_a_profile_says_that_convolutions_of_float32_are_tf32(rounds, name):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with nullcontext() if rounds else without_tf32():
        assert named_format(torch.float32, gpu) == name and named_format(torch.float32, cpu) == "float32"
        assert named_format(torch.bfloat16, gpu) == "bfloat16"


def test_the_table_names_what_it_did_not_recognise_and_what_has_no_kernels():
    text = as_text(profile({"strange_kernel": 0.25}))
    assert "strange_kernel" in text and "their names being unknown" in text
    assert "No kernels of their own" in text and "optimizer" in text.partition("No kernels of their own")[2]
    assert "More than 100 % of a roof" in text
    assert "unknown" not in as_text(profile({}))
