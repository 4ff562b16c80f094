"""Two towers and one space (CLIP, arXiv 2103.00020): the vision tower of a composed model, and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mmreason._functions import did_you_mean
from mmreason.models.vision import VisionTower
from mmreason.models.vision_parts import resolve_vision
from mmreason.types import ConfigError

TEXT_KEYS: dict[str, str] = {
    "source": "open_clip: a text transformer of open_clip; decoder: the embeddings of a language model",
    "width": "of the transformer",
    "layers": "of the transformer",
    "heads": "of the transformer",
}
_SMALL = {"width": 128, "layers": 2, "heads": 4}
_LARGEST_SCALE = 100.0
"""Of the logits, as in the paper's section 2.5."""


class ContrastiveModel(nn.Module):
    """Pictures and texts as unit vectors of one space.

    A picture is the mean of the tower's tokens, projected: what a language model will read is what is trained.

    Args:
        vision: as for `from_parts`, with one view for each picture. text: see `TEXT_KEYS`; None: a small transformer.
        tokenizer: with an end-of-sequence token, which ends each text. max_length: tokens of a text.
        embed_dim: of the space. decoder: the language model whose embeddings are taken (text source decoder).
        seed: of all random weights; the process-wide generators are left as they were.

    Raises: ConfigError: unknown settings, several views, a tokenizer without an end-of-sequence token.
    """

    def __init__(
        self,
        vision: Any,
        text: Mapping[str, Any] | None,
        tokenizer: Any,
        *,
        max_length: int,
        embed_dim: int,
        decoder: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ConfigError("contrastive: the tokenizer needs an end-of-sequence token, at which a text is read")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config, towers = resolve_vision(vision)
            if config.max_tiles > 1:
                raise ConfigError(f"vision.max_tiles={config.max_tiles}: contrastive pretraining takes one view only")
            self.vision_config = config
            self.vision_tower = VisionTower(config)
            for mine, tower in zip(self.vision_tower.towers, towers, strict=True):
                mine.load_state_dict(tower.module.state_dict())
            self.image_projection = nn.Linear(config.hidden_size, embed_dim, bias=False)
            self.text = _text_tower(dict(text or {"source": "open_clip"}), tokenizer, max_length, embed_dim, decoder)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures (B, embed_dim), texts (B, embed_dim), both of length 1; the scale of their products ()).

        Args: pixel_values: (B, 3 · towers, H, W). input_ids: (B, T), padded on the right.
        """
        pictures = self.image_projection(self.vision_tower(pixel_values).mean(dim=1))
        texts = self.text(input_ids)
        scale = self.logit_scale.exp().clamp(max=_LARGEST_SCALE)
        return F.normalize(pictures, dim=-1), F.normalize(texts, dim=-1), scale

    def save_towers(self, folder: Path) -> list[Path]:
        """Write each vision tower as `vision: {weights: FOLDER}` takes it; returns the folders."""
        places = []
        for number, tower in enumerate(self.vision_tower.towers):
            place = folder / (f"vision_tower_{number}" if len(self.vision_tower.towers) > 1 else "vision_tower")
            place.mkdir(parents=True, exist_ok=True)
            state = {name: value.contiguous().cpu() for name, value in cast(Any, tower).encoder.state_dict().items()}
            save_file(state, place / "model.safetensors")
            entry = json.dumps((self.vision_config.towers or [])[number], indent=1)
            (place / "tower.json").write_text(entry + "\n", encoding="utf-8")
            places.append(place)
        return places


class DecoderTexts(nn.Module):
    """Texts as the mean of a frozen language model's last hidden states, projected."""

    def __init__(self, decoder: Any, pad_token_id: int, embed_dim: int):
        super().__init__()
        self.decoder = decoder.get_decoder().requires_grad_(False)
        self.pad_token_id = pad_token_id
        self.projection = nn.Linear(decoder.config.get_text_config().hidden_size, embed_dim, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) → (B, embed_dim)."""
        inside = input_ids != self.pad_token_id
        inside[:, 0] = True  # where padding is the end token, an empty text is not nothing
        with torch.no_grad():
            states = self.decoder(input_ids, attention_mask=inside.long(), use_cache=False).last_hidden_state
        weights = inside.unsqueeze(-1).to(states.dtype)
        return cast(Tensor, self.projection((states * weights).sum(1) / weights.sum(1)))


def _text_tower(settings: dict[str, Any], tokenizer: Any, max_length: int, embed_dim: int, decoder: Any) -> nn.Module:
    from open_clip.model import CLIPTextCfg, _build_text_tower

    for key in settings:
        if key not in TEXT_KEYS:
            hint = did_you_mean(key, TEXT_KEYS)
            raise ConfigError(f"text_tower: unknown key {key!r}; known: {', '.join(TEXT_KEYS)}.{hint}")
    source = settings.pop("source", "open_clip")
    if source == "decoder":
        if decoder is None or settings:
            raise ConfigError("text_tower: source decoder takes model_name_or_path, and no other settings")
        return DecoderTexts(decoder, tokenizer.pad_token_id, embed_dim)
    if source != "open_clip":
        raise ConfigError(f"text_tower: source={source!r}; known: open_clip, decoder")
    shape = _SMALL | settings
    if shape["width"] % shape["heads"]:
        raise ConfigError(f"text_tower: width={shape['width']} is no multiple of heads={shape['heads']}")
    config = CLIPTextCfg(
        context_length=max_length,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        pool_type="eos",
        **shape,
    )
    return cast(nn.Module, _build_text_tower(embed_dim, config))
