"""Timing: in turns, what happens without memory, and that the programs are the ones that count."""

import types
import weakref
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.benchmark import machine, measure, programs
from snapvideo_jax.errors import ConfigError
from tests import tiny, tiny_unet

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99999999999 bytes."


def request(**changes):
    config = tiny.get_config()
    config.model.text_encoder.source = "stored"  # there is less to compile
    common = dict(configs={"a": config, "b": config}, modes=["infer"], batch_sizes=[1])
    return measure.Request(**common | dict(devices=[1]) | changes)


def case(mode, batch, devices=1):
    part = measure.Part(devices=devices, video=None, mode=mode, batch=batch)
    return measure.case(request().configs["a"], "a", part, jax.devices())


def program(videos):
    """As much of a PlannedProgram as a row is made of."""
    network = types.SimpleNamespace(video=(2, 16, 16))
    return types.SimpleNamespace(
        denoiser=types.SimpleNamespace(network=network), mesh=types.SimpleNamespace(shape={}),
        network="fit", parameters=9, dtype="float32", attention="plain", videos=videos,
        model_flops=1, flops=1,
    )  # fmt: skip


def silent(things):
    return lambda done, of: None


def test_calls_take_turns_and_each_is_timed_by_itself():
    now, order = [0.0], []

    def call(name, seconds):
        def step():
            order.append(name)
            now[0] += seconds

        return step

    told = lambda: now.__setitem__(0, now[0] + 100)  # what is told between steps takes no time
    calls = [call("a", 1.0), call("b", 2.0)]
    taken = measure.rounds(calls, 3, told, clock=lambda: now[0])
    assert order == ["a", "b"] * 3
    assert taken == [(1000.0,) * 3, (2000.0,) * 3]


@pytest.fixture
def pretended(monkeypatch):
    """run(limit, **request) -> rows, order of steps, lines: programs of one number a video, which
    at once find room for `limit` of them; a config "huge" is too big for the compiler."""

    def run(limit, may_compile=lambda: True, **changes):
        order, lines, held = [], [], weakref.WeakSet()

        class Arguments:
            def __init__(self, size):
                self.size = size
                if size + sum(one.size for one in held) > limit:
                    raise jax.errors.JaxRuntimeError(FULL)
                held.add(self)

        def compile_case(case):
            size = case.config.training.batch_size
            executable = None if case.name == "huge" else lambda _: order.append(case.name)
            return programs.CompiledCase(case, program(size), executable, 1.0, size)

        monkeypatch.setattr(programs, "compile_case", compile_case)
        start = lambda compiled: (Arguments(compiled.program.videos),)
        monkeypatch.setattr(programs, "first_arguments", start)
        monkeypatch.setattr(programs, "next_arguments", lambda _, arguments, results: arguments)
        rows_of = lambda cases: measure.measure(cases, 3, lines.append, silent, may_compile)
        parts = measure.run(request(**changes), jax.devices(), rows_of)
        rows = [row for part in parts for row in part]
        return rows, order, lines

    return run


def test_with_memory_for_all_they_are_timed_in_turns(pretended):
    rows, order, _ = pretended(limit=2)
    assert order == ["a", "b"] * 4  # one to warm up, three that are timed
    assert [(row.config, len(row.step_ms), row.interleaved) for row in rows] == [
        ("a", 3, True),
        ("b", 3, True),
    ]


def test_without_memory_for_all_they_are_timed_one_after_the_other_and_it_says_so(pretended):
    rows, order, lines = pretended(limit=1)
    assert order == ["a"] + ["a"] * 4 + ["b"] * 4  # the first before there was no room for b
    assert [len(row.step_ms) for row in rows] == [3, 3]
    assert not any(row.interleaved for row in rows)
    assert "they do not fit into memory together: measuring one after the other" in lines


def test_out_of_memory_is_a_row_and_ends_the_batches_of_that_mode(pretended):
    rows, _, lines = pretended(limit=2, batch_sizes=[1, 2, 4, 8], modes=["train", "infer"])
    for mode in ("train", "infer"):
        found = [(row.batch, row.out_of_memory) for row in rows if row.mode == mode]
        assert found == [(1, False)] * 2 + [(2, False)] * 2 + [(4, True)] * 2
    assert "a train, 4 videos of 2 x 16 x 16 on 1 device: out of memory" in lines


def test_what_cannot_be_compiled_for_want_of_memory_leaves_the_others_in_turns(pretended):
    config = tiny.get_config()
    rows, order, _ = pretended(limit=2, configs={"a": config, "huge": config, "b": config})
    assert order == ["a", "b"] * 4
    assert [(row.config, row.out_of_memory, row.interleaved) for row in rows] == [
        ("a", False, True),
        ("huge", True, False),
        ("b", False, True),
    ]


def test_when_time_is_over_nothing_more_is_compiled_and_what_is_gets_its_row(pretended):
    answers = iter([True, False])
    rows, order, lines = pretended(limit=2, may_compile=lambda: next(answers))
    assert [row.config for row in rows] == ["a"] and order == ["a"] * 4
    assert "b infer, 1 video of 2 x 16 x 16 on 1 device: no time is left to compile it" in lines


def test_a_cpu_is_asked_what_it_has_before_it_is_filled(pretended, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 5)
    rows, order, _ = pretended(limit=99, batch_sizes=[2, 4, 8])  # bytes, as is `memory` here
    assert order == ["a", "b"] * 4 + ["a"] * 4 + ["b"] * 4
    assert [(row.batch, row.interleaved) for row in rows if not row.out_of_memory] == [
        *[(2, True)] * 2,
        *[(4, False)] * 2,
    ]
    assert [row.batch for row in rows if row.out_of_memory] == [8, 8]


def test_a_cpus_memory_is_the_machines_and_other_devices_know_their_own():
    chip = mock.Mock(spec=jax.Device, platform="tpu")
    assert 2**28 < machine.free_memory(jax.devices()[0]) < 2**50
    assert machine.free_memory(chip) is None


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def fails(compiled):
        raise jax.errors.JaxRuntimeError("INTERNAL: the chip is on fire")

    one = case("infer", 1)
    monkeypatch.setattr(programs, "first_arguments", fails)
    compiled = programs.CompiledCase(one, program(1), lambda: None, 1.0, None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="on fire"):
        measure.attempt([compiled], 1, silent)


def test_a_training_step_is_carried_on_from_the_one_before():
    one = case("train", 2, devices=2)
    running = measure.Running(programs.compile_case(one))
    before = int(running._arguments[0].step)
    running.warm_up()
    running()
    state, batch = running._arguments
    assert (before, int(state.step)) == (0, 2)
    assert batch["video"].shape[0] == 4 and len(batch["video"].sharding.device_set) == 2


def test_random_arguments_mask_nothing_and_lie_as_the_program_wants_them():
    config = tiny_unet.get_config()
    abstract = build.train_program(config, 8).abstract_batch
    batch = programs.random_arrays(abstract)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), abstract
    )
    assert bool(jnp.all(batch["text_mask"])) and bool(jnp.all(batch["frame_interval"] > 0))
    assert np.unique(np.asarray(batch["video"])).size > 200


@pytest.mark.slow
def test_flops_of_the_model_leave_out_what_remat_computes_again():
    plain = case("train", 1)
    again = case("train", 1)
    again.config.model.remat = "block"
    plain, again = programs.plan_case(plain), programs.plan_case(again)
    assert again.flops > again.model_flops == plain.model_flops == plain.flops > 0


def test_memory_is_what_a_program_adds_and_only_told_where_its_peak_is_the_highest(monkeypatch):
    one = case("infer", 1)
    compiled = programs.CompiledCase(one, program(1), lambda argument: argument, 1.0, None)
    monkeypatch.setattr(programs, "first_arguments", lambda compiled: (0,))

    def told(held, peak_before, peak_after):
        answers = iter([held, peak_before, peak_after])
        monkeypatch.setattr(measure, "_stat", lambda device, name: next(answers))
        return measure.Running(compiled).warm_up()

    assert told(1000, 1500, 4000) == 3000
    assert told(1000, 4000, 4000) is None  # another program, or making the arguments, had more
    assert told(None, None, None) is None  # the device does not count


def test_each_size_of_video_is_a_part_of_its_own():
    sized = request(videos=[(2, 16, 16), (4, 32, 16)])
    seen = []
    list(measure.run(sized, jax.devices(), lambda cases: seen.append(cases) or []))
    assert [[one.config.data.height for one in cases] for cases in seen] == [[16, 16], [32, 32]]
    assert programs.describe(seen[1][0]) == "a infer, 1 video of 4 x 32 x 16 on 1 device"
    measure.check(sized, jax.devices())
    with pytest.raises(ConfigError, match="a on 1 devices: videos of 2 x 24 x 16: model.fit.group"):
        measure.check(request(videos=[(2, 24, 16)]), jax.devices())


def test_what_does_not_fit_the_devices_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match="--devices=9: there are 8"):
        measure.check(request(devices=[1, 9]), jax.devices())
    config = tiny.get_config()
    config.mesh.data = 3
    with pytest.raises(ConfigError, match="^a on 2 devices: mesh.data=3, "):
        measure.check(request(configs={"a": config}, devices=[2]), jax.devices())


def test_peaks_are_known_for_chips_that_do_bfloat16_and_for_nothing_else():
    assert machine.peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert machine.peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert machine.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert machine.peak_flops("TPU v5p", "bfloat16") == 459e12
    assert machine.peak_flops("NVIDIA A100-SXM4-80GB", "float32") is None
    assert machine.peak_flops("cpu", "bfloat16") is None
