"""Lets torchvision be imported beside a torch that its compiled part was not built for.

`make setup` copies this file into an environment's site-packages, with a `.pth` line that imports it at interpreter
start, only where a plain `import torchvision` fails with "operator torchvision::nms does not exist": PyPI's torchvision
is linked to CUDA, so beside a CPU-only torch its operators don't load, and its Python part then fails on the two
operators whose fake kernels it registers. Declaring their schemas first is enough for all that needs no compiled
operator (transforms, models, image processors). A `.pth` file reaches every process: pytest, `accelerate launch`,
vLLM workers. Start-up of other programs is not slowed: torch is imported when torchvision is, not before.

If torchvision's own library does load (a working build was installed later), nothing is declared.
MMREASON_NO_TORCHVISION_CURE=1 switches the cure off.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_alive = []  # a torch Library object takes its operators along when it is collected


def declare(package: Path) -> None:
    """Declare the schemas, unless torchvision's own library loads and brings the operators itself."""
    try:
        import torch
    except ImportError:
        return  # torchvision's own import says so better
    for library in sorted(package.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except (OSError, ImportError):
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return
    torchvision = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        torchvision.define(schema)
    _alive.append(torchvision)


class _TorchvisionFinder:
    """Finds torchvision as usual, and has `declare` run right before its code does; then takes itself away."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "torchvision":
            return None
        spec: ModuleSpec | None = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return spec
        package, run = Path(spec.origin).parent, spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            declare(package)
            run(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("MMREASON_NO_TORCHVISION_CURE") != "1":
    sys.meta_path.insert(0, _TorchvisionFinder())
