"""Contrastive pretraining: the loss is CLIP's, retrieval beats chance by far, and the tower fits a composed model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmreason.data.captions import caption_texts, distinct_captions, load_captions
from mmreason.data.texts import Corpus
from mmreason.models.contrastive import ContrastiveModel
from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.trainers.pretrain import hf_config
from mmreason.trainers.pretrain_arguments import PretrainOptions
from mmreason.trainers.pretrain_contrastive import ContrastiveTrainer, PairBatches, Pairs
from mmreason.types import ConfigError
from tests.models.parts import HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT

VISION = {
    "source": "timm", "name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32,
    "config": {
        "embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 8, "class_token": False, "global_pool": "avg",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_builders.shapes import build

    folder = tmp_path_factory.mktemp("shapes")
    build(folder, tasks=["describe"], level=1, n=1500, n_test=300, n_unseen=0, image_size=32)
    return folder


def options(folder: Path, **given: Any) -> PretrainOptions:
    settings: dict[str, Any] = {
        "objective": "contrastive", "output_dir": str(folder), "max_length": 40, "use_cpu": True, "bf16": False,
        "per_device_train_batch_size": 48, "per_device_eval_batch_size": 64, "max_steps": 1, "learning_rate": 2e-3,
        "gradient_checkpointing": False, "save_steps": 10**6, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return PretrainOptions(**(settings | given))


def trainer_of(shapes: Path, folder: Path, **given: Any) -> tuple[ContrastiveTrainer, Pairs]:
    rows, _ = load_captions(Corpus(str(shapes)))
    held, _ = load_captions(Corpus(str(shapes), "test"))
    chosen = options(folder, **given)
    tokenizer = tiny_tokenizer(caption_texts(rows), 300)
    model = ContrastiveModel(VISION, None, tokenizer, max_length=40, embed_dim=64)
    pairs = Pairs(rows, tokenizer, model.vision_config, 40)
    measured = Pairs(distinct_captions(held, 200), tokenizer, model.vision_config, 40)
    source = PairBatches(pairs, chosen.per_device_train_batch_size, chosen.seed)
    return ContrastiveTrainer(model, chosen, hf_config(chosen), source), measured


def test_loss_is_clips_own(shapes: Path, tmp_path: Path) -> None:
    """Figure 3 of arXiv 2103.00020, in float64; with accumulation the mean over micro-batches."""
    trainer, _ = trainer_of(
        shapes, tmp_path, per_device_train_batch_size=12, gradient_accumulation_steps=2, optim="sgd",
        weight_decay=0.0, learning_rate=0.1, max_grad_norm=0.0,
    )  # fmt: skip
    model = copy.deepcopy(trainer.model).double()
    source = trainer.source.batches({"position": 0}, 0, 1)
    for _ in range(2):
        batch, _ = next(source)
        pictures, texts, scale = model(batch["pixel_values"].double(), batch["input_ids"])
        assert torch.allclose(pictures.norm(dim=-1), torch.ones(12, dtype=torch.float64))
        logits, own = scale * pictures @ texts.T, torch.arange(12)
        (((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2) / 2).backward()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    assert trainer.fit()
    for name, value in trainer.model.named_parameters():
        want = dict(model.named_parameters())[name].grad
        assert want is not None, name
        assert torch.allclose((before[name] - value) / 0.1, want.float(), atol=3e-5, rtol=1e-3), name


@pytest.mark.slow
def test_retrieval_beats_chance_by_ten(shapes: Path, tmp_path: Path) -> None:
    trainer, measured = trainer_of(shapes, tmp_path, max_steps=220, lr_scheduler_type="cosine", warmup_steps=20)
    before = trainer.measured(measured)
    assert before["eval/image_to_text_r1"] < 5 * before["eval/chance_r1"]
    assert trainer.fit()
    found = trainer.measured(measured)
    assert len(measured) > 100 and found["eval/chance_r1"] == 1 / len(measured)
    assert found["eval/image_to_text_r1"] >= 10 * found["eval/chance_r1"]
    assert found["eval/text_to_image_r1"] >= 10 * found["eval/chance_r1"]


@pytest.mark.parametrize("vision", [TIMM_VIT, OPEN_CLIP_VIT, HF_SIGLIP], ids=["timm", "open_clip", "hf"])
def test_the_tower_goes_into_a_composed_model(vision: dict[str, Any], tmp_path: Path) -> None:
    from mmreason.models.vision_parts import resolve_vision

    model = ContrastiveModel(vision, None, tiny_tokenizer(), max_length=8, embed_dim=16, seed=3)
    (place,) = model.save_towers(tmp_path)
    _, (tower,) = resolve_vision(vision | {"weights": str(place)})
    saved = load_file(place / "model.safetensors")
    mine = tower.module.encoder.state_dict()
    assert saved.keys() == mine.keys() and all(torch.equal(saved[name], mine[name]) for name in mine)


def test_texts_through_a_decoder() -> None:
    """The mean of its last states over the text, padding left out; the decoder doesn't learn."""
    tokenizer, decoder = tiny_tokenizer(), tiny_decoder()
    model = ContrastiveModel(
        VISION, {"source": "decoder"}, tokenizer, max_length=12, embed_dim=16, decoder=decoder
    ).eval()
    ids = torch.tensor([tokenizer("red circle")["input_ids"] + [tokenizer.eos_token_id]])
    padded = F.pad(ids, (0, 3), value=tokenizer.pad_token_id)
    want = model.text.projection(decoder.model(ids).last_hidden_state.mean(1))
    assert torch.allclose(model.text(padded), want, atol=1e-6)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "text.decoder" in n)
    with pytest.raises(ConfigError, match="takes model_name_or_path"):
        ContrastiveModel(VISION, {"source": "decoder"}, tokenizer, max_length=12, embed_dim=16)


def test_processes_share_the_pairs(shapes: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(shapes, tmp_path)
    pairs = trainer.source.pairs
    whole = PairBatches(pairs, 6, 1).batches({"position": 0}, 0, 1)
    parts = [PairBatches(pairs, 2, 1).batches({"position": 0}, rank, 3) for rank in range(3)]
    for _ in range(3):
        batch, place = next(whole)
        found = [next(part) for part in parts]
        assert torch.equal(torch.cat([b["input_ids"] for b, _ in found]), batch["input_ids"])
        assert torch.equal(torch.cat([b["pixel_values"] for b, _ in found]), batch["pixel_values"])
        assert all(other == place for _, other in found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": {"sorce": "open_clip"}}, "Did you mean 'source'"),
        ({"text": {"source": "bert"}}, "known: open_clip, decoder"),
        ({"text": {"width": 30, "heads": 4}}, "no multiple of heads"),
        ({"vision": VISION | {"max_tiles": 4}}, "one view"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ContrastiveModel(given.get("vision", VISION), given.get("text"), tiny_tokenizer(), max_length=8, embed_dim=16)


def test_long_texts_and_lonely_pairs_are_refused(shapes: Path, tmp_path: Path) -> None:
    rows, _ = load_captions(Corpus(str(shapes)))
    model = ContrastiveModel(VISION, None, tiny_tokenizer(), max_length=8, embed_dim=16)
    with pytest.raises(ConfigError, match="max_length is 8: raise it"):
        Pairs(rows, tiny_tokenizer(), model.vision_config, 8)
    with pytest.raises(ConfigError, match="needs others"):
        trainer_of(shapes, tmp_path, per_device_train_batch_size=1)
