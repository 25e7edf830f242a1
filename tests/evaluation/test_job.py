"""Jobs: the same batches always, nothing measured twice, and shares that make a whole."""

import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.evaluation import job
from snapvideo_jax.evaluation.job import Job
from snapvideo_jax.sampling.output_folder import WorkShare


def alone(folder, total=7, batch_size=3):
    return Job(folder, total, batch_size, WorkShare(0, 1))


def measure(rows):
    return {"a": np.array([[row, row**2] for row in rows]), "b": np.float32(rows) / 3}


def quiet(done, of):
    pass


def recorded(batches):
    return lambda rows: batches.append(list(rows)) or measure(rows)


def test_rows_come_in_order_with_the_bits_that_were_measured(tmp_path):
    batches, reports = [], []
    measured = job.run(alone(tmp_path), recorded(batches), lambda *done: reports.append(done))
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert reports == [(3, 7), (6, 7), (7, 7)]
    assert set(measured) == {"a", "b"}
    for name, expected in measure(range(7)).items():
        assert measured[name].dtype == expected.dtype
        np.testing.assert_array_equal(measured[name], expected)


def test_a_stopped_job_measures_only_what_it_lacks_in_the_same_batches(tmp_path):
    def stopped(rows):
        if 6 in rows:
            raise KeyboardInterrupt
        return measure(rows)

    with pytest.raises(KeyboardInterrupt):
        job.run(alone(tmp_path), stopped, quiet)
    (tmp_path / "00000.0.npz").write_bytes(b"damaged")
    batches, reports = [], []
    measured = job.run(alone(tmp_path), recorded(batches), lambda *done: reports.append(done))
    assert batches == [[0, 1, 2], [6]] and reports == [(3, 4), (4, 4)]
    np.testing.assert_array_equal(measured["a"], measure(range(7))["a"])
    batches.clear()
    job.run(alone(tmp_path), recorded(batches), quiet)
    assert batches == []


def test_shares_make_the_whole_and_a_share_that_is_through_repeats_its_first_video(tmp_path):
    batches = []
    for index in (1, 0):  # the first process reads the parts of all
        part = Job(tmp_path, 7, 2, WorkShare(index, 2))
        assert part.rounds == 2
        if index:  # alone it cannot read the whole
            with pytest.raises(StorageError, match="holds 3 of 7 videos; every process of the job"):
                job.run(part, recorded(batches), quiet)
        else:
            measured = job.run(part, recorded(batches), quiet)
    assert batches == [[1, 3], [5], [0, 2], [4, 6]]
    np.testing.assert_array_equal(measured["a"], measure(range(7))["a"])
    one = Job(tmp_path / "one", 2, 2, WorkShare(2, 3))
    with pytest.raises(StorageError):
        job.run(one, recorded(batches), quiet)
    assert batches[-1] == [0]  # it computes along, and writes none


def test_processes_that_make_a_video_together_write_it_one_time(tmp_path):
    with pytest.raises(StorageError, match="holds 0 of 7"):
        job.run(Job(tmp_path, 7, 3, WorkShare(0, 1, writes=False)), measure, quiet)


def test_a_folder_of_another_job_is_refused_by_what_differs(tmp_path):
    job.claim(alone(tmp_path), {"seed": 1})
    job.claim(alone(tmp_path), {"seed": 1})
    with pytest.raises(ConfigError, match=r"another evaluation \(seed 1 and 2\); finish that one"):
        job.claim(alone(tmp_path), {"seed": 2})
    with pytest.raises(ConfigError, match="batch_size 3 and 4"):
        job.claim(alone(tmp_path, batch_size=4), {"seed": 1})
    (tmp_path / job.JOB).write_text("{")
    with pytest.raises(StorageError, match=r"job\.json: is damaged; delete"):
        job.claim(alone(tmp_path), {"seed": 1})
