"""A whole run of the sampler, from its noise to the sample."""

from snapvideo_jax.diffusion import sampler


def inputs_of(denoise, grid, sigma_in, guidance=None, solver="heun", churn=None):
    """Inputs of the deterministic sampler of second order, where nothing else is asked for."""
    return sampler.SamplerInputs(denoise, grid, sigma_in, guidance, solver=solver, churn=churn)


def sample(denoise, x, grid, sigma_in, carry, guidance=None, **options):
    """The sample of x, noise of level grid[0]."""
    inputs = inputs_of(denoise, grid, sigma_in, guidance, **options)
    return sampler.sample(inputs, sampler.start(x, carry))
