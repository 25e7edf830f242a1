"""tiny.py's run with a DiT of two blocks in the place of FIT."""

from tests import tiny


def get_config(factorised=True):
    config = tiny.get_config()
    config.model.name = "dit"
    config.model.dit.update(patch=8, channels=16, blocks=2, head_channels=8, factorised=factorised)
    config.diffusion.self_conditioning = 0.0
    config.optimizer.update(name="adam", learning_rate=1e-3, b2=0.999, eps=1e-8)
    return config
