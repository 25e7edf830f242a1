"""How it is spread over devices: the one place for meshes and shardings."""
