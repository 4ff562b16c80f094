"""Stages through datatrove's executors: local processes, Slurm job arrays, a Ray cluster."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_builders._corpus.pipeline import Places, Stage
from data_builders._corpus.steps import tie_children
from data_builders.building.progress import duration
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError, MMReasonError

Say = Callable[[str], None]
_OURS = (
    "pipeline",
    "tasks",
    "workers",
    "logging_dir",
    "depends",
    "depends_job_id",
    "skip_completed",
    "job_name",
    "self",
)
_PRELOADED = (
    "datatrove.executor.local", "datatrove.pipeline.dedup", "datatrove.pipeline.filters", "spacy", "py3langid",
    "data_builders._corpus.rules", "data_builders._corpus.dedup", "data_builders._corpus.steps",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `data_builders`, wherever a worker is started."""


# --------------------------------------------------------------------------------------------------------------------
# Local and Ray: stage after stage


def run_stages(
    stages: Sequence[Stage],
    places: Places,
    start: Callable[[Stage], Any],
    say: Say,
    *,
    sizes: Sequence[int] = (),
    progress: bool = False,
    after: Callable[[Stage], None] = lambda _: None,
) -> None:
    """Run stages one after another.

    Args:
        start: makes a stage's executor.
        sizes: documents of each task, for the rate.
        progress: show a bar.
        after: called behind each stage.

    Raises: MMReasonError: what a block raised, or that it can't write; what is done stays done.
    """
    for number, stage in enumerate(stages, start=1):
        label = f"{number}/{len(stages)} {stage.name}"
        with _Watch(stage, places, label, sizes if len(sizes) == stage.tasks else (), say, bar=progress):
            try:
                with _console(places.build / "console.log"), tie_children():
                    executor = start(stage)
                    executor.run()
            except MMReasonError:
                raise
            except OSError as error:
                raise MMReasonError(
                    f"{places.out}: stage {stage.name}: {error.strerror or error}"
                    f"{'' if error.filename is None else f' ({error.filename})'}. Make room or give permission there; "
                    "the same command goes on where it ended"
                ) from error
            except Exception as error:
                logs = places.stage(stage.name) / "logs"
                raise MMReasonError(
                    f"stage {stage.name} broke: {type(error).__name__}: {error}. Its logs: {logs}; the same command "
                    "goes on where it ended"
                ) from error
        missing = executor.get_incomplete_ranks(skip_completed=True)
        if missing:  # Ray's executor tells of failed tasks in its log only
            logs = places.stage(stage.name) / "logs"
            raise MMReasonError(
                f"stage {stage.name}: {len(missing)} of {stage.tasks} tasks did not end; see {logs}. The same command "
                "does them again"
            )
        after(stage)


def local_executor(stage: Stage, places: Places, workers: int) -> Any:
    """datatrove's executor of local processes."""
    import multiprocess
    from datatrove.executor import LocalPipelineExecutor

    workers = min(workers, stage.tasks)
    if workers > 1:  # each stage's workers are then forked with their modules loaded
        multiprocess.get_context("forkserver").set_forkserver_preload(list(_PRELOADED))
    return LocalPipelineExecutor(
        stage.steps(), tasks=stage.tasks, workers=workers, logging_dir=str(places.stage(stage.name))
    )


def ray_executor(stage: Stage, places: Places, workers: int, settings: Mapping[str, Any]) -> Any:
    """datatrove's Ray executor. Args: settings: its arguments, and `address` of the cluster. Raises: ConfigError."""
    try:
        import ray
        from datatrove.executor import RayPipelineExecutor
    except ImportError:
        raise ConfigError("--executor ray needs Ray: pip install 'mmreason[ray]'") from None
    given = dict(settings)
    address = given.pop("address", None)
    check_settings("ray", given, RayPipelineExecutor)
    if not ray.is_initialized():
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            include_dashboard=False,
            log_to_driver=False,
        )
    return RayPipelineExecutor(
        stage.steps(), tasks=stage.tasks, workers=min(workers, stage.tasks), logging_dir=str(places.stage(stage.name)),
        **given,
    )  # fmt: skip


def check_settings(name: str, given: Mapping[str, Any], kind: Any) -> None:
    """Raises: ConfigError: an argument that an executor doesn't have, or that is set here."""
    known = [one for one in inspect.signature(kind.__init__).parameters if one not in _OURS]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"--{name}.{key}: no such setting.{did_you_mean(key, known)} There are: {', '.join(known)}"
            )


@contextlib.contextmanager
def _console(path: Path) -> Iterator[None]:
    """What datatrove logs to the terminal goes to a file; processes started inside keep it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        with contextlib.redirect_stderr(os.fdopen(os.dup(2), "w", buffering=1)) as log, log:
            _log_to(log)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        _log_to(None)


def _log_to(stream: Any) -> None:
    from loguru import logger

    logger.remove()
    if stream is not None:
        logger.add(stream)


class _Watch:
    """Tells how far a stage is, from the marks of its finished tasks."""

    def __init__(self, stage: Stage, places: Places, label: str, sizes: Sequence[int], say: Say, *, bar: bool) -> None:
        self._folder, self._tasks, self._label = places.stage(stage.name) / "completions", stage.tasks, label
        self._sizes, self._say, self._has_bar = sizes, say, bar and stage.tasks > 1
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        self._before = self._done()
        if len(self._before) < self._tasks:
            self._thread.start()

    def __exit__(self, kind: Any, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is None and len(self._before) < self._tasks:
            self._say(self._state())

    def _done(self) -> set[int]:
        return {int(mark.name) for mark in self._folder.iterdir()} if self._folder.is_dir() else set()

    def _state(self) -> str:
        done, seconds = self._done(), time.monotonic() - self._begun
        new = done - self._before
        documents = sum(self._sizes[rank] for rank in new) if self._sizes else 0
        rate = f", {documents:,} documents, {documents / seconds:,.0f}/s" if documents else ""
        left = ""
        if new and len(done) < self._tasks:
            left = f", {duration(seconds / len(new) * (self._tasks - len(done)))} left"
        return f"{self._label}: {len(done)}/{self._tasks} tasks in {duration(seconds)}{rate}{left}"

    def _watch(self) -> None:
        if self._has_bar:
            self._watch_bar()
            return
        while not self._end.wait(30):
            self._say(self._state())

    def _watch_bar(self) -> None:
        from tqdm import tqdm

        out = os.fdopen(os.dup(2), "w")
        with out, tqdm(
            total=self._tasks, initial=len(self._before), desc=self._label, unit="task", leave=False, file=out
        ) as bar:  # fmt: skip
            while not self._end.wait(0.5):
                bar.n = len(self._done())
                bar.set_postfix_str(self._state().partition(" tasks in ")[2], refresh=False)
                bar.refresh()


# --------------------------------------------------------------------------------------------------------------------
# Slurm: all stages at once, each waiting for the one before


def submit_stages(stages: Sequence[Stage], places: Places, workers: int, settings: Mapping[str, Any], say: Say) -> None:
    """Hand all stages to Slurm as job arrays, each of which waits for the one before; returns at once.

    Args: workers: tasks of a stage at once. settings: of datatrove's Slurm executor; `time` and `partition` are needed.
    Raises: ConfigError, MMReasonError.
    """
    from datatrove.executor import SlurmPipelineExecutor

    check_settings("slurm", settings, SlurmPipelineExecutor)
    for key in ("time", "partition"):
        if key not in settings:
            raise ConfigError(f"--executor slurm needs --slurm.{key}, e.g. --slurm.time 04:00:00 --slurm.partition cpu")
    if shutil.which("sbatch") is None:
        raise ConfigError("--executor slurm: there is no `sbatch` here; run this on a login node of the cluster")
    running = running_jobs(places)
    if running:
        say(f"jobs of this folder are still queued or running: {', '.join(running)}; nothing is submitted")
        return
    # Slurm takes away what waits for a job that has failed; else it would wait for ever.
    arguments = {"kill-on-invalid-dep": "yes", **settings.get("sbatch_args", {})}
    given = {"env_command": job_environment(), **settings, "sbatch_args": arguments}
    last: Any = None
    jobs: dict[str, str] = {}
    try:
        with _console(places.build / "console.log"):
            for stage in stages:
                last = SlurmPipelineExecutor(
                    stage.steps(), tasks=stage.tasks, workers=min(workers, stage.tasks), depends=last,
                    job_name=f"corpus_{stage.name}", logging_dir=str(places.stage(stage.name)), **given,
                )  # fmt: skip
                last.run()
                if last.job_id not in (None, -1):
                    jobs[stage.name] = str(last.job_id)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MMReasonError(
            f"sbatch refused stage {stage.name}: {error}; see {places.build / 'console.log'}"
        ) from error
    _jobs_file(places).write_text(json.dumps(jobs), encoding="utf-8")
    if not jobs:
        say("all stages are done")
    for name, job in jobs.items():
        say(f"{name}: job {job}, {places.stage(name) / 'launch_script.slurm'}")


def job_environment() -> str:
    """The lines that give a job this Python and this `data_builders`."""
    path = shlex.quote(str(Path(sys.executable).parent))
    return f'export PATH={path}:"$PATH"\nexport PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}'


def running_jobs(places: Places) -> list[str]:
    """The jobs submitted for this folder that Slurm still knows; none where it can't be asked."""
    file = _jobs_file(places)
    if not file.is_file() or shutil.which("squeue") is None:
        return []
    jobs = list(json.loads(file.read_text(encoding="utf-8")).values())
    if not jobs:
        return []
    asked = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return sorted(set(done.stdout.split()) & set(jobs))


def _jobs_file(places: Places) -> Path:
    return places.build / "slurm_jobs.json"
