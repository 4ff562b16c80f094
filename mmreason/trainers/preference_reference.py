"""The reference of a preference run: the policy without its adapter, a second model, or log-probabilities in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from mmreason._adapters import adapter_settings
from mmreason._files import write_whole
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.preference_arguments import PreferenceOptions
from mmreason.trainers.preference_data import PairRows
from mmreason.types import ConfigError

FOLDER = "reference"
"""In a run's output folder: log-probabilities that were taken before training."""
PART_ROWS = 1024
"""Pairs of one file: what a kill while they are computed costs at most."""
_EDGE = 1 << 20


def check_reference(model: ModelArguments, args: PreferenceOptions) -> None:
    """Refuse what has no reference. Raises ConfigError."""
    settings = adapter_settings(model)
    if not args.needs_reference or settings is None or settings.path is None or args.ref_model_name_or_path is not None:
        return
    if not args.precompute_ref_log_probs:
        raise ConfigError(
            f"adapter.path={settings.path}: the reference is the model with this adapter as it is now, which is "
            "trained; set precompute_ref_log_probs: true, or name a merged copy as ref_model_name_or_path"
        )


def load_reference(
    model: ModelArguments, args: PreferenceOptions, processor: Any, needed: bool = True
) -> tuple[Any, bool]:
    """(a second model or None, whether the reference is the policy with its adapter switched off).

    Args: processor: the policy's. needed: False where all log-probabilities are in a file already.

    Raises: ConfigError: a reference whose tokenizer gives other ids.
    """
    from mmreason.models.loading import load_policy_model, load_processor

    if not args.needs_reference:
        return None, False
    settings = adapter_settings(model)
    if args.ref_model_name_or_path is not None:
        named = ModelArguments(
            model_name_or_path=args.ref_model_name_or_path,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
        check_same_vocabulary(processor, load_processor(named), args.ref_model_name_or_path)
        return (load_policy_model(named) if needed else None), False
    if settings is not None:
        return None, settings.path is None
    if args.precompute_ref_log_probs:
        return None, False  # the policy itself, before its first step
    return load_policy_model(model), False


def check_same_vocabulary(policy: Any, reference: Any, name: str) -> None:
    """Raises: ConfigError where a token has another id, naming one."""
    mine, other = (getattr(one, "tokenizer", one).get_vocab() for one in (policy, reference))
    if mine == other:
        return
    token = next(token for token in sorted(mine.keys() | other.keys()) if mine.get(token) != other.get(token))
    raise ConfigError(
        f"ref_model_name_or_path={name!r} has another vocabulary than the policy ({len(other)} tokens, {len(mine)} "
        f"here; {token!r} is {other.get(token, 'unknown')} there, {mine.get(token, 'unknown')} here): "
        "log-probabilities of other tokens can't be compared. Name a reference with the policy's tokenizer"
    )


def stores_of(model: ModelArguments, args: PreferenceOptions, sets: Mapping[str, PairRows]) -> list[ReferenceStore]:
    """A store for each set of pairs; none where nothing is precomputed."""
    if not args.precompute_ref_log_probs:
        return []
    return [ReferenceStore(args.output_dir, model, args, rows, name) for name, rows in sets.items()]


class ReferenceStore:
    """Log-probabilities of a set's pairs under the reference, in files that hold `PART_ROWS` pairs each.

    Args:
        output_dir: of the run. model, args: the run's options. rows: the pairs; their tokens and pictures are part of
            the files' key. name: of the set.
    """

    def __init__(
        self, output_dir: str | Path, model: ModelArguments, args: PreferenceOptions, rows: PairRows, name: str
    ) -> None:
        key = {
            "rows": rows.digest(),
            "reference": args.ref_model_name_or_path or model.model_name_or_path,
            "weights": _weights_key(args.ref_model_name_or_path or model.model_name_or_path or ""),
            "revision": None if args.ref_model_name_or_path else model.model_revision,
            "adapter": None if args.ref_model_name_or_path else _adapter_key(model),
            "numbers": [model.dtype, args.bf16, model.attn_implementation],
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.rows, self.name = rows, name
        self.folder = Path(output_dir) / FOLDER / f"{name}-{digest}"

    @property
    def parts(self) -> list[range]:
        """The pairs of each file."""
        count = len(self.rows)
        return [range(start, min(start + PART_ROWS, count)) for start in range(0, count, PART_ROWS)]

    def read(self, part: range) -> np.ndarray[Any, Any] | None:
        """(len(part), 2) float32, None where there is no whole file."""
        path = self._path(part)
        if not path.is_file():
            return None
        values = np.frombuffer(path.read_bytes(), dtype="<f4")
        return values.reshape(-1, 2).copy() if len(values) == 2 * len(part) else None

    def is_complete(self, *, is_main: bool) -> bool:
        """Whether nothing has to be computed, as the main process finds it. Collective."""
        (found,) = broadcast_object_list([is_main and all(self.read(part) is not None for part in self.parts)])
        return bool(found)

    def fill(self, compute: Callable[[range], np.ndarray[Any, Any]], *, is_main: bool, may_compute: bool) -> None:
        """Give the rows their reference, computing the parts that are missing. Collective.

        Args:
            compute: (len(part), 2) float32 of a part's pairs, on all processes.
            may_compute: whether the model at hand still is the reference.

        Raises: ConfigError: parts are missing, and the reference is gone.
        """
        from tqdm.auto import tqdm

        found: list[np.ndarray[Any, Any]] = []
        bar = tqdm(self.parts, desc=f"reference log-probs, {self.name}", unit="part", disable=not is_main)
        for part in bar:
            (values,) = broadcast_object_list([self.read(part) if is_main else None])  # disks may differ
            if values is None:
                if not may_compute:
                    raise ConfigError(
                        f"{self.folder}: the reference's log-probabilities are not all there, and the policy is no "
                        "longer what it was before training. Put the files back, or start over with "
                        "--overwrite_output_dir"
                    )
                values = compute(part).astype("<f4")
                if is_main:
                    write_whole(self._path(part), values.tobytes())
            found.append(values)
        self.rows.reference = np.concatenate(found)

    def _path(self, part: range) -> Path:
        return self.folder / f"{part.start:09d}.f32"


def _adapter_key(model: ModelArguments) -> Mapping[str, Any] | None:
    settings = adapter_settings(model)
    return None if settings is None or settings.path is None else {"path": settings.path, **_weights_key(settings.path)}


def _weights_key(source: str | Path) -> dict[str, Any]:
    """Sizes and both ends of a folder's weight files: enough to notice another model under the same name."""
    found: dict[str, Any] = {}
    for path in sorted(Path(source).glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
        found[path.name] = [size, digest.hexdigest()]
    return found
