"""Parts of several processes, all played by one that pretends to own some of the devices."""

import types

import jax
import numpy as np
import pytest

from snapvideo_jax.parallel import batches
from snapvideo_jax.parallel import mesh as meshes


class Host(jax.sharding.Sharding):
    """A sharding as one of several processes sees it: with some of the devices addressable."""

    def __init__(self, sharding, own):
        self._sharding, self._own = sharding, own

    def check_compatible_aval(self, shape):
        """Any shape will do."""

    def addressable_devices_indices_map(self, shape):
        everything = self._sharding.devices_indices_map(shape)
        return {device: index for device, index in everything.items() if device in self._own}


def whole(sharding, *shape):
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)


def mesh_of(devices=None, **sizes):
    return meshes.make_mesh(
        dict(data=1, fsdp=1, group=1, tensor=1) | sizes, devices or jax.devices()
    )


def test_a_process_makes_the_rows_that_its_devices_hold():
    sharding = meshes.batch_sharding(mesh_of(data=4, tensor=2))
    hosts = [Host(sharding, jax.devices()[i : i + 4]) for i in (0, 4)]
    assert [batches.part(whole(host, 8, 5)).rows for host in hosts] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_rows_follow_the_mesh_and_not_the_number_of_the_process():
    order = jax.devices()[::2] + jax.devices()[1::2]  # as a torus may have it
    sharding = meshes.batch_sharding(mesh_of(order, data=8))
    assert batches.part(whole(Host(sharding, jax.devices()[:4]), 8)).rows == (0, 1, 4, 5)


def test_a_process_makes_only_the_pixels_of_its_groups():
    sharding = meshes.video_sharding(mesh_of(group=8), (1, 4, 4))
    part = batches.part(whole(Host(sharding, jax.devices()[4:6]), 2, 3, 16, 32, 3))
    assert part.rows == (0, 1)
    assert part.box == (slice(0, 3), slice(8, 12), slice(0, 32), slice(0, 3))


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
@pytest.mark.parametrize("sizes", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(group=8)])
def test_parts_join_to_the_array_they_are_of(sizes, order):
    shape = (8, 2, 8, 16, 3)
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    sharding = meshes.video_sharding(mesh_of(jax.devices()[::order], **sizes), (1, 2, 4))
    joined = batches.join({"video": whole(sharding, *shape)}, {"video": x})["video"]
    assert joined.sharding == sharding
    np.testing.assert_array_equal(joined, x)


def test_a_process_with_gaps_between_its_rows_gives_each_device_its_own():
    order = jax.devices()[::2] + jax.devices()[1::2]
    sharding = meshes.batch_sharding(mesh_of(order, data=8))
    x = np.arange(16).reshape(8, 2)
    host = Host(sharding, jax.devices()[:4])
    rows = batches.part(whole(host, *x.shape)).rows
    pieces = {}

    def take(shape, sharding, piece):
        indices = host.addressable_devices_indices_map(shape)
        pieces.update({device.id: piece(index).tolist() for device, index in indices.items()})
        return jax.numpy.zeros(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_array_from_callback", take)
        batches.join({"x": whole(host, *x.shape)}, {"x": x[list(rows)]})
    expected = {
        d.id: x[i[0]].tolist() for d, i in host.addressable_devices_indices_map((8, 2)).items()
    }
    assert pieces == expected


def shards(monkeypatch, processes, **sizes):
    """Returns the shard of each of several processes, which have as many devices each."""
    each = 8 // processes

    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    devices = [Device(i // each) for i in range(8)]
    places = meshes.batch_sharding(mesh_of(**sizes)).devices_indices_map
    indices = lambda shape: dict(zip(devices, places(shape).values(), strict=True))
    monkeypatch.setattr(
        meshes, "batch_sharding", lambda mesh: types.SimpleNamespace(devices_indices_map=indices)
    )
    result = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        result.append(tuple(batches.shard(mesh_of(**sizes))))
    return result


def test_processes_of_whole_videos_have_examples_of_their_own(monkeypatch):
    assert shards(monkeypatch, 2, data=4, group=2) == [(0, 2, True, 2), (1, 2, True, 2)]


def test_processes_that_split_a_video_share_its_examples_and_one_owns_them(monkeypatch):
    assert shards(monkeypatch, 4, data=2, group=4) == [
        (0, 2, True, 1),
        (0, 2, False, 1),
        (1, 2, True, 1),
        (1, 2, False, 1),
    ]
