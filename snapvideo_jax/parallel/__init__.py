"""What a running program needs of a mesh: shardings, attention, batches, hosts, chips."""
