"""The EMA of a run or of an exported folder, with all that sampling needs beside it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from snapvideo_jax import build, fields, numerics, storage
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.errors import ConfigError, DataError, StorageError, reason
from snapvideo_jax.export import export_folder
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.sampling import prompt_encoder
from snapvideo_jax.training import restore, resume


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model on the devices at hand. config: the run's, which `build` reads."""

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
    numerics.check()
    storage.refuse_remote(workdir)
    if exported := export_folder.is_export(workdir):
        meta = export_folder.read(workdir)._asdict()
        if step not in (None, meta["step"]):
            raise StorageError(f"{workdir} is an export of step {meta['step']}, not of {step}")
    elif step is not None:
        meta = restore.step_meta(workdir / "checkpoints", step)
    else:
        meta = restore.newest_meta(workdir / "checkpoints")
    if meta is None:
        raise StorageError(f"{workdir} holds no checkpoint; train one with launch.train first")

    with _describing_model(workdir):
        stored = resume.with_later_fields(meta["config"])
        fields.check(stored)
        config = ConfigDict(stored)
        build.network(config, dot_product_attention)  # raises for sizes that do not fit
    mesh, text = build.mesh_of_run(config), _text(config, workdir, t5, meta)
    denoiser = build.denoiser(config, text.vocabulary_size, mesh)
    abstract_params = build.abstract_params(config, denoiser, mesh)

    if exported:
        number, params = meta["step"], export_folder.load_params(workdir, abstract_params)
    else:
        number, params = _restore(workdir / "checkpoints", step, abstract_params, log)
    return Trained(
        config=config,
        step=number,
        denoiser=denoiser,
        mesh=mesh,
        text=text,
        params=params,
    )


def _restore(
    folder: Path, step: int | None, abstract_params: Params, log: Callable[[str], None]
) -> tuple[int, Params]:
    """Returns the step and the EMA of the checkpoint of `step`, or of the newest one."""
    abstract = {"ema": abstract_params}
    if step is not None:
        restored = restore.at_step(folder, step, abstract)
    else:
        restored = restore.newest(folder, abstract, log)
    assert restored is not None, "there are checkpoints, since their meta data were read"
    return restored.step, restored.state["ema"]


@contextlib.contextmanager
def _describing_model(folder: Path) -> Iterator[None]:
    """Raises DataError where the config in `folder` does not describe a model."""
    try:
        yield
    except ConfigError as error:
        detail = reason(error)[:200]
        raise DataError(
            f"the config in {folder} does not describe a model of this version ({detail}); train "
            "or export the run again"
        ) from error


def _text(config: Config, workdir: Path, t5: Path | None, meta: dict) -> build.Text:
    """Returns how prompts enter.

    Raises DataError if `t5` is not the encoder that made the states, or the vocabulary not that of
    the run.
    """
    settings = build.text_settings(config)
    if settings.trained or t5 is None:
        return build.text(config, build.vocabulary_path(config, workdir), meta["text"])
    encoder = prompt_encoder.load(t5, None, length=settings.length, dtype=settings.dtype)
    if meta["text"] not in ("", encoder.fingerprint):
        raise DataError(f"{t5} is not the encoder whose states {workdir} was trained on")
    return build.Text(build.as_batch("text", encoder), 0, encoder.fingerprint)
