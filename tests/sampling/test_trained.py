"""A model is read from a run or an export; what does not describe one is one line."""

import jax.numpy as jnp
import pytest

from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.export import export_folder
from snapvideo_jax.sampling import trained


def exported(folder, config, vocabulary=None):
    export_folder.write(folder, config, 7, {"table": jnp.zeros(3)}, vocabulary)
    return folder


def test_a_config_of_no_model_is_refused_in_one_line(tmp_path):
    folder = exported(tmp_path / "out", {"data": {}})
    with pytest.raises(DataError, match="config in .*out does not describe a model .*lacks data"):
        trained.load(folder)


def test_a_config_that_is_refused_keeps_its_reason(tmp_path, trained_folder):
    config = trained.load(trained_folder).config.to_dict()
    config["mesh"]["fsdp"], config["model"]["fit"]["group"] = 1, (2, 3, 3)
    folder = exported(tmp_path / "out", config, trained_folder / "vocabulary.model")
    with pytest.raises(DataError, match="config in .*out does not describe .*model.fit.group"):
        trained.load(folder)


def test_folders_without_the_step_are_refused(tmp_path, trained_folder):
    with pytest.raises(StorageError, match="holds no checkpoint; train one"):
        trained.load(tmp_path)
    with pytest.raises(StorageError, match="holds no checkpoint 2; there are: 3"):
        trained.load(trained_folder, step=2)
    with pytest.raises(StorageError, match="is an export of step 7, not of 3"):
        trained.load(exported(tmp_path / "out", {}), step=3)
