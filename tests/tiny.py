"""The smallest run that is whole: seconds to compile, a few milliseconds a step."""

from configs import base


def get_config():
    config = base.get_config().lock()
    config.data.update(
        source="shapes",
        num_frames=2,
        height=16,
        width=16,
        pad_rows=0,
        frame_rates=(4.0, 8.0),
        image_fraction=0.25,
        text_length=8,
    )
    config.data.shapes.update(radius=2.8, speeds=(("slowly", 4.0), ("quickly", 8.0)))
    config.model.fit.update(
        patch=8,
        group=(2, 1, 2),
        patch_channels=16,
        latents=4,
        latent_channels=16,
        blocks=1,
        global_layers=1,
        patch_head_channels=8,
        latent_head_channels=8,
    )
    config.model.update(conditioning_channels=16, dropout=0.1)
    config.model.text_encoder.update(channels=16, heads=2, head_channels=8, hidden=16, layers=1)
    config.diffusion.update(sigma_in=1.0)
    config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
    config.training.update(steps=8, batch_size=8, ema_half_life=4.0)
    config.sampling.update(steps=3, guidance=1.0, frame_rate=4.0)
    config.checkpoint.update(every_steps=3, keep_last=2)
    config.log.update(every_seconds=0.01, metrics_every=1)
    return config


def get_upsampler_config():
    """From 16 x 16 to 32 x 32, in 4 groups where the first stage has 2."""
    config = get_config()
    config.data.update(height=32, width=32, low_res=(16, 16))
    config.data.shapes.update(radius=5.6, speeds=(("slowly", 8.0), ("quickly", 16.0)))
    config.model.fit.group = (2, 2, 2)
    config.diffusion.sigma_in = 2.0
    config.training.steps = 3
    return config
