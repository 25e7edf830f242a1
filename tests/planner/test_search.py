"""The search: what divides, what fits, what each axis of the mesh costs, and what is compiled."""

import math

import jax
import pytest

from configs import dit_500m, dit_factorised_500m, fit_3b9, fit_3b9_upsampler, unet_85m
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import search, topology
from tests import tiny

V5P = chips.tpu("TPU v5p")
N = 3_914_472_496  # parameters of FIT 3.9B


def sizes(data=1, fsdp=1, group=1, tensor=1):
    return dict(data=data, fsdp=fsdp, group=group, tensor=tensor)


def exchanges(config, mesh, accumulate=1, width=2):
    how = dict(num_parameters=N, sizes=mesh, accumulate=accumulate, width=width)
    return search.exchanges(config, V5P, **how)


def closed_form(accumulate, video, dtype="bfloat16"):
    """Of FIT 3.9B over fsdp=32."""
    how = dict(num_parameters=N, sizes=sizes(fsdp=32), accumulate=accumulate, dtype=dtype)
    return search.closed_form(fit_3b9.get_config(), V5P, per_video=video, **how)


def test_every_layout_takes_all_chips_and_deals_the_batch_evenly():
    config = fit_3b9.get_config()
    layouts = list(search.layouts(config, 32))
    assert len(layouts) > 50
    for mesh, accumulate in layouts:
        assert math.prod(mesh.values()) == 32 and mesh["group"] == 1
        assert config.training.batch_size % (mesh["data"] * mesh["fsdp"] * accumulate) == 0


def test_a_device_may_take_more_videos_at_a_time_than_there_are_chips():
    config = fit_3b9.get_config()
    assert {k for _, k in search.layouts(config, 1)} == {2**i for i in range(13)}
    config.training.batch_size = 320
    taken = {40 // k for mesh, k in search.layouts(config, 16) if mesh["fsdp"] == 8}
    assert taken == {1, 2, 4, 8}


def test_a_unet_is_not_split_over_tensor_and_evaluates_once():
    config = unet_85m.get_config()
    assert {mesh["tensor"] for mesh, _ in search.layouts(config, 16)} == {1}
    sent = exchanges(config, sizes(fsdp=32))
    assert sent.pop("fsdp") == pytest.approx((2 + 1) * 2 * N * 31 / 32 / 180e9)
    assert set(sent.values()) == {0.0}


@pytest.mark.parametrize("name", ["fit", "dit"])
def test_groups_are_split_where_patches_are_many(name):
    config = fit_3b9_upsampler.get_config()
    config.model.name = name
    assert {mesh["group"] for mesh, _ in search.layouts(config, 16)} == {1, 2, 4, 8, 16}


@pytest.mark.parametrize(
    ("module", "blocks", "summed", "exchanged"),
    [(dit_500m, 30, 3, 4), (dit_factorised_500m, 24, 4, 2)],
)
def test_a_dit_sums_each_layer_and_exchanges_tokens_for_heads_or_places(
    module, blocks, summed, exchanged
):
    """Joint attention exchanges queries, keys, values and results; time, tokens there and back."""
    sent = exchanges(module.get_config(), sizes(group=4, tensor=8))
    tokens = 2 * 4096 * 2 * blocks * 2560 * 1024 / 4  # passes x videos x bytes x numbers
    assert sent["tensor"] == pytest.approx(2 * summed * tokens * 7 / 8 / 180e9)
    assert sent["group"] == pytest.approx(exchanged * tokens / 8 / 180e9)


def test_replicas_sum_the_gradient_after_each_micro_batch_and_send_nothing_else():
    sent = exchanges(fit_3b9.get_config(), sizes(data=32), accumulate=4)
    assert sent.pop("data") == pytest.approx(4 * 2 * 2 * N * 31 / 32 / 180e9)
    assert set(sent.values()) == {0.0}


def test_fsdp_gathers_kernels_in_each_pass_of_each_micro_batch():
    one, four, wide = (
        exchanges(fit_3b9.get_config(), sizes(fsdp=32), accumulate, width)["fsdp"]
        for accumulate, width in ((1, 2), (4, 2), (1, 4))
    )
    assert one == pytest.approx((3 + 1) * 2 * N * 31 / 32 / 180e9)
    assert four == pytest.approx(4 * one) and wide == pytest.approx(2 * one)


def test_beside_replicas_fsdp_gives_each_device_the_whole_sum_first():
    sent = exchanges(fit_3b9.get_config(), sizes(data=4, fsdp=8))
    assert sent["fsdp"] == pytest.approx((3 + 2) * 2 * N * 7 / 8 / 180e9)


def test_tensor_sends_activations_as_often_as_there_are_videos():
    config = fit_3b9.get_config()
    mesh = sizes(fsdp=8, tensor=4)
    sent = [exchanges(config, mesh, accumulate)["tensor"] for accumulate in (1, 8)]
    assert sent[0] == pytest.approx(sent[1])
    rows = 6 * 4096 / 8 * 2  # blocks x videos of a device x bytes of a number
    tokens = 6 * 768 * 3072 + 2560 * 1024  # latents' six layers of a block, and written patches
    assert sent[0] == pytest.approx(12 * rows * tokens * 3 / 4 / 180e9)


def test_remat_dtype_and_micro_batches_trade_time_for_memory():
    thick = search.Profile(residuals=20e9, block=0, flops=25e12)
    thin = search.Profile(residuals=2e9, block=3e9, flops=32e12)
    state, copies = 5 * 4 * N / 32, 2 * N / 32
    assert closed_form(128, thick).memory == pytest.approx(state + copies + 20e9)
    half, wide = closed_form(64, thick), closed_form(64, thick, "float32")
    assert half.memory == pytest.approx(state + copies + 40e9)
    assert wide.memory == pytest.approx(state + 40e9)
    assert closed_form(64, thin).memory == pytest.approx(state + copies + 10e9)
    assert closed_form(64, thin).seconds > half.seconds
    assert wide.exchange_seconds == pytest.approx(2 * half.exchange_seconds)


def test_exchanges_overlap_with_the_work():
    video = search.Profile(residuals=20e9, block=0, flops=25e12)
    few, many = (closed_form(accumulate, video) for accumulate in (1, 128))
    work = 4096 * (25e12 / (0.5 * 459e12) + 2 * 20e9 / 2765e9) / 32
    assert few.seconds == pytest.approx(work) and few.exchange_seconds < work
    assert many.seconds == many.exchange_seconds > work


def candidate(seconds, accumulate=1, memory=1, **axes):
    return search.Candidate(sizes(**axes), "dots", "bfloat16", accumulate, memory, seconds, 0)


def test_what_was_refused_is_not_advised_nor_what_it_shows_to_be_too_large():
    config = fit_3b9.get_config()
    config.model.remat, config.training.accumulate = "dots", 4
    config.mesh.update(sizes(fsdp=8))
    tight, half, same = (candidate(1, k, m, fsdp=8) for k, m in ((2, 9), (8, 5), (4, 8)))
    other = candidate(2, 4, 7, data=8)
    ranking = [tight, same, half, other]
    assert search.below_limit(ranking, config, total=16, limit=12) == [half]
    assert search.below_limit(ranking, config, total=16, limit=15) == [half, other]
    # Where the config's own layout is not among them, closed forms are taken as they are.
    assert search.below_limit([half, other], config, total=16, limit=6) == [half]


def test_the_best_of_each_mesh_is_compiled_and_plain_fsdp_in_any_case():
    ranking = [
        candidate(1, data=8),
        candidate(2, data=8),
        candidate(3, data=2, fsdp=4),
        candidate(4, data=4, fsdp=2),
        candidate(5, fsdp=8),
    ]
    assert [each.seconds for each in search.shortlist(ranking, 8, 2)] == [1, 3, 5]
    assert [each.seconds for each in search.shortlist(ranking, 8, 9)] == [1, 3, 4, 5]
    assert search.is_plain(ranking[-1]) and not search.is_plain(ranking[2])


def test_what_does_not_fit_is_no_candidate(monkeypatch):
    config = tiny.get_config()
    monkeypatch.setattr(chips, "tpu", lambda kind: V5P)
    monkeypatch.setattr(topology, "memory", lambda chip: 10**9)
    monkeypatch.setattr(search, "REMAT", {"none": None})
    ranking = search.candidates(config, jax.devices())
    times = [(each.seconds, each.exchange_seconds) for each in ranking]
    assert times == sorted(times) and max(each.memory for each in ranking) < 1e9
    assert {each.dtype for each in ranking} == {"float32", "bfloat16"}
    applied = ranking[0].apply(config)
    assert applied.mesh.to_dict() == ranking[0].mesh and applied.model.dtype == ranking[0].dtype
    monkeypatch.setattr(topology, "memory", lambda chip: 10**3)
    monkeypatch.setattr(
        search, "profiles", lambda *_: {("dots", "float32"): search.Profile(1, 0, 1)}
    )
    with pytest.raises(ConfigError, match="no mesh of 8 x v5p should hold this training step"):
        search.candidates(config, jax.devices())
