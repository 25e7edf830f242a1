"""Packs the shards of a build by a pipeline of Apache Beam, on the machines of any of its runners.

These mount the files and the build under the same paths, and have this package installed. A shard
is packed as on one machine, so the records are the same. apache-beam is no requirement of ours.
"""

from collections.abc import Sequence
from pathlib import Path

from snapvideo_jax.data import pack
from snapvideo_jax.data.pack_shard import Shard
from snapvideo_jax.errors import ConfigError, StorageError, reason


def pipeline(options: Sequence[str]) -> pack.PackShards:
    """Returns what packs shards by a pipeline, for `pack.pack`.

    options: Beam's, such as --runner=DirectRunner.

    Raises:
      ConfigError: apache-beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"apache-beam cannot be imported ({reason(error)}); install it beside requirements.txt "
            "in an environment of its own"
        ) from error

    def pack_shards(shards: Sequence[Shard], done: int, parts: Path) -> None:
        del done  # runners show their own progress
        try:
            chosen = pipeline_options.PipelineOptions(list(options))
            with beam.Pipeline(options=chosen) as run:
                _ = run | beam.Create(shards) | beam.Reshuffle() | beam.Map(pack.pack_shard, parts)
        except Exception as error:  # runners raise whatever a worker leads to
            raise StorageError(f"the pipeline failed: {reason(error)}") from error

    return pack_shards
