"""Meshes over eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import mesh as meshes


def sizes(data=1, fsdp=1, group=1, tensor=1):
    return dict(data=data, fsdp=fsdp, group=group, tensor=tensor)


def test_the_axes_are_filled_in_order_with_the_devices_as_they_come():
    devices = jax.devices()[::-1]
    mesh = meshes.make_mesh(sizes(data=2, fsdp=2, tensor=2), devices)
    assert mesh.axis_names == ("data", "fsdp", "group", "tensor")
    assert mesh.devices.shape == (2, 2, 1, 2)
    assert mesh.devices.ravel().tolist() == devices


@pytest.mark.parametrize(
    ("sizes_of_axes", "devices", "expected"),
    [
        ([-1, 1, 1, 1], 8, [8, 1, 1, 1]),
        ([-1, 4, 1, 1], 8, [2, 4, 1, 1]),
        ([2, 1, -1, 2], 8, [2, 1, 2, 2]),
        ([2, 4, 1, 1], 8, [2, 4, 1, 1]),
        ([-1, 1, 1, 1], 1, [1, 1, 1, 1]),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes_of_axes, devices, expected):
    assert meshes.resolve(sizes_of_axes, devices) == expected


@pytest.mark.parametrize(
    ("sizes_of_axes", "words"),
    [
        ([3, 1, 1, 1], ["mesh.data=3", "need 3 devices", "there are 8"]),
        ([4, 1, 1, 1], ["mesh.data=4", "need 4 devices", "product is 8"]),
        ([-1, 3, 1, 1], ["mesh.fsdp=3", "3 devices or a multiple", "there are 8"]),
        ([2, 4, 2, 1], ["mesh.group=2", "need 16 devices", "there are 8"]),
        ([-1, -1, 1, 1], ["at most one is -1"]),
        ([1, 0, 1, 8], ["mesh.fsdp=0", "1 or more"]),
        ([1, 1, -2, 1], ["mesh.group=-2", "1 or more"]),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused_in_one_line(sizes_of_axes, words):
    with pytest.raises(ConfigError) as error:
        meshes.resolve(sizes_of_axes, 8)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_examples_are_split_over_data_and_fsdp_alone():
    mesh = meshes.make_mesh(sizes(data=2, fsdp=2, tensor=2), jax.devices())
    batch = jax.device_put(np.arange(24).reshape(8, 3), meshes.batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    parts = {tuple(np.asarray(shard.data)[:, 0]) for shard in batch.addressable_shards}
    assert parts == {(0, 3), (6, 9), (12, 15), (18, 21)}


def test_replicated_values_are_whole_on_every_device():
    mesh = meshes.make_mesh(sizes(data=-1), jax.devices())
    value = jax.device_put(np.arange(5), meshes.replicated(mesh))
    assert meshes.replicated(mesh).spec == PartitionSpec()
    assert [shard.data.shape for shard in value.addressable_shards] == [(5,)] * 8


@pytest.mark.parametrize(("batch", "nearest"), [(6, 8), (1, 4), (13, 12)])
def test_a_batch_that_does_not_split_is_refused_with_the_nearest_that_does(batch, nearest):
    mesh = meshes.make_mesh(sizes(data=2, fsdp=2, tensor=2), jax.devices())
    with pytest.raises(ConfigError) as error:
        meshes.check_batch(mesh, "training.batch_size", batch)
    assert f"training.batch_size={batch} " in str(error.value)
    assert str(error.value).endswith(f"the nearest that does is {nearest}")
    assert meshes.check_batch(mesh, "training.batch_size", nearest) is None


@pytest.mark.parametrize(
    ("parts", "grid", "expected"),
    [
        (1, (1, 4, 8), (1, 1, 1)),
        (2, (1, 4, 8), (1, 2, 1)),
        (8, (1, 4, 8), (1, 4, 2)),
        (32, (1, 4, 8), (1, 4, 8)),
        (6, (1, 3, 4), (1, 3, 2)),
        (2, (2, 3, 4), (2, 1, 1)),
        (2, (1, 3, 4), None),  # half of twelve groups in rows of four is no box
        (64, (1, 4, 8), None),
        (5, (1, 4, 8), None),
    ],
)
def test_groups_are_split_into_boxes_of_pixels(parts, grid, expected):
    assert meshes.tiles(parts, grid) == expected


def test_every_micro_batch_splits_too():
    mesh = meshes.make_mesh(sizes(data=2, fsdp=4), jax.devices())
    assert meshes.check_batch(mesh, "training.batch_size", 64, accumulate=4) is None
    with pytest.raises(ConfigError, match="training.accumulate = 3; the nearest that does is 72"):
        meshes.check_batch(mesh, "training.batch_size", 64, accumulate=3)


def test_a_video_lies_where_its_groups_do():
    mesh = meshes.make_mesh(sizes(group=8), jax.devices())
    video = (1, 1, 16, 32, 1)  # 4 x 8 groups of 4 x 4 pixels
    group = np.arange(32).reshape(4, 8)
    pixels = np.kron(group, np.ones((4, 4), int)).reshape(video)
    placed = jax.device_put(pixels, meshes.video_sharding(mesh, (1, 4, 8)))
    groups = jax.device_put(np.arange(32), jax.sharding.NamedSharding(mesh, PartitionSpec("group")))
    owns = {
        shard.device: set(np.asarray(shard.data).tolist()) for shard in groups.addressable_shards
    }
    for shard in placed.addressable_shards:
        assert set(np.asarray(shard.data).ravel().tolist()) == owns[shard.device]


class Chip:
    """The attributes that mesh_utils reads of a device of a job with several slices."""

    platform = device_kind = "cpu"
    process_index = 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def test_slices_are_replicas():
    chips = [Chip(i, i % 2) for i in range(8)]
    mesh = meshes.make_mesh(sizes(data=-1, fsdp=2), chips)
    assert mesh.devices.shape == (4, 2, 1, 1)
    slice_of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)[:, :, 0, 0]
    assert slice_of.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_slices_that_replicas_do_not_divide_are_refused():
    chips = [Chip(i, i % 2) for i in range(8)]
    with pytest.raises(ConfigError, match="mesh.data=1 must be a multiple of the 2 slices"):
        meshes.make_mesh(sizes(data=1, fsdp=8), chips)
