"""A trained model as a function from texts to videos, for use in a program or a notebook."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax import build, fields
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import KnownFrames, SamplerSettings
from snapvideo_jax.kinds import shown
from snapvideo_jax.sampling import trained
from snapvideo_jax.sampling.generate import generate

MOST_AT_A_TIME = 16  # videos, where the caller does not say


@dataclasses.dataclass(frozen=True)
class TextToVideo:
    """A model on the devices at hand, and the settings that its config samples with."""

    model: trained.Trained
    settings: SamplerSettings

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        batch_size: int | None = None,
        negative: str | None = None,
        low_res: UInt8[np.ndarray, "N T h w 3"] | None = None,
        known: KnownFrames | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "N T H W 3"]:
        """Makes one video a prompt; the pixels are those of launch.sample.

        The first call with other settings than frame_rate, or of another batch size, compiles.

        Args:
            prompts: N texts, or one.
            seeds: one for each prompt, or one for all.
            batch_size: videos at a time; None: all, but at most MOST_AT_A_TIME.
            negative: a text that guidance leads away from.
            low_res: what an upsampler enlarges, the videos of its first stage.
            known: frames that come out as they went in.
            settings: fields of SamplerSettings that differ from the config's: steps, guidance,
                frame_rate, threshold, ...

        Raises:
            ConfigError: one line, for a setting or seed that is none, or a low resolution that is
                missing, superfluous or of another size.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        numbers = [seeds] * len(texts) if isinstance(seeds, int) else list(seeds)
        _check(texts, numbers, settings)
        return generate(
            self.model,
            dataclasses.replace(self.settings, **settings),
            texts,
            numbers,
            batch_size or min(len(texts), MOST_AT_A_TIME),
            negative=negative,
            low_res=low_res,
            known=known,
        )


def load(folder: str | Path, step: int | None = None, t5: str | Path | None = None) -> TextToVideo:
    """Loads the EMA of an exported folder or of a run, ready to sample.

    Args and errors: those of `trained.load`.
    """
    model = trained.load(Path(folder), step, Path(t5) if t5 else None)
    return TextToVideo(model.cast_kernels(), build.sampler_settings(model.config))


def _check(prompts: Sequence[str], seeds: Sequence[int], settings: dict[str, Any]) -> None:
    """Raises ConfigError for what the sampler cannot use."""
    if not prompts:
        raise ConfigError("there is nothing to show; give a prompt")
    if len(seeds) != len(prompts):
        raise ConfigError(
            f"there are {len(seeds)} seeds for {len(prompts)} prompts; give one each, or a number"
        )
    for seed in seeds:
        if not fields.SEED.holds(seed):
            raise ConfigError(f"seeds={shown(seed)} must be {fields.SEED}")
    names = [field.name for field in dataclasses.fields(SamplerSettings)]
    for name, value in settings.items():
        if name not in names:
            raise ConfigError(f"{shown(name)} is no setting of the sampler; those are {names}")
        kind = fields.FIELDS[f"sampling.{name}"]
        if not kind.holds(value):
            raise ConfigError(f"{name}={shown(value)} must be {kind}")
