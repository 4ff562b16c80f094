"""The English texts. The trigger phrases of 2205.11916 and 2305.04091 stand as published; all else is worded here."""

from __future__ import annotations

from mmreason.prompting.texts import Texts

EN = Texts(
    options="Options:",
    forms={
        "number": "a number",
        "math": "a mathematical expression",
        "choice": "the letter of one option",
        "yesno": "yes or no",
        "text": "a few words",
        None: "the final answer",
    },
    finish='End with the line "The answer is X.", where X is {form}.',
    direct="{question}\n\nReply with the answer alone ({form}), without any explanation.",
    role_name="a teacher who solves problems carefully and explains each step",
    role="You are {role}. Stay in this role in every reply.",
    solve="{question}\n\nSolve this step by step. {finish}",
    shot="{reasoning}\nThe answer is {answer}.",
    bare_shot="The answer is {answer}.",
    # Kojima et al. 2022, arXiv:2205.11916, table 4 (the best of the instructive triggers).
    trigger="Let's think step by step.",
    # Wang et al. 2023, arXiv:2305.04091: PS and PS+.
    plan=(
        "Let's first understand the problem and devise a plan to solve the problem. Then, let's carry out the plan and "
        "solve the problem step by step."
    ),
    plan_plus=(
        "Let's first understand the problem, extract relevant variables and their corresponding numerals, and devise a "
        "complete plan. Then, let's carry out the plan, calculate intermediate variables (pay attention to correct "
        "numerical calculation and commonsense), solve the problem step by step, and show the answer."
    ),
    triggered="Q: {question}\nA: {trigger}",
    triggered_finish="Q: {question}\n{finish}\nA: {trigger}",
    extraction="Q: {question}\nA: {trigger} {steps}\n{ask}",
    # arXiv:2205.11916, appendix A.5.
    answer_triggers={
        "number": "Therefore, the answer (arabic numerals) is",
        "math": "Therefore, the answer is",
        "choice": "Therefore, among A through {last}, the answer is",
        "yesno": "Therefore, the answer (Yes or No) is",
        "text": "Therefore, the answer is",
        None: "Therefore, the answer is",
    },
    lead="The answer is",
    think="{question}\n\nThink this through in as much detail as it needs. The final answer will be asked for later.",
    final="Now give the final answer, as {form}, and nothing else.",
    decompose=(
        "{question}\n\nDon't solve this yet. Which simpler questions have to be answered first, and in which order? "
        "List at most {limit} of them, one per line, numbered 1., 2. and so on. Write the questions only."
    ),
    first_part=(
        "{question}\n\nWe solve this through simpler questions, one at a time. Answer only the question that is "
        "asked.\nFirst: {part}"
    ),
    next_part="Next: {part}",
    whole="Now solve the whole problem with what has been found. {finish}",
    skeleton=(
        "{question}\n\nWrite only the skeleton of a reply: at most {limit} points, one per line, numbered 1., 2. and "
        "so on, each of three to six words. The details are written later."
    ),
    point=(
        "{question}\n\nThe skeleton of the reply:\n{skeleton}\n\nWrite out point {index} ({point}) in one to three "
        "sentences. Leave out the other points."
    ),
    no_steps="(none yet)",
    propose=(
        "{question}\n\nSteps so far:\n{steps}\n\nPropose up to {limit} different next steps, one per line, numbered "
        "1., 2. and so on. Each is one short step that follows the steps so far. A step that completes the solution "
        'ends with "The answer is X."'
    ),
    value=(
        "{question}\n\nSteps so far:\n{steps}\n\nCan these steps lead to the right answer? Check them for mistakes "
        "first. Then write your verdict on a line of its own: sure, likely or impossible."
    ),
    # The weights that the authors of arXiv:2305.10601 published with their code for the Game of 24.
    value_words={"sure": 20.0, "likely": 1.0, "impossible": 0.001},
    complete="{question}\n\nSteps so far:\n{steps}\n\nComplete the solution from here. {finish}",
    act=(
        "You solve problems in turns, with tools. The tools:\n{tools}\n\nA turn that uses a tool has this form:\n"
        "Thought: what you know and what you need\nAction: the tool's name\nAction Input: its arguments as one JSON "
        "object\n\nStop there; the next message starts with Observation: and holds the result. The last turn has this "
        "form:\nThought: why the problem is solved\nFinal Answer: {form}"
    ),
    act_arguments="Arguments: {arguments}.",
    act_native="You solve problems with tools. Call a tool whenever it makes a step surer. {finish}",
    act_last="No more tools can be used. Reply with the answer that you have now. {finish}",
    retry=(
        "{question}\n\nEarlier attempts at this failed. What was learned from them:\n{lessons}\n\nSolve this step by "
        "step, and mind what was learned. {finish}"
    ),
    lesson="{index}. {lesson}",
    reflect=(
        "{question}\n\nAn attempt at this:\n{attempt}\n\nThe verdict on it: {verdict}\n\nSay in two or three sentences "
        "what probably went wrong and what to do differently next time. Don't solve the problem again."
    ),
    wrong="The answer {answer} is wrong.",
    no_answer="No answer could be read from it.",
    explain=(
        "{question}\n\nThe right answer is {gold}. Write a step-by-step solution that derives it from the question "
        "alone, as somebody would who doesn't know it beforehand. Never mention that you were told. {finish}"
    ),
    json=(
        "{question}\n\nReply with one JSON object and nothing else. It must fit this JSON Schema:\n{schema}\n"
        "The answer in it is {form}."
    ),
    json_again="That reply can't be used: {error}\nReply again, with one JSON object that fits the schema only.",
)
