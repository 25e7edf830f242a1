"""What may change between the runs of one folder, and folders of earlier versions."""

import json
from pathlib import Path

import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.fields import flatten
from snapvideo_jax.training import resume
from tests import tiny


def stored(**changes):
    """A config as a checkpoint holds it; "section.field" -> another value, or None: it lacks."""
    config = json.loads(tiny.get_config().to_json())
    for name, value in changes.items():
        *sections, field = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        if value is None:
            del place[field]
        else:
            place[field] = value
    return {"config": config, "data": "d", "text": "t", "step": 3}


def check(saved, now):
    resume.check_same_experiment(Path("W"), saved, now)


def test_a_run_of_a_version_without_a_later_field_goes_on_with_the_value_that_was_its():
    old = stored(model__fit__write_scale=None)
    check(old, stored())
    with pytest.raises(ConfigError, match="model.fit.write_scale=1.0 there, 0.1 here"):
        check(old, stored(model__fit__write_scale=0.1))


def test_a_whole_section_may_be_later():
    old = stored()
    del old["config"]["data"]["tfds"]
    check(old, stored())
    with pytest.raises(ConfigError, match=r"data.tfds.split='train' there, 'test' here"):
        check(old, stored(data__tfds__split="test"))


@pytest.mark.parametrize("heun, solver", [(True, "heun"), (False, "euler")])
def test_the_field_before_the_solver_s_says_which_it_was(heun, solver):
    old = stored(sampling__solver=None, sampling__heun=heun)["config"]
    assert resume.with_later_fields(old) == stored(sampling__solver=solver)["config"]


def test_later_fields_are_fields_of_every_config_and_change_none_that_has_them():
    assert resume.LATER_FIELDS.keys() <= flatten(stored()["config"]).keys()
    mine = stored(model__fit__write_scale=0.3)["config"]
    assert resume.with_later_fields(mine) == mine


@pytest.mark.parametrize(
    "config", [{}, {"model": 3}, {"model": {"fit": None, "dit": None, "attention": "plain"}}]
)
def test_what_is_no_config_stays_as_it_is(config):
    assert resume.with_later_fields(config) == config
