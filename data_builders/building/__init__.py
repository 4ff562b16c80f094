"""What all builders share: the way they run, shards, manifests, costs. A builder of your own imports from here."""

from data_builders.building.build import Builder, BuildOptions, Drop, Made, SourceNote, Task, Tools, option
from data_builders.building.runner import run, run_main
from data_builders.building.sources import read_source

__all__ = [
    "BuildOptions",
    "Builder",
    "Drop",
    "Made",
    "SourceNote",
    "Task",
    "Tools",
    "option",
    "read_source",
    "run",
    "run_main",
]
