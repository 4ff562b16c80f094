"""The Chinese texts: the same prompts as in templates_en.py, field by field."""

from __future__ import annotations

from mmreason.prompting.texts import Texts

ZH = Texts(
    options="选项：",
    forms={
        "number": "一个数",
        "math": "一个数学表达式",
        "choice": "一个选项的字母",
        "yesno": "“是”或“否”",
        "text": "几个词",
        None: "最终答案",
    },
    finish="最后单独写一行“答案是X。”，其中X是{form}。",
    direct="{question}\n\n只回答答案本身（{form}），不要任何解释。",
    role_name="一位认真解题、逐步讲解的老师",
    role="你是{role}。在每次回复中都保持这个角色。",
    solve="{question}\n\n请逐步解答。{finish}",
    shot="{reasoning}\n答案是{answer}。",
    bare_shot="答案是{answer}。",
    trigger="让我们一步一步地思考。",
    plan="让我们先理解题意，制定解题计划；然后按照计划，一步一步地解决问题。",
    plan_plus=(
        "让我们先理解题意，提取相关的变量及其数值，制定完整的计划；然后按照计划计算中间变量（注意计算正确、符合常识），"
        "一步一步地解决问题，并给出答案。"
    ),
    triggered="问：{question}\n答：{trigger}",
    triggered_finish="问：{question}\n{finish}\n答：{trigger}",
    extraction="问：{question}\n答：{trigger}{steps}\n{ask}",
    answer_triggers={
        "number": "因此，答案（阿拉伯数字）是",
        "math": "因此，答案是",
        "choice": "因此，在A到{last}中，答案是",
        "yesno": "因此，答案（是或否）是",
        "text": "因此，答案是",
        None: "因此，答案是",
    },
    lead="答案是",
    think="{question}\n\n请尽可能详细地思考这个问题。稍后会请你给出最终答案。",
    final="现在只给出最终答案（{form}），不要写别的内容。",
    decompose=(
        "{question}\n\n先不要解答。需要先依次回答哪些更简单的问题？最多列出{limit}个，每行一个，用1.、2.等编号，"
        "只写问题。"
    ),
    first_part="{question}\n\n我们通过更简单的问题逐个解决它。每次只回答当前的问题。\n首先：{part}",
    next_part="接下来：{part}",
    whole="现在利用以上结果解答整个问题。{finish}",
    skeleton=(
        "{question}\n\n只写出回答的提纲：最多{limit}个要点，每行一个，用1.、2.等编号，每个要点三到六个词。细节稍后再写。"
    ),
    point="{question}\n\n回答的提纲：\n{skeleton}\n\n请用一到三句话展开第{index}点（{point}），不要写其他要点。",
    no_steps="（还没有）",
    propose=(
        "{question}\n\n目前的步骤：\n{steps}\n\n提出最多{limit}个不同的下一步，每行一个，用1.、2.等编号。"
        "每个都是紧接目前步骤的简短一步。如果某一步完成了解答，就以“答案是X。”结尾。"
    ),
    value=(
        "{question}\n\n目前的步骤：\n{steps}\n\n这些步骤能得出正确答案吗？请先检查有没有错误，"
        "然后单独一行写出判断：肯定、可能或不可能。"
    ),
    value_words={"肯定": 20.0, "可能": 1.0, "不可能": 0.001},
    complete="{question}\n\n目前的步骤：\n{steps}\n\n请从这里完成解答。{finish}",
    act=(
        "你借助工具分轮解决问题。工具有：\n{tools}\n\n使用工具的一轮按以下格式书写，关键词用英文：\n"
        "Thought: 已知什么、还需要什么\nAction: 工具的名称\nAction Input: 参数，写成一个JSON对象\n\n"
        "写到这里为止；下一条消息以Observation:开头，给出结果。最后一轮的格式是：\n"
        "Thought: 为什么问题已经解决\nFinal Answer: {form}"
    ),
    act_arguments="参数：{arguments}。",
    act_native="你借助工具解决问题。只要工具能让某一步更可靠，就调用它。{finish}",
    act_last="不能再使用工具了。请给出你现在得到的答案。{finish}",
    retry=("{question}\n\n之前的尝试都失败了。从中得到的教训：\n{lessons}\n\n请注意这些教训，逐步解答。{finish}"),
    lesson="{index}. {lesson}",
    reflect=(
        "{question}\n\n对这个问题的一次尝试：\n{attempt}\n\n对它的评判：{verdict}\n\n"
        "请用两三句话说明可能错在哪里、下次应当怎样做。不要重新解题。"
    ),
    wrong="答案{answer}是错误的。",
    no_answer="从中读不出答案。",
    explain=(
        "{question}\n\n正确答案是{gold}。请写出只根据题目得出它的逐步解答，就像事先并不知道答案一样。"
        "绝不要提到有人告诉过你答案。{finish}"
    ),
    json=(
        "{question}\n\n只回复一个JSON对象，不要写别的内容。它必须符合以下JSON Schema：\n{schema}\n其中的答案是{form}。"
    ),
    json_again="这个回复不能使用：{error}\n请重新回复一个符合该Schema的JSON对象，不要写别的内容。",
)
