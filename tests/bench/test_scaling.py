"""The model of several GPUs: its arithmetic by hand, and its counts those of the step."""

import pytest

from bench.common.rows import read_rows
from bench.scaling import BATCH, CLUSTERS, GPU, NETS, ROWS, Cluster, Counted, Link, counted_of, predictions
from fastarat.models.registry import build_model
from fastarat.training.step.gradients import in_buckets
from tests.simulated_gpu.step_table import rows as simulated_steps

# One second of matrix work, and a quarter of the step is its backward pass.
STEP = Counted(flops=1.0, bytes=0.0, kernels=0, backward=0.25, buckets=((100, 0.5), (100, 1.0)))
ONE_A_SECOND = GPU(flops_per_s=1.0, seconds_a_kernel=0.0)


def test_a_ring_moves_its_bytes_twice_but_for_its_own_share():
    assert Link(100.0, 0.5).all_reduce(100, 4) == pytest.approx(2 * 3 / 4 + 2 * 3 * 0.5)
    assert Link(100.0, 0.5).all_reduce(100, 1) == 0
    cluster = Cluster("", 4, Link(100.0, 0.0), Link(10.0, 0.0))
    assert cluster.all_reduce(100, 8) == pytest.approx(2 * 3 / 4 + 10 * 2 * 1 / 2)


@pytest.mark.parametrize(
    ("bytes_per_s", "exposed"),
    [
        (800.0, 0.125),  # an eighth of a second each: the first travels while the second is computed
        (400.0, 0.375),  # a quarter each: the second waits for the first
    ],
)
def test_what_travels_beside_the_backward_pass_is_not_exposed(bytes_per_s, exposed):
    cluster = Cluster("", 2, Link(bytes_per_s, 0.0), Link(1.0, 0.0))
    assert STEP.exposed(BATCH, 2, cluster, ONE_A_SECOND) == pytest.approx(exposed)
    assert STEP.exposed(BATCH, 2, cluster, ONE_A_SECOND, overlap=False) == pytest.approx(2 * 100 / bytes_per_s)
    assert STEP.exposed(BATCH, 1, cluster, ONE_A_SECOND) == 0


def test_the_committed_counts_are_of_these_nets_and_in_these_buckets():
    rows = list(read_rows(ROWS))
    assert [row["net"] for row in rows] == list(NETS)
    for row, name in zip(rows, ("resnet18", "wrn-34-10"), strict=True):
        sizes = [parameter.nbytes for parameter in build_model(name, 10, batch_norm="split").parameters()]
        buckets = row["buckets"]
        assert 0 <= len(buckets) - len(in_buckets(sizes)) <= 1  # the method has parameters too
        assert sum(size for size, _ in buckets) == pytest.approx(sum(sizes), rel=0.1)
        shares = [share for _, share in buckets]
        assert shares == sorted(shares) and shares[-1] == 1
        for predicted in predictions(counted_of(row), {1: 128, 8: 128, 64: 2}):
            assert 0 <= predicted.exposed <= predicted.exposed_after
            assert predicted.cluster in CLUSTERS and (predicted.number > 1 or predicted.exposed_after == 0)


def test_the_committed_kernels_are_the_nodes_that_the_simulated_gpu_counted():
    counted = simulated_steps()
    nodes = [counted[f"{name}:graph:triton"]["nodes"] for name in NETS.values()]
    assert [row["kernels"] for row in read_rows(ROWS)] == nodes
