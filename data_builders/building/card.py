"""The dataset card: a YAML header that `datasets` and the hub read, and the manifest in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_builders.building.manifest import UNKNOWN
from mmreason._values import Dumper

_HUB_LICENSES = (
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "odc-by", "odbl", "bsd-3-clause", "gpl-3.0",
)  # fmt: skip
"""Names by which the hub knows a licence, of those that data sets often have."""


def make_card(manifest: Mapping[str, Any], name: str, description: str, *, synthetic: bool = True) -> str:
    """README.md.

    Args:
        name: of the folder.
        description: of the builder, one sentence.
        synthetic: the rows were made, not only chosen and cleaned.
    """
    import yaml

    split, counts = manifest["split"], manifest["counts"]
    header: dict[str, Any] = {
        "pretty_name": name,
        "license": _license(manifest),
        "tags": [*(["synthetic"] if synthetic else []), "mmreason"],
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": f"{split}-*.parquet"}]}],
    }
    lines = [
        "---", yaml.dump(header, Dumper=Dumper, sort_keys=False, allow_unicode=True).strip(), "---", "",
        f"# {_line(name)}", "", _line(description), "",
        f"{counts['rows']['kept']:,} rows of {counts['tasks']['done']:,} tasks, made by `{manifest['builder']}` "
        f"(version {manifest['builder_version']}, mmreason {manifest['mmreason']}, seed {manifest['seed']}).",
    ]  # fmt: skip
    if not manifest["complete"]:
        lines += [
            "",
            f"**Not complete**: {manifest.get('stopped') or 'some tasks failed; the same command asks again'}.",
        ]
    lines += ["", "## Sources", ""]
    lines += ["| source | rows | licence | revision | SHA-256 |", "|---|---|---|---|---|"]
    for one in manifest["sources"]:
        cells = (one["name"], f"{one['rows']:,}", one["license"], one["revision"] or "", one["sha256"][:16])
        lines.append(f"| {' | '.join(map(_line, cells))} |")
    lines += ["", "## What was left out", ""]
    lines += [f"- {_line(reason)}: {count:,}" for reason, count in counts["dropped"].items()] or ["Nothing."]
    sets = manifest["decontamination"]["sets"]
    against = ", ".join(_line(one["name"]) for one in sets) or "none"
    lines += ["", f"Test sets whose questions no row may hold: {against}.", ""]
    lines += ["`manifest.json` has the configuration, all counts, the cost, and the SHA-256 of each file.", ""]
    return "\n".join(lines)


def _license(manifest: Mapping[str, Any]) -> str:
    """The sources' licence, where they have one and the hub knows it, else unknown or other."""
    found = {str(one["license"]) for one in manifest["sources"]}
    if not found or UNKNOWN in found:
        return UNKNOWN
    (name, *more) = (text.lower().replace(" ", "-") for text in found)
    return name if not more and name in _HUB_LICENSES else "other"


def _line(text: Any) -> str:
    """A text in one line that ends no table's cell and opens no mark-up."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
