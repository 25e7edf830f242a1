"""What is no config of this project."""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict()
