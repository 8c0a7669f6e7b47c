"""Training steps on pretended GPUs: devices, host-device synchronizations, kernels and precision."""

import pytest

S_MODEL = "configs/dfine/dfine_dinov3_s_coco.yml"
DISTILLED = "configs/rtv4/rtv4_hgnetv2_s_coco.yml"

IN_FLOAT32 = (
    "src/ops/boxes.py",
    "src/ops/deformable.py",
    "src/zoo/dfine/dfine_criterion.py",
    "src/zoo/dfine/distribution.py",
    "src/zoo/dfine/edge_terms.py",
    "src/zoo/dfine/losses.py",
    "src/zoo/dfine/matcher.py",
    "src/zoo/dfine/normalizers.py",
    "src/zoo/dfine/soft_terms.py",
    "src/zoo/dfine/supervision.py",
)
"""Files whose arithmetic is in float32 always."""

SYNCHRONIZING = {"src/runtime/distributed.py", "src/zoo/dfine/matcher.py"}
"""Files that synchronize host and device in a step: the matching, and the decision to update the weights."""

MOST_KERNELS = 3_700
MOST_ADDED_BY_RANKS = 600


@pytest.fixture(scope="module")
def bf16(gpu):
    """Report of a bf16 step of the S model."""
    return report_of(gpu)


@pytest.fixture(scope="module")
def fp16(gpu):
    """Report of an fp16 step of the S model."""
    return report_of(gpu, capability=75)


@pytest.fixture(scope="module")
def two_ranks(gpu):
    """Report of a bf16 step of the S model on one of two ranks, with SyncBatchNorm."""
    return report_of(gpu, ranks=2, devices=2)


@pytest.fixture(scope="module")
def distilled(gpu):
    """Report of a bf16 step with a teacher."""
    return report_of(gpu, config=DISTILLED)


def report_of(gpu, config=S_MODEL, **settings):
    results = gpu.call("count", config=config, **settings)
    for result in results:
        assert result.code == 0, result.output
    return results[0].value


def synchronizations(report) -> int:
    return sum(times for _, _, times in report["synchronizations"])


def kernels(report) -> int:
    return sum(report["kernels"].values())


def half_precision(report, files) -> list[str]:
    """Return operations whose result is in half precision, conversions aside."""
    found = []
    for place, operation, _ in report["half"]:
        if place.startswith(files) and operation != "aten::_to_copy":
            found.append(f"{operation} at {place}")
    return found


def test_losses_of_float32_steps_are_those_of_the_cpu(gpu):
    (result,) = gpu.call("compare_losses")
    assert result.code == 0, result.output
    assert result.report["launches"] == 0
    on_gpu, on_cpu = result.value["cuda"], result.value["cpu"]
    for here, there in zip(on_gpu, on_cpu, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-4)


def test_every_operation_of_a_step_is_computed(bf16, fp16):
    assert bf16["launches"] == fp16["launches"] == 0


def test_the_vit_runs_in_bf16_where_it_can_and_never_in_fp16(bf16, fp16):
    files = ("src/nn/backbone/dinov3_backbone.py",)
    assert half_precision(bf16, files)
    assert not half_precision(fp16, files)
    assert half_precision(fp16, ("src/zoo/dfine/decoder_layers.py",))


def test_boxes_and_losses_are_computed_in_float32(bf16, fp16):
    assert not half_precision(bf16, IN_FLOAT32)
    assert not half_precision(fp16, IN_FLOAT32)


def test_a_step_synchronizes_host_and_device_at_two_known_places(bf16, fp16):
    for report, most in ((bf16, 2), (fp16, 3)):
        places = report["synchronizations"]
        files = {place.partition(":")[0] for place, _, _ in places}
        assert files <= SYNCHRONIZING
        assert synchronizations(report) <= most


@pytest.mark.slow
def test_distillation_adds_no_synchronization(distilled):
    files = set()
    for place, _, _ in distilled["synchronizations"]:
        files.add(place.partition(":")[0])
    assert files <= SYNCHRONIZING
    assert synchronizations(distilled) <= 2


@pytest.mark.slow
def test_the_distance_to_the_teacher_is_computed_in_float32(distilled):
    assert not half_precision(distilled, ("src/nn/distillation.py",))
    teacher = ("src/nn/backbone/dinov3_backbone.py",)
    assert half_precision(distilled, teacher)


def test_a_step_needs_few_kernels(bf16):
    assert kernels(bf16) <= MOST_KERNELS


def test_nothing_synchronizes_in_each_layer_on_one_rank(bf16, fp16):
    for report in (bf16, fp16):
        assert max(times for *_, times in report["synchronizations"]) == 1


@pytest.mark.slow
def test_nothing_synchronizes_in_each_layer_on_two_ranks(bf16, two_ranks):
    assert synchronizations(two_ranks) <= synchronizations(bf16)


@pytest.mark.slow
def test_several_ranks_add_few_kernels(bf16, two_ranks):
    assert kernels(two_ranks) - kernels(bf16) <= MOST_ADDED_BY_RANKS


# ---- fp16 ----


def weights_after(gpu, **settings) -> dict:
    (result,) = gpu.call("overflow", capability=75, **settings)
    assert result.code == 0, result.output
    return result.value


def test_fp16_steps_with_finite_values_update_the_weights(gpu):
    assert weights_after(gpu, steps=2)["weights"] != [1, 1, 1]


def test_an_infinite_loss_with_a_finite_gradient_does_not_move_the_weights(gpu):
    found = weights_after(gpu, steps=1, loss="inf")
    assert found == {"weights": [1, 1, 1], "error": ""}


def test_endless_overflow_of_the_gradient_ends_the_run(gpu):
    found = weights_after(gpu, steps=100, gradient="inf")
    assert found["weights"] == [1, 1, 1]
    assert "diverged" in found["error"]
