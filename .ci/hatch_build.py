"""Build hook: `mmreason build` works from a wheel, yet no top-level `data_builders` or `eval` lands in site-packages.

The folders travel inside the package, and the CLI puts mmreason/_bundled on the path of that one process. An editable
install bundles nothing: there the CLI finds the folders in the checkout.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLED = ("data_builders", "eval")


class BundleHook(BuildHookInterface):  # type: ignore[misc, type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            for folder in BUNDLED:
                if (Path(self.root) / folder).is_dir():
                    build_data["force_include"][folder] = f"mmreason/_bundled/{folder}"
