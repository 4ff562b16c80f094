"""The names and placeholders of the texts that the strategies use; templates_en.py and templates_zh.py hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmreason.answers import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """All texts of one language. Placeholders stand in braces; `{question}` takes the question with its images.

    Attributes:
        options: heading of the options of a multiple-choice question.
        forms: answer kind -> what an answer of it looks like, in words. `{form}` is one of them.
        finish: `{form}`; how a solution shall end. Other texts take the filled one as `{finish}`.
        direct: `{question}`, `{form}`.
        role_name: who the model plays where no role is given. role: `{role}`.
        solve: `{question}`, `{finish}`; step by step, in one go.
        shot: `{reasoning}`, `{answer}`; the reply of a worked example. bare_shot: `{answer}`.
        trigger: of zero-shot chain of thought. plan, plan_plus: the triggers of plan-and-solve.
        triggered: `{question}`, `{trigger}`. triggered_finish: also `{finish}`.
        extraction: `{question}`, `{trigger}`, `{steps}`, `{ask}`; ask is one of `answer_triggers`.
        answer_triggers: answer kind -> what the final answer is written after; `{last}` is the last option's label.
        lead: what an answer that stands alone is read after.
        think: `{question}`; the first of two turns. final: `{form}`; the second.
        decompose: `{question}`, `{limit}`. first_part: `{question}`, `{part}`. next_part: `{part}`.
        whole: `{finish}`; the problem itself after its parts.
        skeleton: `{question}`, `{limit}`. point: `{question}`, `{skeleton}`, `{index}`, `{point}`.
        no_steps: in the place of `{steps}` before there are any.
        propose: `{question}`, `{steps}`, `{limit}`. value: `{question}`, `{steps}`.
        value_words: the words that a value prompt asks for -> their values.
        complete: `{question}`, `{steps}`, `{finish}`.
        act: `{tools}`, `{form}`; the system turn of ReAct in text. act_arguments: `{arguments}`; of one of the tools.
        act_native: `{finish}`; the system turn with native tool calls.
        act_last: `{finish}`; once no more tools may be used.
        retry: `{question}`, `{lessons}`, `{finish}`. lesson: `{index}`, `{lesson}`.
        reflect: `{question}`, `{attempt}`, `{verdict}`.
        wrong: `{answer}`; a verdict. no_answer: a verdict.
        explain: `{question}`, `{gold}`, `{finish}`.
        json: `{question}`, `{schema}`, `{form}`. json_again: `{error}`.
    """

    options: str
    forms: Mapping[Kind | None, str]
    finish: str
    direct: str
    role_name: str
    role: str
    solve: str
    shot: str
    bare_shot: str
    trigger: str
    plan: str
    plan_plus: str
    triggered: str
    triggered_finish: str
    extraction: str
    answer_triggers: Mapping[Kind | None, str]
    lead: str
    think: str
    final: str
    decompose: str
    first_part: str
    next_part: str
    whole: str
    skeleton: str
    point: str
    no_steps: str
    propose: str
    value: str
    value_words: Mapping[str, float]
    complete: str
    act: str
    act_arguments: str
    act_native: str
    act_last: str
    retry: str
    lesson: str
    reflect: str
    wrong: str
    no_answer: str
    explain: str
    json: str
    json_again: str
