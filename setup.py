"""Packages snapvideo_jax alone; configs/ and launch/ are run from a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (ROOT / name).read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


setup(
    name="snapvideo_jax",
    version="0.1.0",
    description="Snap Video (CVPR 2024): text to video with the FIT transformer, in JAX/Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["snapvideo_jax", "snapvideo_jax.*"]),
    package_data={"snapvideo_jax.page": ["static/*"]},
    install_requires=requirements("requirements.txt"),
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "test": requirements("requirements-test.txt"),
        "docs": requirements("requirements-docs.txt"),
    },
)
