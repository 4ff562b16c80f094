"""Options of pretraining, under the names of transformers (`TrainingArguments`, run_clm.py, run_mlm.py) and TRL.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from mmreason.trainers.arguments import ModelArguments, TrainingOptions, _opt
from mmreason.types import ConfigError

OBJECTIVES = ("clm", "mlm", "span", "ul2", "infill", "align", "contrastive")
ON_TEXT = ("clm", "mlm", "span", "ul2", "infill")

# Everything else of PretrainOptions is passed on to transformers.TrainingArguments by its name.
OURS = (
    "objective",
    "overwrite_output_dir",
    "resume",
    "max_length",
    "packing",
    "packing_window",
    "eval_steps",
    "mlm_probability",
    "mask_replace_prob",
    "random_replace_prob",
    "whole_word_mask",
    "noise_density",
    "mean_noise_span_length",
    "ul2_weights",
    "infill_format",
    "fim_rate",
    "fim_spm_rate",
    "bidirectional_prefix",
    "router_aux_loss_coef",
    "unfreeze_at",
    "caption_prompt",
    "embed_dim",
    "text_tower",
    "local_loss",
    "max_completion_length",
    "chat_template_kwargs",
    "hf_generation_batch_size",
)
_NOT_HERE = ("max_completion_length", "chat_template_kwargs", "hf_generation_batch_size")
"""Options of every training that generates, which pretraining doesn't."""


@dataclass
class FreshModelArguments:
    """A model and a tokenizer that begin here, and what is changed of one that is there."""

    tiny_size: Literal["xs", "s", "m"] = _opt("s", "(ours) Size of the random model where none is named.")
    model_type: str | None = _opt(
        None, "A random model of this kind (qwen3, llama, qwen3_moe, bert, t5 …) in place of model_name_or_path."
    )
    config_overrides: dict[str, Any] | None = _opt(
        None, "Settings of its configuration: {hidden_size: 512, num_hidden_layers: 8}."
    )
    tokenizer_name: str | None = _opt(None, "Hub id or folder of the tokenizer. None: the model's.")
    train_tokenizer: dict[str, Any] | None = _opt(
        None, "(ours) Learn a byte-level BPE tokenizer from the corpus: {vocab_size: 8000, max_characters: …}."
    )
    rope_scaling: dict[str, Any] | None = _opt(
        None, "Extend the context: {rope_type: yarn|linear|dynamic, factor: 4.0}; the model's configuration keeps it."
    )


@dataclass
class CorpusArguments:
    """Documents, captions and pairs."""

    dataset_name: str | None = _opt(
        None,
        "Hub id (owner/name or owner/name:config), a file, a folder or a pattern (books/*.txt). None: texts or "
        "pictures made by the code.",
    )
    dataset_train_split: str = _opt("train", "Training split; slices such as train[:1000] work.")
    dataset_test_split: str | None = _opt(
        None, "Held-out split. None: validation_split_percentage of the training split is held out."
    )
    validation_split_percentage: float = _opt(
        5.0, "Documents held out for perplexity, in percent; of a few long ones the end of each. 0: none."
    )
    eval_samples: int = _opt(256, "(ours) Held-out bins, captions or pairs that are measured, at most.")
    text_column: str = _opt("text", "(ours) Column of the text or caption.")
    image_column: str = _opt("images", "(ours) Column of the picture, or of a list with one.")
    interleaved: bool = _opt(
        False, "(ours; clm) Documents with pictures: columns texts and images (OBELICS), or a text with <image> places."
    )
    txt_unit: Literal["file", "paragraph", "line"] = _opt("file", "(ours) What a document of a .txt file is.")
    streaming: bool = _opt(False, "Read and tokenize the corpus while training goes on; needs max_steps.")
    max_train_samples: int | None = _opt(None, "(ours) Use only the first N documents or pairs.")
    on_bad_row: Literal["error", "drop"] = _opt(
        "error", "(ours) What to do with a row without a usable text or picture."
    )
    image_root: str | None = _opt(None, "(ours) Folder that relative image paths start from. None: the dataset's.")
    image_urls: bool = _opt(False, "(ours) Fetch images that are given as http(s) URLs, from public addresses only.")
    word_problems: dict[str, Any] | None = _opt(
        None, "(ours) Arguments of data_builders.word_problems, whose texts are learned where no dataset is named."
    )
    shapes: dict[str, Any] | None = _opt(
        None, "(ours) The same of data_builders.shapes, whose captions, or, without pictures, texts are learned."
    )


@dataclass
class PretrainOptions(TrainingOptions):
    """What is learned, and how."""

    objective: Literal["clm", "mlm", "span", "ul2", "infill", "align", "contrastive"] = _opt(
        "clm",
        "(ours) clm: the next token. mlm: masked tokens (BERT). span: masked spans (T5). ul2: a mixture of denoisers. "
        "infill: the middle of a text or blanks in it. align: captions. contrastive: pictures and texts (CLIP).",
    )
    output_dir: str = _opt("outputs/pretrain", "Checkpoints, metrics and the final model.")

    # rows
    max_length: int = _opt(1024, "Tokens of a row; longer documents are cut into several, nothing is lost.")
    packing: bool = _opt(True, "(clm, infill, span and ul2 of decoders) Put several documents into one sequence.")
    packing_window: int = _opt(256, "(ours) Sequences that are packed and shuffled together.")

    # objectives
    mlm_probability: float = _opt(0.15, "(mlm) Share of tokens that are predicted.")
    mask_replace_prob: float = _opt(0.8, "(mlm) Of those, the share that is masked.")
    random_replace_prob: float = _opt(0.1, "(mlm) Of those, the share that is replaced by a random token.")
    whole_word_mask: bool = _opt(False, "(mlm) Choose words instead of tokens.")
    noise_density: float = _opt(0.15, "(span, infill glm) Share of tokens that are hidden.")
    mean_noise_span_length: float = _opt(3.0, "(span, infill glm) Mean length of what is hidden, in tokens.")
    ul2_weights: dict[str, float] | None = _opt(
        None, "(ours; ul2) Shares of the denoisers: {R: 1, S: 2, X: 1}. None: the paper's seven equally often."
    )
    infill_format: Literal["fim", "glm"] = _opt(
        "fim", "(ours; infill) fim: the middle last (arXiv 2207.14255). glm: blanks (arXiv 2103.10360)."
    )
    fim_rate: float = _opt(0.5, "(infill) Share of rows whose middle is moved; the others are learned as by clm.")
    fim_spm_rate: float = _opt(0.5, "(infill) Of those, the share with the suffix before the prefix.")
    bidirectional_prefix: bool = _opt(
        False, "(ours; span, ul2 of decoders) What is read sees itself both ways; rows aren't packed then."
    )
    router_aux_loss_coef: float | None = _opt(
        None, "Weight of a mixture-of-experts' load-balancing loss. None: what the model's configuration says."
    )

    # pictures
    unfreeze_at: dict[str, int] | None = _opt(
        None, "(ours; align) Modules that wait until a step: {vision_tower: 500}. None: only the projector learns."
    )
    caption_prompt: str | None = _opt(None, "(ours; align) What stands before each caption. None: the picture alone.")
    embed_dim: int = _opt(128, "(ours; contrastive) Width of the space that pictures and texts share.")
    text_tower: dict[str, Any] | None = _opt(
        None,
        "(ours; contrastive) {source: open_clip, width, layers, heads}, or {source: decoder}: the mean of the "
        "embeddings of model_name_or_path. None: a small one of open_clip.",
    )
    local_loss: bool = _opt(True, "(contrastive) Each process scores its own pairs against all; else all score all.")

    # optimizer
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch_fused", "Optimizer.")
    learning_rate: float = _opt(3e-4, "Peak learning rate.")
    adam_beta2: float = _opt(0.95, "AdamW β2.")
    weight_decay: float = _opt(0.1, "Decoupled weight decay; not on biases and norms.")
    lr_scheduler_type: str = _opt(
        "cosine", "cosine, cosine_with_min_lr, warmup_stable_decay (with lr_scheduler_kwargs: {num_decay_steps: …}) …"
    )
    num_train_epochs: float = _opt(1.0, "Passes over the documents, where max_steps is not given.")

    # evaluation and data loading
    eval_steps: int | None = _opt(None, "Steps between measurements on held-out rows. None: only before and after.")
    per_device_eval_batch_size: int = _opt(8, "Rows per forward when measuring.")
    dataloader_num_workers: Literal[0, 1] = _opt(0, "1: a process beside each training process prepares rows ahead.")

    def check(self, model: ModelArguments, fresh: FreshModelArguments, corpus: CorpusArguments) -> None:
        """Refuse what can't work. Raises ConfigError."""
        self.check_training()
        for name in ("save_steps", "max_length", "per_device_eval_batch_size", "packing_window", "embed_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob", "fim_rate", "fim_spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ConfigError("mask_replace_prob and random_replace_prob add up to more than 1")
        if not 0 < self.noise_density < 1 or self.mean_noise_span_length < 1:
            raise ConfigError("noise_density must lie between 0 and 1, mean_noise_span_length must be at least 1")
        for mode, weight in (self.ul2_weights or {}).items():
            if mode not in ("R", "S", "X") or not weight >= 0 or not sum((self.ul2_weights or {}).values()) > 0:
                raise ConfigError(f"ul2_weights={self.ul2_weights}: shares of R, S and X, at least one above 0")
        self._check_together(model, fresh, corpus)
        defaults = {f.name: f.default for f in fields(TrainingOptions)}
        for name in _NOT_HERE:
            if self.objective != "align" and getattr(self, name) != defaults[name]:
                raise ConfigError(f"{name} has no meaning for objective {self.objective}: nothing is generated")

    def steps(self, rows: int, processes: int) -> int:
        """Optimizer steps of `num_train_epochs` over so many rows; `max_steps` where it is given."""
        per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return self.max_steps if self.max_steps > 0 else max(1, math.ceil(rows * self.num_train_epochs / per_step))

    def _check_together(self, model: ModelArguments, fresh: FreshModelArguments, corpus: CorpusArguments) -> None:
        named = [n for n in ("model_name_or_path", "decoder") if getattr(model, n) is not None]
        if fresh.model_type is not None and named:
            raise ConfigError(f"model_type={fresh.model_type!r} makes a new model: leave out {' and '.join(named)}")
        if fresh.config_overrides and fresh.model_type is None:
            raise ConfigError("config_overrides need model_type: the kind of the new model")
        if fresh.train_tokenizer is not None and (named or fresh.tokenizer_name is not None):
            raise ConfigError(
                "train_tokenizer: a model that was trained already, or tokenizer_name, has a tokenizer of its own; "
                "leave one of them out"
            )
        if fresh.tokenizer_name is not None and named:
            raise ConfigError("tokenizer_name is for a new model; a trained one keeps its own")
        if corpus.streaming and self.max_steps < 1:
            raise ConfigError("streaming needs max_steps: a stream has no length that epochs could be counted by")
        if not 0 <= corpus.validation_split_percentage < 100:
            raise ConfigError(f"validation_split_percentage={corpus.validation_split_percentage} must be below 100")
        if corpus.interleaved and self.objective != "clm":
            raise ConfigError(f"interleaved belongs to objective clm, not to {self.objective}")
        if corpus.interleaved and corpus.dataset_name is None:
            raise ConfigError("interleaved needs dataset_name: documents with pictures in them")
        sees = bool(model.model_name_or_path or model.decoder)
        if (self.objective == "align" or corpus.interleaved) and not sees:
            raise ConfigError(
                "pictures need a model that sees: decoder and vision, put together here, or model_name_or_path"
            )
        texts_alone = self.objective in ON_TEXT and not corpus.interleaved
        if texts_alone and corpus.word_problems is not None and corpus.shapes is not None:
            raise ConfigError("word_problems and shapes: texts are made of one of them")
        if texts_alone and (model.decoder or model.vision or model.projector):
            raise ConfigError(f"decoder, vision, projector: objective {self.objective} learns from texts alone")
        if self.objective == "contrastive" and model.vision is None:
            raise ConfigError("objective contrastive needs vision: the tower that learns, see mmreason compose --help")
        from_decoder = (self.text_tower or {}).get("source") == "decoder"
        if self.objective == "contrastive" and bool(model.model_name_or_path) != from_decoder:
            raise ConfigError("objective contrastive: model_name_or_path and text_tower: {source: decoder} go together")
        if self.unfreeze_at is not None and self.objective != "align":
            raise ConfigError("unfreeze_at belongs to objective align")
