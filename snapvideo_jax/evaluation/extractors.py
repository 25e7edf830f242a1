"""Which networks' features an evaluation measures, and whether its sets suffice for them."""

from collections.abc import Callable, Mapping

from snapvideo_jax.data.world import World
from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import factors, metrics, scores
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.sets import Sets

# Network -> the name of the Frechet distance of its features; the others have scores alone.
FRECHET = {
    "i3d": "fvd",
    "inception": "fid",
    "clip": "clip_fid",
    "random_conv": "random_conv",
    "factors": "factors",
}


def without_weights(world: World | None, frame_interval: float) -> dict[str, Extractor]:
    """Returns the features that need no file: of a random network, and of a world's factors.

    frame_interval: seconds between the frames of the samples.
    """
    networks = {"random_conv": metrics.load("random_conv", "none")}
    if world is not None:
        extract = lambda videos: factors.features(videos, world, frame_interval)
        size = len(factors.names(world))
        networks["factors"] = Extractor("", "none", False, size, extract)
    return networks


def usable(
    networks: Mapping[str, Extractor], sets: Sets, frames: int, note: Callable[[str], None]
) -> dict[str, Extractor]:
    """Returns the networks that the two sets suffice for.

    Args:
        networks: name -> features.
        sets: how many samples and real videos there are, and how long the real ones.
        frames: of a sample; those after the real videos' last are not measured.
        note: called with a line for each network without weights that is left out.

    Raises:
        DataError: one line, where the sets do not suffice for a network that the user gave weights
            for: too few samples for a covariance, or too few frames.
    """
    length, chosen = sets.real.video_shape[0], {}
    if frames < length:
        raise ConfigError(
            f"--protocol={sets.protocol} measures {length} frames, and this model makes {frames}"
        )
    for name, network in networks.items():
        if problem := _shortage(name, network, sets):
            if network.sha256:
                raise DataError(problem)
            note(f"left out: {problem}")
        else:
            chosen[name] = network
    return chosen


def _shortage(name: str, network: Extractor, sets: Sets) -> str:
    """Returns what is too little for a network, "" if nothing is."""
    length, samples = sets.real.video_shape[0], len(sets.samples.prompts)
    if length < network.frames:
        return f"{name} needs videos of {network.frames} frames, these have {length}"
    if name == "c3d" and samples < scores.SPLITS:
        return f"an inception score needs {scores.SPLITS} samples, there are {samples}"
    each = length if network.of_frames else 1
    if name in FRECHET and min(samples, sets.real.count) * each <= network.size:
        return (
            f"{FRECHET[name]} needs {network.size // each + 1} samples and real videos for a "
            f"covariance of {network.size} numbers, there are {samples} and {sets.real.count}"
        )
    return ""
