"""Chinese sentences of the word problems, clause by clause as in `_words.clauses_en`.

{l} is the measure word of the thing {t}, {gl} and {wl} those of the goods {good} and {ware}; a container has a measure
word ({box}) and a noun ({boxes}); {w} with {v} is a thing that plays no part.
"""

from __future__ import annotations

import random

from data_builders._words.templates import distinct, one

# fmt: off
_GIRLS = ("小红", "小丽", "小芳", "小兰", "小雪", "小燕", "小梅", "小玲", "小美", "小云", "小雨", "小琴")
_BOYS = ("小明", "小刚", "小军", "小强", "小东", "小龙", "小亮", "小杰", "小伟", "小勇", "小山", "小宝")
# (noun, measure word): what people have, find, give and pack
_THINGS = (
    ("苹果", "个"), ("梨", "个"), ("柠檬", "个"), ("橘子", "个"), ("鸡蛋", "个"), ("核桃", "个"), ("贝壳", "个"),
    ("气球", "个"), ("饼干", "块"), ("石头", "块"), ("积木", "块"), ("卡片", "张"), ("贴纸", "张"), ("邮票", "张"),
    ("糖", "颗"), ("珠子", "颗"), ("弹珠", "颗"), ("红枣", "颗"), ("铅笔", "支"), ("蜡笔", "支"), ("花", "朵"),
    ("羽毛", "根"), ("树叶", "片"), ("小旗", "面"),
)
# what costs some yuan
_GOODS = (
    ("书", "本"), ("玩具", "个"), ("杯子", "个"), ("盘子", "个"), ("碗", "个"), ("蛋糕", "块"), ("毛巾", "条"),
    ("围巾", "条"), ("椅子", "把"), ("勺子", "把"), ("雨伞", "把"), ("帽子", "顶"), ("台灯", "盏"), ("衬衫", "件"),
    ("风筝", "只"), ("钢笔", "支"),
)
# fmt: on
_CONTAINERS = (("盒", "盒子"), ("袋", "袋子"), ("篮", "篮子"), ("箱", "箱子"))
_SHOPS = ("商店", "市场")
_PLACES = ("公园", "学校", "广场", "大桥", "市场", "图书馆")
_HALLS = ("学校", "图书馆", "车站")
_RIDES = ("公共汽车", "火车", "船", "轮船")

SEPARATOR = ""
ANSWER = "答案是{}。"

CLAUSES: dict[str, tuple[str, ...]] = {
    # things of one person
    "has": ("{n}有@{l}{t}。", "开始时{n}有@{l}{t}。", "{n}原来有@{l}{t}。"),
    "gets": (
        "{m}又给了{he}@{l}{t}。",
        "后来{n}又得到@{l}{t}。",
        "{he}在{shop}又买了@{l}{t}。",
        "{he}在家里又找到@{l}{t}。",
    ),
    "gives": (
        "{he}送给{m}@{l}{t}。",
        "后来{n}送出了@{l}{t}。",
        "{he}在路上丢了@{l}{t}。",
        "{he}在{shop}卖掉了@{l}{t}。",
    ),
    "gives_each": (
        "{he}送给@个朋友每人%{l}{t}。",
        "后来{n}给了@个朋友每人%{l}{t}。",
        "{he}有@个朋友，{he}送给每人%{l}{t}。",
    ),
    "packs": (
        "{n}有@{bag}{t}，每{bag}有%{l}。",
        "{n}买了@{bag}{t}，每{bag}%{l}。",
        "{n}装了@{bag}{t}，每{bag}装%{l}。",
    ),
    "packs_too": (
        "{he}还有@{bin}{t}，每{bin}有%{l}。",
        "{he}还买了@{bin}{t}，每{bin}%{l}。",
        "后来{n}又装了@{bin}{t}，每{bin}装%{l}。",
    ),
    "in_boxes": (
        "{n}有@{l}{t}，平均放在%个{boxes}里。",
        "{n}把@{l}{t}平均装进%个{boxes}。",
        "一共有@{l}{t}，平均装在%个{boxes}里。",
    ),
    "into": (
        "{he}把自己所有的{t}平均放进@个{boxes}。",
        "后来{n}把自己所有的{t}平均装进@个{boxes}。",
        "然后{he}把自己所有的{t}平均分到@个{boxes}里。",
    ),
    "each_more": (
        "后来{n}在每个{boxes}里又放了@{l}{t}。",
        "然后{he}又往每个{boxes}里放了@{l}{t}。",
        "后来每个{boxes}里又多了@{l}{t}。",
    ),
    "boxes_of": (
        "{he}把自己所有的{t}装进{boxes}，每个{boxes}装@{l}。",
        "后来{n}用{boxes}装自己所有的{t}，每个{boxes}装@{l}。",
        "然后{he}把自己所有的{t}放进{boxes}，每{box}@{l}。",
    ),
    "to_friends": (
        "{he}把自己所有的{t}平均分给@个朋友。",
        "后来{n}把自己所有的{t}平均送给@个朋友。",
        "后来@个朋友平均分了{n}所有的{t}。",
    ),
    "hens": (
        "{n}养了@只母鸡，每只母鸡下了%个鸡蛋。",
        "{n}有@只母鸡，每只母鸡下了%个鸡蛋。",
        "{n}家里有@只母鸡，每只下了%个鸡蛋。",
    ),
    "eggs_used": ("{he}送给{m}@个鸡蛋。", "后来{n}做蛋糕用了@个鸡蛋。", "{he}在路上打破了@个鸡蛋。"),
    "eggs_of": (
        "{he}把其余的鸡蛋装进{boxes}，每个{boxes}装@个。",
        "后来{n}用{boxes}装其余的鸡蛋，每个{boxes}装@个。",
        "然后{he}把其余的鸡蛋放进{boxes}，每{box}@个。",
    ),
    "sells_each": ("{he}按每{box}@元全部卖掉了。", "后来{n}每{box}卖了@元。", "在市场上{he}每{box}卖了@元。"),
    # more than one person
    "m_more": ("{m}比{n}多@{l}{t}。", "{m}的{t}比{n}多@{l}。", "{m}手里的{t}比{n}多@{l}。"),
    "m_fewer": ("{m}比{n}少@{l}{t}。", "{m}的{t}比{n}少@{l}。", "{n}的{t}比{m}多@{l}。"),
    "m_times": ("{m}的{t}是{n}的@倍。", "{m}手里的{t}是{n}的@倍。", "{m}的{t}数量是{n}的@倍。"),
    "k_more": ("{k}比{m}多@{l}{t}。", "{k}的{t}比{m}多@{l}。", "{k}手里的{t}比{m}多@{l}。"),
    "k_fewer": ("{k}比{m}少@{l}{t}。", "{k}的{t}比{m}少@{l}。", "{m}的{t}比{k}多@{l}。"),
    "they_give": (
        "后来他们一共送出了@{l}{t}。",
        "他们在{shop}一共卖掉了@{l}{t}。",
        "他们在路上一共丢了@{l}{t}。",
    ),
    "they_into": (
        "他们把所有的{t}平均放进@个{boxes}。",
        "后来他们把所有的{t}平均装进@个{boxes}。",
        "然后他们把所有的{t}平均分到@个{boxes}里。",
    ),
    "age": ("{n}今年@岁。", "{n}现在@岁。", "{n}今年的年龄是@岁。"),
    "m_older": ("{m}比{n}大@岁。", "{m}的年龄比{n}大@岁。", "{n}出生时{m}@岁。"),
    # money
    "money": ("{n}有@元。", "{n}带着@元去{shop}。", "{n}原来有@元。"),
    "buys": (
        "{n}买了@{gl}{good}，每{gl}%元。",
        "{n}在{shop}买了@{gl}{good}，每{gl}%元。",
        "{n}买了@{gl}{good}，每{gl}要%元。",
    ),
    "buys_too": (
        "{he}还买了@{wl}{ware}，每{wl}%元。",
        "后来{n}又买了@{wl}{ware}，每{wl}%元。",
        "{he}还买了@{wl}{ware}，每{wl}要%元。",
    ),
    "saves": (
        "{n}每星期存@元，存了%个星期。",
        "{n}每天存@元，一共存了%天。",
        "{n}每天得到@元，这样过了%天。",
    ),
    "money_gift": ("{m}又给了{he}@元。", "后来{n}又得到@元。", "{he}在家里又找到@元。"),
    "spends": ("{he}买票用了@元。", "后来{n}给了{m}@元。", "{he}在路上丢了@元。"),
    "spends_too": ("然后{he}买吃的用了@元。", "最后{he}给了朋友@元。", "然后{n}在{shop}丢了@元。"),
    # pages of a book
    "book": ("{n}有一本@页的书。", "{n}的书一共有@页。", "{n}借来一本@页的书。"),
    "reads": ("{he}看了@页。", "后来{n}看了@页。", "{he}在路上看了@页。"),
    "reads_daily": (
        "{he}每天看@页，看了%天。",
        "{he}先每天看@页，一共看了%天。",
        "{n}先每天看@页，这样看了%天。",
    ),
    "then_daily": (
        "后来{n}每天看@页，看了%天。",
        "然后{he}每天看@页，一共看了%天。",
        "后来{he}每天看@页，这样看了%天。",
    ),
    "rest": ("剩下的，{he}每天看@页。", "从那以后，{n}每天看@页。", "其余的，{n}每天看@页。"),
    # a bus, a train, a boat
    "ride": ("{ride}上有@人。", "开始时{ride}上有@人。", "在第一站有@人上了空的{ride}。"),
    "off": ("后来有@人下了{ride}。", "到了下一站有@人下了{ride}。", "到了{place}有@人下了{ride}。"),
    "on": ("后来又有@人上了{ride}。", "到了下一站又有@人上了{ride}。", "到了{stop}又有@人上了{ride}。"),
    # chairs in a hall
    "rows": (
        "{hall}的大厅里有@排椅子，每排%把。",
        "大厅里有@排椅子，每排有%把。",
        "开始时大厅里有@排椅子，每排%把。",
    ),
    "rows_too": (
        "后来{n}又往大厅里放了@排椅子，每排%把。",
        "然后大厅里又多了@排椅子，每排有%把。",
        "{hall}又给大厅买了@排椅子，每排%把。",
    ),
    "chairs_in": (
        "后来{m}又往大厅里放了@把椅子。",
        "然后大厅里又多了@把椅子。",
        "{hall}又给大厅买了@把椅子。",
    ),
    "chairs_out": (
        "后来{n}从大厅里搬走了@把椅子。",
        "后来{hall}卖掉了大厅里的@把椅子。",
        "然后有@把椅子从大厅搬到了别的房间。",
    ),
    # questions
    "q_now": ("{n}现在有多少{l}{t}？", "{he}最后有多少{l}{t}？", "求{n}现在有多少{l}{t}。"),
    "q_left": ("还剩多少{l}{t}？", "{n}还剩多少{l}{t}？", "求{n}还有多少{l}{t}。"),
    "q_all": ("{n}一共有多少{l}{t}？", "一共有多少{l}{t}？", "求{n}一共有多少{l}{t}。"),
    "q_friend": ("每个朋友得到多少{l}{t}？", "每个朋友分到多少{l}{t}？", "求每个朋友得到多少{l}{t}。"),
    "q_box": ("每个{boxes}里有多少{l}{t}？", "一个{boxes}里有多少{l}{t}？", "求每个{boxes}里有多少{l}{t}。"),
    "q_box_now": (
        "现在每个{boxes}里有多少{l}{t}？",
        "最后一个{boxes}里有多少{l}{t}？",
        "求现在每个{boxes}里有多少{l}{t}。",
    ),
    "q_in_boxes": (
        "其中@个{boxes}里一共有多少{l}{t}？",
        "@个这样的{boxes}里一共有多少{l}{t}？",
        "求其中@个{boxes}里一共有多少{l}{t}。",
    ),
    "q_boxes": ("{n}装了多少个{boxes}？", "{he}一共要用多少个{boxes}？", "求{n}一共要用多少个{boxes}。"),
    "q_earn": ("卖完后{n}一共得到多少元？", "{he}一共卖了多少元？", "求{n}卖完后一共得到多少元。"),
    "q_m": ("{m}有多少{l}{t}？", "{m}一共有多少{l}{t}？", "求{m}有多少{l}{t}。"),
    "q_both": (
        "{n}和{m}一共有多少{l}{t}？",
        "他们一共有多少{l}{t}？",
        "求{n}和{m}一共有多少{l}{t}。",
    ),
    "q_three": (
        "{n}、{m}和{k}一共有多少{l}{t}？",
        "他们三人一共有多少{l}{t}？",
        "求{n}、{m}和{k}一共有多少{l}{t}。",
    ),
    "q_they": ("还剩多少{l}{t}？", "他们还剩多少{l}{t}？", "求他们一共还有多少{l}{t}。"),
    "q_m_age": ("{m}今年多少岁？", "{m}现在多少岁？", "求{m}今年的年龄。"),
    "q_m_age_in": ("@年后{m}多少岁？", "再过@年{m}多少岁？", "求{m}@年后的年龄。"),
    "q_cost": ("{n}一共用了多少元？", "这些{good}一共要多少元？", "求{n}一共用了多少元。"),
    "q_money": ("还剩多少元？", "{n}还剩多少元？", "求{n}还有多少元。"),
    "q_pages": ("还剩多少页？", "{n}还有多少页没看？", "求还剩多少页没看。"),
    "q_days": ("{n}还要看多少天？", "{he}还要多少天才能看完？", "求{n}还要看多少天。"),
    "q_ride": ("现在{ride}上有多少人？", "最后{ride}上有多少人？", "求现在{ride}上有多少人。"),
    "q_chairs": ("现在大厅里有多少把椅子？", "最后大厅里有多少把椅子？", "求现在大厅里有多少把椅子。"),
}

# Sentences with a number that plays no part, by what a story is about.
DISTRACTORS: dict[str, tuple[str, ...]] = {
    "person": (
        "{n}今年@岁。",
        "{n}家里还有@{v}{w}。",
        "走到{place}要用@分钟。",
        "{shop}里有@人。",
    ),
    "people": ("{n}今年@岁。", "{n}家里还有@{v}{w}。", "{m}家里还有@{v}{w}。"),
    "hens": ("{n}今年@岁。", "走到{place}要用@分钟。", "{shop}里有@人。"),
    "ride": ("{ride}已经用了@年。", "每张票@元。", "从{place}来要用@分钟。"),
    "hall": ("{hall}里有@本书。", "从{hall}走到{shop}要用@分钟。", "{n}今年@岁。"),
}


def words(rng: random.Random) -> dict[str, object]:
    """Names, things and places of one story."""
    own, others, he = (_GIRLS, _BOYS, "她") if rng.random() < 0.5 else (_BOYS, _GIRLS, "他")
    n, k = distinct(rng, own, 2)
    (thing, measure), (other, other_measure) = distinct(rng, _THINGS, 2)
    (good, good_measure), (ware, ware_measure) = distinct(rng, _GOODS, 2)
    (bag, _), (box, boxes), (can, _) = distinct(rng, _CONTAINERS, 3)
    place, stop = distinct(rng, _PLACES, 2)
    return {
        "he": he,
        "n": n,
        "m": one(rng, others),
        "k": k,
        "t": thing,
        "l": measure,
        "w": other,
        "v": other_measure,
        "good": good,
        "gl": good_measure,
        "ware": ware,
        "wl": ware_measure,
        "bag": bag,
        "box": box,
        "boxes": boxes,
        "bin": can,
        "shop": one(rng, _SHOPS),
        "place": place,
        "stop": stop,
        "hall": one(rng, _HALLS),
        "ride": one(rng, _RIDES),
    }
