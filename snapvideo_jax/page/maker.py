"""Makes the videos of a page: the program of launch.sample, with what the form holds."""

import dataclasses
from collections.abc import Callable, Sequence

from snapvideo_jax.page import form
from snapvideo_jax.page.gallery import Gallery
from snapvideo_jax.sampling import stage
from snapvideo_jax.sampling.generate import Progress
from snapvideo_jax.sampling.stage import Stage


class VideoMaker:
    """A cascade whose videos go into a gallery."""

    def __init__(self, stages: Sequence[Stage], gallery: Gallery):
        self._stages, self._gallery = stages, gallery

    def notes(self, values: form.Values) -> list[str]:
        """Returns a line for each thing that the model was never shown."""
        return list(stage.unseen(self._set(values)[0], [values["prompt"]]))

    def make(self, values: form.Values, progress: Callable[[str], Progress]) -> str:
        """Makes a video and returns its name in the gallery.

        progress: as for `stage.cascade`; it hears of every call of a denoiser, and what it raises
            ends the work.
        """
        stages, prompt, seed = self._set(values), values["prompt"], values["seed"]
        calls = max(each.settings.num_calls for each in stages)
        [frames] = stage.cascade(
            stages, [prompt], [seed], batch_size=1, progress=progress, reports=calls
        )
        return self._gallery.add(prompt, seed, frames, stage.record(stages, "mp4"))

    def _set(self, values: form.Values) -> list[Stage]:
        """Returns the stages with the settings of the form."""
        return [
            dataclasses.replace(each, settings=dataclasses.replace(each.settings, **changes))
            for each, changes in zip(self._stages, form.by_stage(values), strict=True)
        ]
