"""Rows with numbers made up by hand."""

from snapvideo_jax.benchmark.rows import Row

FACTS = {
    "device": "NVIDIA A100-SXM4-80GB",
    "versions": {"jax": "0.10.2", "flax": "0.12.8"},
    "date": "2026-01-31",
    "command": "python -m launch.benchmark --out=<DIR>",
}


def row(config, *step_ms, **fields):
    """A training step of `config`, 8 videos on one A100, timed in turns."""
    common = {
        "config": config,
        "network": config.partition("_")[0],
        "parameters": 5 * 10**8,
        "video": (16, 40, 64),
        "mode": "train",
        "kind": "measured",
        "device": "NVIDIA A100-SXM4-80GB",
        "devices": 1,
        "mesh": {"data": 1, "fsdp": 1, "group": 1, "tensor": 1},
        "dtype": "bfloat16",
        "attention": "plain",
        "batch": 8,
        "interleaved": True,
        "model_flops": 10 * 10**12,
        "hardware_flops": 12 * 10**12,
        "peak_flops": 312e12,
        "peak_memory_bytes": 20 * 10**9,
        "memory_source": "device",
        "compile_seconds": 31.0,
    }
    return Row(step_ms=step_ms, **common | fields)
