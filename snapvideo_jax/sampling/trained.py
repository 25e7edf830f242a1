"""The EMA of a run or of an exported folder, with all that sampling needs beside it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.export import export_folder
from snapvideo_jax.sampling import prompt_encoder
from snapvideo_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model on the devices at hand. config: the run's, handed to `build` alone."""

    config: Config
    step: int
    denoiser: Denoiser
    mesh: Mesh
    text: build.Text
    params: Params  # the EMA

    def cast_kernels(self) -> "Trained":
        """Returns the model for sampling alone, with less memory: takes that of `params`."""
        places = jax.tree.map(lambda leaf: leaf.sharding, self.params)
        cast = jax.jit(self.denoiser.cast_kernels, donate_argnums=0, out_shardings=places)
        return dataclasses.replace(self, params=cast(self.params))


def load(
    workdir: Path,
    step: int | None = None,
    t5: Path | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """Reads the EMA of a run's newest checkpoint that verifies, or of an exported folder.

    Args:
        workdir: folder of the run, or an exported one.
        step: of the checkpoint; None is the newest.
        t5: the encoder's weights, for a model that was trained on stored states; without it only
            captions whose states are stored can be prompts.
        log: called with a line for each checkpoint that is passed over.

    Raises:
        StorageError: there is no checkpoint, or none is whole.
        DataError: the text encoder is missing or another one.
    """
    model: dict[str, Any] = {}

    def abstract(meta: dict) -> dict[str, Params]:
        config = ConfigDict(meta["config"])
        mesh, text = build.mesh_of_run(config), _text(config, workdir, t5, meta)
        denoiser = build.denoiser(config, text.vocabulary_size, mesh)
        model.update(config=config, mesh=mesh, text=text, denoiser=denoiser)
        return {"ema": build.abstract_params(config, denoiser, mesh)}

    folder = workdir / "checkpoints"
    if export_folder.is_export(workdir):
        restored = export_folder.load(workdir, abstract)
    elif step is not None:
        restored = checkpoint.restore_step(folder, step, abstract)
    else:
        restored = checkpoint.restore_newest(folder, abstract, log)
    if restored is None:
        raise StorageError(f"{workdir} holds no checkpoint; train one with launch.train first")
    return Trained(step=restored.step, params=restored.state["ema"], **model)


def _text(config: Config, workdir: Path, t5: Path | None, meta: dict) -> build.Text:
    """Returns how prompts enter; DataError if `t5` is not the encoder that made the states."""
    settings = build.text_settings(config)
    if settings.trained or t5 is None:
        return build.text(config, build.vocabulary_path(config, workdir))
    encoder = prompt_encoder.load(t5, None, length=settings.length, dtype=settings.dtype)
    if meta.get("text", encoder.fingerprint) != encoder.fingerprint:
        raise DataError(f"{t5} is not the encoder whose states {workdir} was trained on")
    return build.Text(build.as_batch("text", encoder), 0, encoder.fingerprint)
