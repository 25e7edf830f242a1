"""tiny.py's run with a U-Net of two levels in the place of FIT."""

from tests import tiny


def get_config():
    config = tiny.get_config()
    config.model.name = "unet"
    config.model.unet.update(
        channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(2,), head_channels=16
    )
    config.diffusion.self_conditioning = 0.0
    config.optimizer.update(name="adam", learning_rate=1e-4, b2=0.999, eps=1e-8)
    return config
