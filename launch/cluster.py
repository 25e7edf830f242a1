"""Joining the other processes of a job, and leaving it with them (docs/hosts.md)."""

import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
from absl import flags

from launch import number_flags, screen
from snapvideo_jax.errors import ConfigError, UserError
from snapvideo_jax.kinds import Whole
from snapvideo_jax.parallel import hosts, job_end

# How a process finds the others of its job, where no cluster says so.
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 in a job of many processes."
)
NUM_PROCESSES = number_flags.define("num_processes", None, Whole(1, 2**20), "In the job.")
PROCESS_ID = number_flags.define("process_id", None, Whole(0, 2**20), "Of this process, from 0.")
JOIN = 300  # seconds until the processes of a job must have met
LEAVE = 10  # seconds for the others to end with this one
NAMING = (job_end.SILENT + 3) * job_end.POLL
GRACE = 2  # seconds that a process has to end by itself, once another one has announced its end
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # what JAX reads
# In JAX's errors.
LOST = re.compile("Connection (closed|reset)|Broken pipe|Socket closed|Gloo context init.* failed")
_leaving = threading.Event()  # this process ends by itself
_ending = threading.Event()  # this process ends because another one does


def join() -> None:
    """Joins the other processes of the job, where flags or the cluster say that there are any.

    To be called before anything uses a device. Raises ConfigError if that cannot work, and
    UserError, whose exit code lets launchers start the job again, if it does not work this time;
    ends the process likewise if the others do not come within JOIN seconds.
    """
    in_cluster = started_by_cluster(os.environ, jax.config.values["jax_platforms"] or "")
    job = job_from_flags(in_cluster)
    if job is None and not in_cluster:
        return
    # JAX's own handler swallows SIGTERM, and misses one that comes before a resumed run's first
    # step: the training loop agrees on a step by itself, and other commands just end.
    jax.config.update("jax_enable_preemption_service", False)
    limit = threading.Timer(JOIN, _give_up)
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(**job or {}, initialization_timeout=JOIN + 60)
        jax.devices()
    except (RuntimeError, ValueError, OSError) as error:
        kind = ConfigError if isinstance(error, ValueError) else UserError
        raise kind(f"cannot join the job: {screen.one_line(error)}") from error
    finally:
        limit.cancel()
    job_end.watch(_leave_with)


def leave(code: int, immediately: bool = False, why: str = "") -> NoReturn:
    """Exits with `code`, and without an orderly end if this process of the job ends alone.

    There JAX would wait for the other processes, and they wait for this one's next step.
    immediately: in any case; XLA would first finish what it still compiles. why: for the other
    processes of the job, which then end with the same code.
    """
    _leaving.set()
    alone = False
    if jax.distributed.is_initialized():
        if why:
            job_end.announce(code, why)
        alone = not hosts.all_leave(LEAVE) or job_end.is_forced()
        if code == 0:
            job_end.announce_leaving()
    if immediately or alone:
        _exit_hard(code)
    sys.exit(code)


def _leave_with(code: int, why: str, is_lost: bool) -> None:
    """Ends this process because another one announced its end or is lost, unless it ends itself.

    Called in a thread: the main one may wait for the other process for ever.
    """
    if _leaving.wait(0 if is_lost else GRACE):
        return
    _ending.set()
    screen.print_error(UserError(why))
    if is_lost and hosts.is_first():
        time.sleep(job_end.POLL)  # until the others have heard it
    elif not is_lost:
        job_end.all_leave_forced(LEAVE)
    _exit_hard(code)


def _exit_hard(code: int) -> NoReturn:
    """Ends this process; the first of a job, where the coordinator is, a little after the others.

    JAX aborts a process that misses the coordinator, with a stack trace.
    """
    sys.stdout.flush()
    if jax.distributed.is_initialized() and hosts.is_first():
        time.sleep(1)
    os._exit(code)


def lost(error: BaseException) -> bool:
    """Returns whether `error` says that another process of the job has ended.

    Where that process said why, or which one it is turns out within NAMING seconds, the thread that
    heard it ends this one, and this never returns.
    """
    is_jax = isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized()
    is_lost = is_jax and LOST.search(str(error)) is not None
    if _ending.wait(NAMING if is_lost else 0):
        threading.Event().wait()
    return is_lost


def job_from_flags(in_cluster: bool) -> dict[str, Any] | None:
    """Returns what flags and $JAX_COORDINATOR_ADDRESS say of the job; None where they say nothing.

    in_cluster: the cluster says the rest, so its $JAX_COORDINATOR_ADDRESS alone is no job of flags.
    """
    address = COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, index = NUM_PROCESSES.value, PROCESS_ID.value
    if (COORDINATOR.value if in_cluster else address, count, index) == (None, None, None):
        return None
    if address is None or count is None or index is None:
        raise ConfigError(
            "a job of many processes needs all of --coordinator=HOST:PORT (of process 0; or "
            "$JAX_COORDINATOR_ADDRESS), --num_processes=N and --process_id=I"
        )
    if index >= count:
        raise ConfigError(f"--process_id={index} must be below --num_processes={count}")
    port = re.fullmatch(r".+:(\d{1,5})", address)
    if not port or not 0 < int(port[1]) < 2**16:
        raise ConfigError(f"--coordinator={address} must be HOST:PORT")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def started_by_cluster(environment: Mapping[str, str], platforms: str) -> bool:
    """Returns whether a cluster that JAX knows started this process; no network is used.

    platforms: the setting jax_platforms, in which JAX writes "tpu" where there is one.
    """
    if all(f"SLURM_{name}" in environment for name in SLURM):
        return int(environment["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if "tpu" not in platforms:
        return False
    if int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:  # each of which may be of one host
        return True
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return "," in workers if workers else "TPU_SKIP_MDS_QUERY" not in environment


def _give_up() -> None:
    """Ends the process while JAX waits: its own way is an abort with a stack trace."""
    others = f"the {NUM_PROCESSES.value} processes" if NUM_PROCESSES.value else "all processes"
    screen.print_error(
        UserError(
            f"waited {JOIN} s for {others} of the job to meet at "
            f"{COORDINATOR.value or 'the coordinator'}; start them all, and let its port be "
            "reached from every host (JAX_PLATFORMS=cpu for a command on one host of a TPU pod)"
        )
    )
    os._exit(UserError.exit_code)
