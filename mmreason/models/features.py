"""A store of what a frozen vision tower makes of images, so that each is encoded once and not once an epoch.

    store = FeatureStore("features", max_gib=100)
    features = store.open(model, processor)
    model(input_ids, **features.inputs(digests, processed))      # image_features in place of pixel_values

Features are kept under everything that they depend on: the image's pixels, the settings of the image processor, and the
tower with its weights, dtype and arithmetic. So a store may serve many models, nothing in it has to be thrown away when
one changes, and an augmented image is another image (which is right, but of no use). It holds what the tower gave, bit
for bit, unless a smaller dtype is asked for.

That equals what the tower would give again as far as the tower itself repeats: its last bits may depend on the machine,
and on some machines on how many views go through it together.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmreason._files import write_whole
from mmreason.models._feature_shards import Shards
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.types import ConfigError

_FORMAT = 1  # of what is stored; a change makes old features unused
_LIBRARIES = {"timm": "timm", "open_clip": "open_clip_torch", "hf": "transformers"}


class FeatureStore:
    """Features of any number of towers in one folder.

    Args:
        folder: made if missing. Any number of processes may use it at once; between machines it needs a file system
            with file locks (NFS and Lustre have them unless they are mounted without).
        max_gib: bound of its size on disk. Shards unused since this process opened the store make room, the longest
            unused first; if none is left, no more features are stored.

    Raises:
        ConfigError: the folder can't be made, or max_gib is not positive.
    """

    def __init__(self, folder: str | Path, max_gib: float = 32.0) -> None:
        if not max_gib > 0:
            raise ConfigError(f"the feature store's max_gib={max_gib} must be above 0")
        self.folder, self.max_bytes = Path(folder), int(max_gib * 2**30)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"feature store {folder}: {error.strerror}; name a folder that can be made") from error

    def open(
        self, model: Any, processor: Any, *, dtype: torch.dtype | None = None, autocast: torch.dtype | None = None
    ) -> TowerFeatures:
        """The features of a model's tower.

        Args:
            model: a composed model, wrapped or with adapters, its tower frozen.
            processor: its processor.
            dtype: what features are kept and given in; None: as the tower gives them, exact.
            autocast: dtype of the autocast under which the tower would run in the model's forward; None: none.

        Raises:
            ConfigError: no composed model, or a tower whose features can't be kept: see `TowerFeatures`.
        """
        return TowerFeatures(self, model, processor, dtype=dtype, autocast=autocast)

    def shards(self, about: Mapping[str, Any]) -> Shards:
        """The part of the store for what `about` describes; a file beside it says it to people."""
        text = json.dumps(about, sort_keys=True, indent=1, default=str)
        name = "tower-" + hashlib.sha256(text.encode()).hexdigest()[:32]
        shards = Shards(self.folder, name, self.max_bytes)
        if not (self.folder / name / "about.json").is_file():
            write_whole(self.folder / name / "about.json", text)
        return shards


class NoStore:
    """Keeps nothing: features live as long as what asked for them (`mmreason.data.visual.Visuals`) holds them."""

    def open(self, model: Any, processor: Any, *, autocast: torch.dtype | None = None) -> TowerFeatures | None:
        """As `FeatureStore.open`; None where the tower's features can't be kept."""
        try:
            features = TowerFeatures(self, model, processor, autocast=autocast)
        except ConfigError:
            return None
        return None if any(random_parts(features.model.vision_tower)) else features

    def shards(self, about: Mapping[str, Any]) -> NoStore:
        return self

    def get(self, digests: Iterable[str]) -> dict[str, Tensor]:
        return {}

    def put(self, digest: str, features: Tensor) -> None:
        pass

    def close(self) -> None:
        pass


class TowerFeatures:
    """The features of one tower: from the store where it has them, from the tower where it hasn't.

    Made by `FeatureStore.open`. Images are named by `mmreason.data.images.image_digest`: size and pixels.

    Raises:
        ConfigError: now or at any later use: the tower is trained, has an adapter, is in training mode with parts that
            behave otherwise there (dropout, stochastic depth, batch statistics), or its weights are spread over
            processes. Weights that are replaced (by loading a checkpoint) are noticed, and their own features used.
    """

    def __init__(
        self,
        store: FeatureStore | NoStore,
        model: Any,
        processor: Any,
        *,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.store, self.model, self.dtype, self.autocast = store, _composed(model), dtype, autocast
        self.image_processor = processor.image_processor
        self._watch: _Watch | None = None
        self._shards: Shards | NoStore | None = None
        self._about: dict[str, Any] = {}
        self._random_parts: list[str] = []
        self._current()

    def inputs(self, digests: Sequence[str], processed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor] | None:
        """What the model takes for these pictures: `image_features` and `num_tiles`.

        Args:
            digests: of one picture or more.
            processed: what the processor made of them, whose `pixel_values` are replaced.

        Returns: None where `processed` isn't given and the store lacks one of them: the processor has to run.
        """
        if processed is not None:
            features = self.features(digests, processed["pixel_values"], processed["num_tiles"])
            rest = {name: value for name, value in processed.items() if name != "pixel_values"}
            return rest | {"image_features": features}
        found = self._current().get(digests)
        if any(digest not in found for digest in digests):
            return None
        parts = [found[digest] for digest in digests]
        return {"image_features": torch.cat(parts), "num_tiles": torch.tensor([len(part) for part in parts])}

    def features(self, digests: Sequence[str], pixel_values: Tensor, num_tiles: Tensor) -> Tensor:
        """The tower's output for the views of some pictures; those that are not stored are encoded, in one batch.

        Args:
            digests: of the pictures; one may be there several times.
            pixel_values: (views, 3 · towers, H, W), the pictures' views one after the other.
            num_tiles: (pictures,) views of each.

        Returns: (views, patches, channels) on the device of pixel_values.
        Raises: ValueError: numbers of pictures and views that don't match.
        """
        counts = num_tiles.tolist()
        if len(counts) != len(digests) or sum(counts) != len(pixel_values):
            raise ValueError(
                f"{len(digests)} digests, {len(counts)} pictures of {sum(counts)} views, but pixel_values has "
                f"{len(pixel_values)} views"
            )
        shards = self._current()
        found = shards.get(digests)
        views = dict(zip(digests, pixel_values.split(counts), strict=True))
        missing = [digest for digest in views if digest not in found]
        if missing:
            encoded = self._encode(torch.cat([views[digest] for digest in missing]))
            for digest, part in zip(missing, encoded.split([len(views[digest]) for digest in missing]), strict=True):
                shards.put(digest, part)
                found[digest] = part
        return torch.cat([found[digest].to(pixel_values.device) for digest in digests])

    def close(self) -> None:
        """Write what is new. Happens at the end of the process too."""
        if self._shards is not None:
            self._shards.close()
            self._shards = None

    def _encode(self, pixel_values: Tensor) -> Tensor:
        kind = next(self.model.vision_tower.parameters()).device.type
        with torch.no_grad(), torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            features = self.model.encode(pixel_values)
        return features if self.dtype is None else features.to(self.dtype)

    def _current(self) -> Shards | NoStore:
        """The shards of the tower as it is now."""
        tower = self.model.vision_tower
        if self._shards is None or self._watch is None or self._watch.has_changed():
            _refuse_trained(tower)
            _refuse_split(tower)
            self._watch, self._random_parts = _Watch(tower), list(random_parts(tower))
            about = self._describe(weights_digest(tower))
            if self._shards is None or about != self._about:  # DDP writes to buffers in each step, but what they held
                self.close()
                self._shards, self._about = self.store.shards(about), about
        if self._random_parts and any(module.training for module in tower.modules()):
            raise ConfigError(
                f"a feature store can't serve a vision tower in training mode with {self._random_parts[0]}: its "
                "features differ each time. Call eval() on it, or use no store"
            )
        return self._shards

    def _describe(self, weights: str) -> dict[str, Any]:
        """All that features depend on beside the picture."""
        config = cast(Any, self.model.config.vision_config)
        tensor = next(self.model.vision_tower.parameters())
        # What each tower really runs with: the outer configuration of a loaded model doesn't say.
        inner = [getattr(cast(Any, tower).encoder, "config", None) for tower in self.model.vision_tower.towers]
        libraries = {_LIBRARIES[tower["source"]] for tower in config.towers}
        settings = self.image_processor
        return {
            "format": _FORMAT,
            "towers": config.towers,
            "weights": weights,
            "attention": [getattr(one, "_attn_implementation", None) for one in inner],
            "arithmetic": [tensor.device.type, tensor.dtype, self.autocast, torch.get_float32_matmul_precision()],
            "stored_as": self.dtype,
            "image_processor": [f"{type(settings).__module__}.{type(settings).__qualname__}", settings.to_dict()],
            "versions": {name: version(name) for name in sorted({"torch", "pillow", *libraries})},
        }


class _Watch:
    """Notices that a module has other tensors, other parts, or tensors that were written to, as far as torch counts it.

    It looks at the tables in which modules keep these, for speed: this is done for each image.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._all: list[dict[str, Any]] = [
            table for part in modules for table in (part._parameters, part._buffers, part._modules)
        ]
        self._tables = [table for part in modules for table in (part._parameters, part._buffers) if table]
        self._parts = [part._modules for part in modules if part._modules]
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Since it was made."""
        return self._look() != self._seen

    def _look(self) -> tuple[Any, ...]:
        tensors = [tensor for table in self._tables for tensor in table.values() if tensor is not None]
        return (
            sum(map(len, self._all)),  # the empty ones among them, too
            [part for table in self._parts for part in table.values()],
            [id(tensor) for tensor in tensors],
            [tensor.data_ptr() for tensor in tensors],
            [tensor.requires_grad for tensor in tensors],
            _versions(tensors),
        )


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was written to; 0 for those of inference mode, which torch doesn't count."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


_Mark = tuple[int, ...]
_digests: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[_Mark, str]]] = weakref.WeakKeyDictionary()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and buffers: names, dtypes, shapes, numbers.

    Numbers are read once (a second for a GiB or so); afterwards only those of tensors that have moved or were written
    to. Writes that torch doesn't count (through `.data` or another library) are not noticed.
    """
    known, current = _digests.get(module, {}), {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        mark, found = (id(tensor), tensor.data_ptr(), *_versions([tensor])), known.get(name)
        current[name] = found if found is not None and found[0] == mark else (mark, _numbers_digest(tensor))
    _digests[module] = current
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, (_, digest) in current.items()).encode()).hexdigest()


def _numbers_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _composed(model: Any) -> MMReasonForConditionalGeneration:
    """The composed model inside DDP, a DeepSpeed engine, a compiled module or a PEFT wrapper."""
    while (inner := getattr(model, "module", getattr(model, "_orig_mod", None))) is not None:
        model = inner
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, MMReasonForConditionalGeneration):
        raise ConfigError(
            f"a feature store needs a composed model (model_type mmreason), which {type(model).__name__} isn't: use no "
            "store"
        )
    return model


def _refuse_trained(tower: nn.Module) -> None:
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            raise ConfigError(
                f"a feature store can't serve a vision tower that is trained ({name} is): freeze it, with no adapter "
                "on it (freeze_modules: [vision_tower]), or use no store"
            )


def _refuse_split(tower: nn.Module) -> None:
    """Refuse weights that this process has only a part of: encoding would wait for processes that don't encode."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.distributed.tensor import DTensor

    for name, parameter in tower.named_parameters():
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
            raise ConfigError(
                f"a feature store needs the whole vision tower in each process, but {name} is spread over them "
                "(ZeRO-3, FSDP or tensor parallelism): use DDP or ZeRO up to stage 2, or no store"
            )
    for name, module in tower.named_modules():
        if isinstance(module, BaseTunerLayer):  # may be switched off and on, which changes features but no weight
            raise ConfigError(
                f"a feature store can't serve a vision tower with an adapter ({name} has one): choose "
                "lora_target_modules of the decoder alone, merge the adapter, or use no store"
            )


def random_parts(module: nn.Module) -> Iterable[str]:
    """Modules that give something else in training mode: random parts, and statistics of the batch."""
    for name, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            yield f"batch statistics ({name}: {kind})"
        elif isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
            yield f"running statistics ({name}: {kind})"
        else:
            # Libraries have their own modules for it (DropPath, PatchDropout), or keep a probability beside their
            # attention: there is no common class, but all of them call it drop-something.
            chances = {key: value for key, value in vars(part).items() if isinstance(value, float) and value > 0}
            if any("drop" in f"{kind}.{key}".lower() for key in chances):
                yield f"dropout ({name}: {kind})"
