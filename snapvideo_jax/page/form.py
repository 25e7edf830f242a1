"""What a person may set on the page: the fields, and what each may hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from snapvideo_jax import fields
from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import UserError
from snapvideo_jax.kinds import Kind, Text, shown

Values = dict[str, Any]  # name of a field -> what it holds; the names are flags of launch.sample

PROMPT = Text(1000)
OF_FIRST_STAGE = ("steps", "guidance", "frame_rate")
OF_UPSAMPLER = ("steps", "guidance")


class BadFields(UserError):
    """Fields that cannot be used. problems: name of each -> what is wrong with it."""

    def __init__(self, problems: dict[str, str]):
        super().__init__("; ".join(f"{name} {problem}" for name, problem in problems.items()))
        self.problems = problems


def kind(name: str) -> Kind:
    """Returns what a field may hold, as its flag of launch.sample may."""
    if name in ("prompt", "seed"):
        return {"prompt": PROMPT, "seed": fields.SEED}[name]
    return fields.FIELDS[f"sampling.{name.removeprefix('upsampler_')}"]


def of_stages(stages: Sequence[Mapping[str, Any]]) -> Values:
    """Returns the fields that are settings of a sampler, as those of each stage have them."""
    first, *more = stages
    values = {name: first[name] for name in OF_FIRST_STAGE}
    for upsampler in more:
        values |= {f"upsampler_{name}": upsampler[name] for name in OF_UPSAMPLER}
    return values


def by_stage(values: Values) -> list[dict[str, Any]]:
    """Returns what each stage's sampler takes; both stages make videos of one frame rate."""
    first = {name: values[name] for name in OF_FIRST_STAGE}
    if "upsampler_steps" not in values:
        return [first]
    upsampler = {name: values[f"upsampler_{name}"] for name in OF_UPSAMPLER}
    return [first, upsampler | {"frame_rate": values["frame_rate"]}]


def read(entries: Mapping[str, Any], names: Sequence[str]) -> Values:
    """Returns a value for each of `names`, numbers also from text, as a person types it.

    Raises BadFields where one is missing or of another kind, or where there are others.
    """
    values = {name: _value(name, entries.get(name)) for name in names}
    problems = {
        name: f"must be {kind(name)}" for name in names if not kind(name).holds(values[name])
    }
    if values["prompt"] == "":
        problems["prompt"] = "must say what to show"
    problems |= {shown(name): "is no field of this page" for name in entries.keys() - set(names)}
    if problems:
        raise BadFields(problems)
    return values


def _value(name: str, entry: Any) -> Any:
    """Returns what a field holds: what its text spells, or what came instead of a text."""
    if not isinstance(entry, str):
        return entry
    return clean_caption(entry) if name == "prompt" else kind(name).read(entry.strip())
