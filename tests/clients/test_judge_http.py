"""A judge behind a real endpoint and a real HTTP server, which answers with the first value that fits the schema."""

from __future__ import annotations

import asyncio

from mmreason.clients.endpoint import Endpoint
from mmreason.clients.judge import Judge
from mmreason.clients.judge_prompts import CRITERIA
from mmreason.clients.judge_types import JudgeSettings, PairItem, RubricItem
from mmreason.clients.settings import EndpointConfig
from tests.clients.server import Running, running_server

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)


def config(server: Running) -> EndpointConfig:
    return EndpointConfig(
        base_url=server.base_url, model="judge", api_key_env=None, max_retries=2, schema_retries=1, backoff_s=0.01,
        price={"input": 1.0, "output": 1.0}, image_tokens=1000,
    )  # fmt: skip


async def compared(server: Running, items: list[PairItem], **options):
    async with Endpoint(config(server)) as endpoint:
        return await Judge(endpoint, **options).compare(items)


async def scored(server: Running, items: list[RubricItem]):
    async with Endpoint(config(server)) as endpoint:
        return await Judge(endpoint).score(items, list(CRITERIA["en"].values()))


def test_pairs_with_faults_on_the_way():
    """The first value that fits is "A": the answer shown first, in either order, so that all that is read is a tie."""
    plans = {
        "plain": "",
        "recovers": "{{500,429:0,ok}}",
        "second try": "{{wrong_schema,ok}}",
        "garbage": "{{no_json}}",
        "wrong": "{{wrong_schema}}",
        "refused": "{{400}}",
        "down": "{{500}}",
    }
    items = [PairItem(id=name, question=f"Why? {plan}", answer_a="x", answer_b="y") for name, plan in plans.items()]
    with running_server() as server:
        report = asyncio.run(compared(server, items))
        charged = server.charged_tokens()
    assert [result.id for result in report.results] == list(plans)
    assert {result.id: result.status for result in report.results} == {
        "plain": "ok", "recovers": "ok", "second try": "ok", "garbage": "unreadable", "wrong": "unreadable",
        "refused": "error", "down": "error",
    }  # fmt: skip
    assert report.count("tie") == 3 and report.position_bias.rate == 1.0
    assert report.unreadable == {"schema": 4}
    assert report.errors == {"bad_request": 2, "server": 2}
    assert (report.usage.calls, report.usage.failed) == (6, 8)
    assert 0 < report.usage.prompt_tokens <= charged[0] and report.usage.cost > 0 and report.usage.unpriced == 0


def test_scores_with_an_image():
    with running_server() as server:
        report = asyncio.run(
            scored(server, [RubricItem(id="1", question="What is this?", answer="A dot.", images=(PNG,))])
        )
        content = server.log[0].body["messages"][-1]["content"]
    assert report.results[0].scores == dict.fromkeys(CRITERIA["en"], 1)
    assert [part["type"] for part in content] == ["image_url", "text"]


def test_the_text_form():
    replies = {"Two answers": "Both say the same.\nVerdict: [[tie]]"}
    with running_server(replies=replies) as server:
        items = [PairItem(id=str(i), question=f"Why {i}?", answer_a="x", answer_b="y") for i in range(20)]
        report = asyncio.run(compared(server, items, settings=JudgeSettings(answer_form="text")))
        assert "response_format" not in server.log[0].body
    assert report.count("tie") == 20 and report.position_bias.consistent == 20
