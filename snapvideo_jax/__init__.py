"""Snap Video (Menapace et al., CVPR 2024) in JAX/Flax: text to video with the FIT transformer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from snapvideo_jax.sampling.text_to_video import TextToVideo


def load(
    folder: "str | Path", step: int | None = None, t5: "str | Path | None" = None
) -> "TextToVideo":
    """Loads a model from an exported folder, or from that of a run, as a function of prompts.

    Examples:
        >>> import snapvideo_jax
        >>> text_to_video = snapvideo_jax.load("exported")
        >>> videos = text_to_video(["a red circle moves left", "a blue square"], seeds=7)

    `videos` is uint8 [prompts, frames, height, width, 3]. Calls take the sampler's settings as
    keywords (steps=64, guidance=3.0, frame_rate=12.0), and an upsampler the videos of its first
    stage as low_res=videos.

    Args:
        folder: what launch.export wrote, or the --workdir of launch.train; its EMA is loaded.
        step: of a run's checkpoint; None is the newest.
        t5: folder of the T5 encoder, for prompts of a model trained on stored states.

    Raises:
        StorageError, DataError: one line; there is no checkpoint, or none is whole, or what
            encodes text is missing or another one.
    """
    from snapvideo_jax.sampling import text_to_video  # jax is imported where a model is loaded

    return text_to_video.load(folder, step, t5)
