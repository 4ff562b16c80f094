"""Rollout and scoring of prompts with pictures, for each kind of vision-language model, against the model alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mmreason.data import render_prompt, render_visual_prompt
from mmreason.data.visual import VisualPrompt
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.scoring import completion_logps
from mmreason.rollout.types import Completion, Request, Sampling
from tests.pictures import SEEING, ask, picture, save_seeing

BOUND = 1e-5
# Rows of one batch: no picture, one, two, three, of different sizes, and questions of different lengths.
ROWS = [
    ("How many?", [picture(60, 40, 1)]),
    ("a question of text alone", []),
    ("Which of the two?", [picture(90, 90, 2), picture(40, 120, 3)]),
    ("c", [picture(30, 30, seed) for seed in (4, 5, 6)]),
]
PLACEHOLDERS = {
    "qwen2_5_vl": ["<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|image_pad|>", "<|video_pad|>"],
    "smolvlm": ["<image>"],
    "llava": ["<image>"],
    "internvl": ["<IMG_CONTEXT>"],
    "mmreason": ["<|image|>"],
}


@dataclass
class VLM:
    model: Any
    processor: Any
    prompts: list[list[int]]
    visuals: list[VisualPrompt | None]
    banned: list[int]

    def engine(self, **options: Any) -> HFEngine:
        tokenizer = self.processor.tokenizer
        settings = {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_ids": end_token_ids(self.model, tokenizer),
            "banned_token_ids": self.banned,
        }
        return HFEngine(self.model, Accelerator(cpu=True), **(settings | options))

    def requests(self, n: int) -> list[Request]:
        return [Request(ids, n, visual) for ids, visual in zip(self.prompts, self.visuals, strict=True)]

    def logps(self, completions: list[list[int]], rows: list[int] | None = None, **options: Any) -> torch.Tensor:
        """Of one completion for each of these rows."""
        rows = list(range(len(ROWS))) if rows is None else rows
        return completion_logps(
            self.model,
            [self.prompts[row] for row in rows],
            completions,
            visuals=[self.visuals[row] for row in rows],
            **({"banned_token_ids": self.banned} | options),
        )[0]


def load(kind: str, folder: Any) -> VLM:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = save_seeing(kind, folder)
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    visuals = [
        render_visual_prompt(ask(text, len(images)), images, processor) if images else None for text, images in ROWS
    ]
    prompts = [
        render_prompt(ask(text), processor) if visual is None else visual.ids
        for (text, _), visual in zip(ROWS, visuals, strict=True)
    ]
    return VLM(model, processor, prompts, visuals, placeholder_token_ids(model))


@pytest.fixture(scope="module", params=SEEING)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return load(request.param, tmp_path_factory.mktemp(request.param))


def completions(lengths: list[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[int(token) for token in random.integers(0, 200, length)] for length in lengths]


def texts(processor: Any) -> list[str]:
    return [
        processor.apply_chat_template(ask(text, len(images)), tokenize=False, add_generation_prompt=True)
        if images
        else processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": text}]}], tokenize=False, add_generation_prompt=True
        )
        for text, images in ROWS
    ]


# ---- scoring


def test_a_row_is_scored_as_if_alone(vlm: VLM) -> None:
    """Whatever its neighbours are, and with gradients that are finite."""
    answers = completions([5, 9, 1, 7])
    together = vlm.logps(answers)
    for i, answer in enumerate(answers):
        alone = vlm.logps([answer], [i])[0]
        assert (together[i, : len(answer)] - alone).abs().max() <= BOUND
        assert not together[i, len(answer) :].any()
    together.sum().backward()
    grads = [p.grad for p in vlm.model.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    vlm.model.zero_grad()


def test_scores_are_the_models_own_on_a_left_padded_batch(vlm: VLM) -> None:
    """The processor pads the batch at the left; the answers follow, each followed by padding that is masked."""
    answers = completions([6, 4, 8, 3], seed=1)
    tokenizer = vlm.processor.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    images = [pictures for _, pictures in ROWS if pictures]
    nested = [pictures for _, pictures in ROWS]
    try:
        batch = vlm.processor(
            # Some processors want a list per row, some none for a row without.
            text=texts(vlm.processor), images=nested if "Idefics3" in type(vlm.processor).__name__ else images,
            return_tensors="pt", padding=True, add_special_tokens=False,
        )  # fmt: skip
    finally:
        tokenizer.padding_side = side
    width, longest = batch["input_ids"].shape[1], max(map(len, answers))
    ids = torch.full((len(answers), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, answer in enumerate(answers):
        ids[i, : len(answer)] = torch.tensor(answer)
        mask[i, : len(answer)] = 1
    extended = {
        name: torch.cat([value, torch.zeros_like(ids)], 1) if value.shape == batch["input_ids"].shape else value
        for name, value in batch.items()
    }
    extended["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
    extended["attention_mask"] = torch.cat([batch["attention_mask"], mask], 1)
    if "mm_token_type_ids" not in extended:  # M-RoPE models find positions themselves
        extended["position_ids"] = (extended["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = vlm.model(**extended).logits[:, width - 1 : -1].double()
        logits[..., vlm.banned] = float("-inf")
        own = logits.log_softmax(-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)
        ours = vlm.logps(answers)
    for i, answer in enumerate(answers):
        assert (own[i, : len(answer)] - ours[i, : len(answer)]).abs().max() <= BOUND


def test_pictures_and_their_order_matter(vlm: VLM) -> None:
    """Else all the above could hold for a model that never sees them."""
    answer = completions([8])[0]
    prompt, images = ask("Which of the two?", 2), ROWS[2][1]
    with torch.no_grad():
        true = vlm.logps([answer], [2])[0]
        for others in (images[::-1], [picture(90, 90, 7), picture(40, 120, 8)]):
            visual = render_visual_prompt(prompt, others, vlm.processor)
            if len(visual.ids) != len(vlm.prompts[2]):
                continue
            other = completion_logps(vlm.model, [visual.ids], [answer], visuals=[visual], banned_token_ids=vlm.banned)[
                0
            ][0]
            assert (true - other).abs().max() > 0.05


def test_a_batch_without_pictures_is_a_batch_of_text(vlm: VLM) -> None:
    answers = completions([5, 3])
    with torch.no_grad():
        vlm.logps(completions([5, 9, 1, 7]))  # M-RoPE models remember positions of the batch before
        text = completion_logps(vlm.model, [vlm.prompts[1]] * 2, answers, banned_token_ids=vlm.banned)[0]
        assert torch.equal(text, vlm.logps(answers, [1, 1]))


def test_ids_and_pictures_that_do_not_belong_together(vlm: VLM) -> None:
    answers = completions([2, 2])
    prompts = [vlm.prompts[0][:-1], vlm.prompts[1]]
    with pytest.raises(ValueError, match=r"prompt 0 of the batch has \d+ tokens that are not the \d+ that its 1 image"):
        completion_logps(vlm.model, prompts, answers, visuals=[vlm.visuals[0], None])
    with pytest.raises(ValueError, match="prompt 0"):
        vlm.engine().generate([Request(prompts[0], 1, vlm.visuals[0])], Sampling(2), 0)


# ---- sampling


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def test_greedy_text_is_the_models_own(vlm: VLM) -> None:
    """Row by row, through the processor and `generate`, token for token; twice for each request."""
    groups = vlm.engine().generate(vlm.requests(2), Sampling(12).greedy(), seed=0)
    for group, text, (_, images) in zip(groups, texts(vlm.processor), ROWS, strict=True):
        inputs = vlm.processor(
            text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
        )
        own = vlm.model.generate(**inputs, max_new_tokens=12, do_sample=False, suppress_tokens=vlm.banned)
        expected = own[0, inputs["input_ids"].shape[1] :].tolist()
        assert [completion.token_ids for completion in group] == [expected] * 2


def test_text_after_pictures(vlm: VLM) -> None:
    """M-RoPE models keep the positions of the last batch of pictures; a batch of text must not meet them."""
    engine, text = vlm.engine(), [Request(vlm.prompts[1], 3)]
    before = engine.generate(text, Sampling(8).greedy(), 0)
    engine.generate(vlm.requests(1), Sampling(3), 0)
    assert engine.generate(text, Sampling(8).greedy(), 0) == before


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logps_are_the_trainers(vlm: VLM, temperature: float) -> None:
    groups = vlm.engine(batch_size=5).generate(vlm.requests(3), Sampling(10, temperature=temperature), seed=3)
    rows = [row for row in range(len(ROWS)) for _ in range(3)]
    drawn = flat(groups)
    with torch.no_grad():
        scored = vlm.logps([c.token_ids for c in drawn], rows, temperature=temperature)
    for i, completion in enumerate(drawn):
        recorded = torch.tensor(completion.logps)
        # The logits' rounding is divided by the temperature, too.
        assert (scored[i, : len(recorded)] - recorded).abs().max() <= BOUND / temperature


# ---- placeholder tokens


def test_placeholders_are_found(vlm: VLM) -> None:
    tokens = vlm.processor.tokenizer.convert_ids_to_tokens(vlm.banned)
    assert tokens == PLACEHOLDERS[vlm.model.config.model_type.replace("idefics3", "smolvlm")]


def test_nested_configurations_are_searched(vlm: VLM) -> None:
    """As in models that keep the whole vision-language configuration inside another one."""
    from transformers import PreTrainedConfig

    class Outer(PreTrainedConfig):  # type: ignore[misc]
        model_type = "outer"
        sub_configs = {"thinker_config": type(vlm.model.config)}  # noqa: RUF012

        def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
            return vlm.model.config.get_text_config()

    outer = Outer()
    outer.thinker_config = vlm.model.config
    assert placeholder_token_ids(type("Model", (), {"config": outer})()) == vlm.banned


@pytest.fixture
def eager(vlm: VLM) -> Any:
    """The model, driven to say its placeholder and nothing else: its output layer gets a bias."""
    bias = torch.zeros(vlm.model.config.get_text_config().vocab_size)
    bias[vlm.banned] = 1e4
    handle = vlm.model.get_output_embeddings().register_forward_hook(lambda module, args, out: out + bias)
    yield vlm
    handle.remove()


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_a_placeholder_is_never_sampled(eager: VLM, greedy: bool) -> None:
    """Not after pictures, not after text; and what was sampled has the probability that scoring gives it."""
    sampling = Sampling(12).greedy() if greedy else Sampling(12)
    free = eager.engine(banned_token_ids=[])
    text = [Request(eager.prompts[1], 2)]
    wild = flat(free.generate(text, Sampling(2), seed=5))
    assert all(set(c.token_ids) <= set(eager.banned) for c in wild), "the bias does not do its work"

    drawn = flat(eager.engine().generate(eager.requests(2), sampling, seed=5))
    assert not {token for c in drawn for token in c.token_ids} & set(eager.banned)
    rows = [row for row in range(len(ROWS)) for _ in range(2)]
    with torch.no_grad():
        scored = eager.logps([c.token_ids for c in drawn], rows)
        unmasked = eager.logps([c.token_ids for c in drawn], rows, banned_token_ids=[])
    for i, completion in enumerate(drawn):
        recorded = torch.tensor(completion.logps)
        # The bias is large against float32's precision of the log-sum-exp, but it is masked before that is taken.
        assert (scored[i, : len(recorded)] - recorded).abs().max() <= BOUND
        assert unmasked[i, : len(recorded)].max() < -1e3


# ---- episodes


def test_images_stay_with_their_row_through_all_turns(vlm: VLM) -> None:
    """Each turn was sampled with the prompt's own pictures, and an observation can't bring a placeholder."""
    from mmreason.rollout.environment import load_environment
    from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine, continued_visual

    ends = [*end_token_ids(vlm.model, vlm.processor.tokenizer), *range(60, 90)]  # many, so that turns do end
    settings = EnvironmentSettings(load_environment({"name": "tests.rollout.worlds.InThread", "turns": 2}))
    engine = MultiTurnEngine(vlm.engine(eos_token_ids=ends), settings, vlm.processor, end_token_ids=ends)
    requests = [
        Request(ids, 4, visual, {"id": str(i), "prompt": ask(ROWS[i][0], len(ROWS[i][1]))})
        for i, (ids, visual) in enumerate(zip(vlm.prompts, vlm.visuals, strict=True))
    ]
    groups = engine.generate(requests, Sampling(80), seed=1)
    assert sum(c.columns["environment_turns"] == 2 for group in groups for c in group) >= 2
    with torch.no_grad():
        for number in range(4):
            drawn = [group[number] for group in groups]
            scored = vlm.logps([c.token_ids for c in drawn]).tolist()
            for values, completion in zip(scored, drawn, strict=True):
                for value, logp, mine in zip(values, completion.logps, completion.sampled or [], strict=False):
                    assert logp == (pytest.approx(value, abs=1e-4) if mine else 0.0)
    visual = next(visual for visual in vlm.visuals if visual is not None)
    more = continued_visual(visual, [7, 8])
    assert more.ids == [*visual.ids, 7, 8] and more.engine_ids == [*visual.engine_ids, 7, 8]
    assert more.images is visual.images and more.inputs.keys() == visual.inputs.keys()
    placeholder = vlm.processor.image_token
    tokenizer = vlm.processor.tokenizer
    for plain in (False, True):
        said = engine.render([{"role": "user", "content": f"look {placeholder}{placeholder}"}], plain=plain)
        assert tokenizer.convert_tokens_to_ids(placeholder) not in said
        assert tokenizer.decode(said).count(f"{placeholder[0]} {placeholder[1:]}") == 2, "a text that spells a picture"
