"""Reward models: a scalar head on any decoder or vision-language model, read at chosen places of the sequence.

A reward model is a transformers model of its own class: `save_pretrained` and `from_pretrained` do what they do
elsewhere, PEFT and gradient checkpointing work, and transformers' AutoModelForSequenceClassification loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import ModelOutput

from mmreason.models.loading import load_checked, load_policy_model
from mmreason.models.vision import VisionTower
from mmreason.types import ConfigError

Head = Literal["preference", "outcome", "process"]
"""What the number at a place means: a reward; the log-odds that the answer, or the step that ends there, is right."""
HEADS: tuple[Head, ...] = get_args(Head)
SCORE = "score"
"""Name of the head, as in transformers' sequence classifiers."""


class RewardModelConfig(PreTrainedConfig):
    """A backbone and what its head says.

    Args:
        backbone_config: any decoder's or vision-language model's configuration, or its dict.
        head: see `Head`.
        whole_backbone: the backbone is the generating model with its language head, as composed models are; else it is
            the model below that head.
    """

    model_type = "mmreason_reward"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    head: str = "preference"
    whole_backbone: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.backbone_config, PreTrainedConfig):
            given = dict(self.backbone_config or {})
            self.backbone_config = CONFIG_MAPPING[given.pop("model_type", "qwen2")](**given)
        kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's part of the backbone's configuration."""
        return cast(Any, self.backbone_config).get_text_config(*args, **kwargs)

    @property
    def vision_config(self) -> Any:
        """That of the backbone. Raises AttributeError where it doesn't see, as configurations without one do."""
        return cast(Any, self.backbone_config).vision_config


class RewardModel(PreTrainedModel):
    """The last hidden states of a backbone at chosen places, and a linear head without bias on them.

    Args:
        config: of backbone and head.
        backbone: the model that it describes, with its weights; None: a random one.
    """

    config: RewardModelConfig
    config_class = RewardModelConfig
    base_model_prefix = "backbone"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: RewardModelConfig, backbone: Any = None):
        super().__init__(config)
        inner = cast(Any, config.backbone_config)
        if backbone is None:
            backbone = _whole(inner) if config.whole_backbone else AutoModel.from_config(inner)
        else:
            for module in backbone.modules():
                module._is_hf_initialized = True  # else transformers would draw its weights again
        self.backbone = backbone
        if hasattr(backbone, "all_run_the_tower"):
            self.all_run_the_tower = True
        width = int(inner.get_text_config().hidden_size)
        self.score = nn.Linear(width, 1, bias=False, dtype=next(_floating(backbone)).dtype)
        self.post_init()
        _leave_out_language_head(backbone)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The head from N(0, 1/(width + 1)) (arXiv 2009.01325, appendix C), always the same numbers for a width.

        So an adapter that was trained on a fresh head finds its base again.
        """
        if module is not self.score:
            super()._init_weights(module)
        elif not getattr(module.weight, "_is_hf_initialized", False):
            width = module.weight.shape[1]
            drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) / (width + 1) ** 0.5
            module.weight.copy_(drawn)

    def initialize_weights(self) -> None:
        """transformers calls this once a checkpoint is in, with buffers that no file holds left empty."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, VisionTower):
                module.restore_buffers()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        places: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Rewards at some places of each sequence.

        Args:
            input_ids: (B, T). attention_mask: (B, T), 0 on padding, left or right; None: no padding.
            places: (B, K) int64 positions that are read; None: the last token of each row that is no padding.
            kwargs: what else the backbone takes: pixel values and the like.

        Returns: `.logits` (B, K) float32.
        """
        given = {name: value for name, value in kwargs.items() if value is not None} | {"use_cache": False}
        base = self.backbone.base_model if self.config.whole_backbone else self.backbone
        hidden = base(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        if places is None:
            places = _last_places(hidden, attention_mask)
        read = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return ModelOutput(logits=self.score(read.to(self.score.weight.dtype)).squeeze(-1).float())

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head: what adapters on "all linear layers" leave alone, as they do a language model's."""
        return self.score

    def get_decoder(self) -> Any:
        return self.backbone.get_decoder()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """PEFT asks every decoder for it. Raises: NotImplementedError: nothing generates with a reward model."""
        raise NotImplementedError("a reward model does not generate")

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        self.backbone._set_gradient_checkpointing(enable, **kwargs)


def _last_places(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    rows, length = hidden.shape[:2]
    if attention_mask is None:
        return torch.full((rows, 1), length - 1, device=hidden.device)
    numbers = torch.arange(length, device=attention_mask.device)
    return (numbers * attention_mask.ne(0)).amax(1, keepdim=True).to(hidden.device)


def _floating(model: nn.Module) -> Any:
    return (parameter for parameter in model.parameters() if parameter.is_floating_point())


def _whole(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = type(config) in AutoModelForImageTextToText._model_mapping
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=config._attn_implementation)


def _leave_out_language_head(backbone: Any) -> None:
    """Take a language head that nothing runs through out of training; a tied one is the embedding, which learns."""
    head = backbone.get_output_embeddings()
    if head is not None and head.weight is not backbone.get_input_embeddings().weight:
        head.weight.requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------------
# Making and loading


def with_reward_head(model: Any, head: Head) -> RewardModel:
    """A reward model of a generating model: its weights, and a fresh head.

    Raises: ConfigError: the model gives no hidden states that a head could read.
    """
    known = MODEL_MAPPING.get(type(model.config), ())
    known = known if isinstance(known, tuple) else (known,)
    whole = type(model.base_model) not in known
    if whole and model.base_model is model:
        raise ConfigError(f"{type(model).__name__} has no model below its language head that a reward head could read")
    made = RewardModel(_config_over(model, head, whole_backbone=whole), model if whole else model.base_model)
    made.name_or_path = made.config._name_or_path = model.name_or_path
    return made.train(model.training)


def _config_over(model: Any, head: Head, **settings: Any) -> RewardModelConfig:
    # Made over a copy: a new configuration resets how the parts of what it is given compute attention, and the model's
    # own parts read it from there.
    config = RewardModelConfig(backbone_config=deepcopy(model.config), head=head, **settings)
    config.backbone_config, config.dtype = model.config, model.config.dtype
    config._attn_implementation_internal = model.config._attn_implementation
    return config


def is_reward_model(source: str | Path, **common: Any) -> bool:
    """Whether a folder or hub id holds a trained reward model: ours, an adapter's, or a one-label classifier."""
    try:
        config = AutoConfig.from_pretrained(source, **common)
    except (OSError, ValueError):
        return False
    return isinstance(config, RewardModelConfig) or _is_classifier(config)


def _is_classifier(config: Any) -> bool:
    named = any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())
    return named and config.num_labels == 1


def model_to_train(args: Any, head: Head) -> Any:
    """What a run begins with: a model with a fresh head, or a reward model that goes on, and the adapter asked for.

    With an adapter the head is trained whole and saved with it.

    Args: args: ModelArguments.
    Raises: ConfigError: see `load_policy_model`; a reward model with another head; an adapter of virtual tokens, or one
        on a reward model that is an adapter itself.
    """
    from mmreason._adapters import KINDS, adapter_settings
    from mmreason.models.peft import with_adapter

    settings = adapter_settings(args)
    if settings is not None and settings.path is not None:
        raise ConfigError("adapter.path: name the folder of a saved reward model as model_name_or_path instead")
    if settings is not None and not KINDS[settings.kind].placed:
        raise ConfigError(f"adapter.kind={settings.kind!r} puts tokens before the text, and the head reads places of "
                          "the text: use a kind that goes on modules, such as lora")  # fmt: skip
    source, common = args.model_name_or_path, _common(args)
    if is_reward_model(source, **common):
        if settings is not None and (Path(source) / "adapter_config.json").is_file():
            # Saved, it would name a base that is stored nowhere: the first adapter and its head, merged.
            raise ConfigError(
                f"model_name_or_path={str(source)!r} is a reward model that is an adapter itself, which a new adapter "
                "can't be saved on: train without an adapter (the first one is merged then, and final/ holds a whole "
                "model), or merge it first: mmreason.models.reward.load_reward_model(FOLDER).merge_and_unload()"
                ".save_pretrained(WHOLE), with the tokenizer's files beside it"
            )
        model = load_reward_model(source, dtype=args.dtype, attn_implementation=args.attn_implementation, **common)
        if hasattr(model, "peft_config"):
            model = _merged(model)
        if model.config.head != head:
            raise ConfigError(
                f"model_name_or_path={source!r} has a head for {model.config.head} rewards, this run trains one for "
                f"{head}: begin with the model below it, or give rows of that kind"
            )
    else:
        model = with_reward_head(load_policy_model(args), head)
    if settings is None:
        return model
    kept = tuple(dict.fromkeys((*settings.modules_to_save, SCORE)))
    return with_adapter(model, replace(settings, modules_to_save=kept))


def _merged(model: Any) -> Any:
    """An adapter's reward model as a whole one, all of which learns: PEFT had frozen what the adapter stood on."""
    whole = model.merge_and_unload()
    for parameter in _floating(whole):
        parameter.requires_grad_(True)
    _leave_out_language_head(whole.backbone)
    return whole


def _common(args: Any) -> dict[str, Any]:
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def load_reward_model(
    source: str | Path,
    *,
    dtype: Any = "float32",
    attn_implementation: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    option: str = "model_name_or_path",
) -> Any:
    """A trained reward model: one of ours, an adapter with its head on its base, or any one-label sequence classifier.

    Args:
        source: folder or hub id. dtype: a torch dtype, its name, or "auto". option: the setting that said so, for
            errors.

    Returns: a `RewardModel`, or PEFT's wrapper of one.
    Raises: ConfigError: no reward model, or one that can't be loaded.
    """
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **common)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}={str(source)!r} is no reward model: {str(error).splitlines()[0]}") from error
    if (Path(source) / "adapter_config.json").is_file() and isinstance(config, RewardModelConfig):
        return _load_adapter(Path(source), config, settings, option)
    if isinstance(config, RewardModelConfig):
        return load_checked(str(source), option, kind=RewardModel, revision=revision, **settings)
    if _is_classifier(config):
        kind = AutoModelForSequenceClassification
        return _of_classifier(load_checked(str(source), option, kind=kind, revision=revision, **settings))
    raise ConfigError(
        f"{option}={str(source)!r} is no reward model but a {(config.architectures or ['model'])[0]}: name the final/ "
        "folder of a run of recipes/reward_model.py, or a sequence classifier with one label"
    )


def _load_adapter(folder: Path, config: RewardModelConfig, settings: Mapping[str, Any], option: str) -> Any:
    from mmreason._adapters import read_config
    from mmreason.models.peft import load_adapter

    base = str(read_config(folder)["base_model_name_or_path"])
    if is_reward_model(base, trust_remote_code=settings["trust_remote_code"]):
        model = load_reward_model(base, option=option, **settings)
    else:
        model = with_reward_head(load_checked(base, option, **settings), cast(Head, config.head))
    return load_adapter(model, folder)


def _of_classifier(model: Any) -> RewardModel:
    """A transformers sequence classifier with one label, as one of ours."""
    head = getattr(model, SCORE, None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"{type(model).__name__} has no linear head {SCORE!r} without bias, which reward models have")
    made = RewardModel(_config_over(model, "preference"), model.base_model)
    made.score = head
    made.name_or_path = made.config._name_or_path = model.name_or_path
    return made.eval()
