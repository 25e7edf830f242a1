"""What a config is to type checkers."""

from typing import Any

# A locked ml_collections.ConfigDict, whose fields are known only at run time.
Config = Any
