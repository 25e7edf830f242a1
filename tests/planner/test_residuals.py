"""The residuals of a step, by the words of the paper."""

import jax
import jax.numpy as jnp
import pytest

from snapvideo_jax import build, train
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import residuals
from tests import tiny


def step(**changes):
    config = tiny.get_config()
    config.mesh.update(data=1, fsdp=1, group=1, tensor=1)
    config.model.remat = changes.get("remat", "none")
    config.training.update(batch_size=8, accumulate=changes.get("accumulate", 1))
    program = build.train_program(config, 64, jax.devices()[:1])
    return program, (program.step, (program.abstract_state, program.abstract_batch))


@pytest.fixture(scope="module")
def everything():
    return residuals.buffers(*step()[1], ways=1)


def test_it_is_what_a_gradient_reads_of_its_forward_pass():
    def loss(w, x):
        with jax.named_scope("read"):
            hidden = x @ w  # a residual of [4, 8]: jnp.sin needs cos of it
        return jnp.sum(jnp.sin(hidden))

    buffers = residuals.buffers(
        jax.jit(jax.grad(loss)), (jnp.ones((3, 8)), jnp.ones((4, 3))), ways=1
    )
    assert sum(each.size for each in buffers) == 4 * 8 * 4


def test_the_parts_have_the_papers_names_and_the_largest_come_first(everything):
    names = {each.name for each in everything}
    assert "global layer 0, feed-forward, hidden units" in names
    assert any(name.startswith("write (patches' attention to latents)") for name in names)
    sizes = [each.size for each in everything]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 0


def test_remat_and_micro_batches_have_fewer_residuals_and_devices_share_them(everything):
    whole = sum(each.size for each in everything)
    dots, block = (residuals.total(*step(remat=policy)[1], ways=1) for policy in ("dots", "block"))
    assert block < dots < whole
    micro = residuals.total(*step(accumulate=4)[1], ways=1)
    assert whole / 4 <= micro < whole / 2  # casts of parameters do not shrink with the videos
    assert residuals.total(*step()[1], ways=8) == pytest.approx(whole / 8, rel=0.01)


def test_a_run_out_of_memory_ends_with_a_line_that_names_what_filled_it():
    program, _ = step()
    with (
        pytest.raises(ConfigError) as error,
        train._explaining_memory(lambda: train._step_refusal(program)),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to ...")
    message = str(error.value)
    assert "\n" not in message and "GB" in message and "training.accumulate" in message
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        train._explaining_memory(lambda: train._step_refusal(program)),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
