"""English sentences of the word problems: plain and short, few words in many orders.

In a clause "@" is its first number and "%" its second. {n} is the person of the story, {m} one of the other gender (so
that "he" and "she" always mean {n}), {k} a third one. No clause relies on the one before it: each names its things,
because a distractor may stand between them.
"""

from __future__ import annotations

import random

from data_builders._words.templates import distinct, one

# fmt: off
_GIRLS = (
    "Mia", "Ana", "Eva", "Lea", "Zoe", "Ida", "Nora", "Rosa", "Emma", "Lily", "Ella", "Iris", "Vera", "Dina", "Jana",
)
_BOYS = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Paul", "Omar", "Finn", "Hugo", "Adam", "Ivan", "Theo", "Luis", "Nick",
)
_SHE = {"he": "she", "He": "She", "him": "her", "his": "her"}
_HE = {"he": "he", "He": "He", "him": "him", "his": "his"}

# what people have, find, give and pack
_THINGS = (
    "apples", "pears", "lemons", "plums", "eggs", "nuts", "cookies", "cards", "stickers", "stamps", "shells", "stones",
    "marbles", "buttons", "beads", "pens", "balls", "dolls", "keys", "pins", "rings", "feathers", "leaves",
)
# fmt: on
# what costs some dollars
_GOODS = (
    ("book", "books"),
    ("toy", "toys"),
    ("hat", "hats"),
    ("cup", "cups"),
    ("lamp", "lamps"),
    ("cake", "cakes"),
    ("plate", "plates"),
    ("chair", "chairs"),
    ("candle", "candles"),
    ("plant", "plants"),
    ("shirt", "shirts"),
    ("mirror", "mirrors"),
    ("spoon", "spoons"),
    ("kite", "kites"),
    ("scarf", "scarves"),
    ("bowl", "bowls"),
)
_CONTAINERS = (("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("packet", "packets"))
_SHOPS = ("shop", "market")
_PLACES = ("park", "school", "station", "bridge", "market", "museum")
_HALLS = ("school", "museum", "station")
_RIDES = ("bus", "train", "boat", "ship")

SEPARATOR = " "
ANSWER = "The answer is {}."

CLAUSES: dict[str, tuple[str, ...]] = {
    # things of one person
    "has": ("{n} has @ {t}.", "At first {n} has @ {t}.", "{n} owns @ {t}."),
    "gets": (
        "{m} gives {him} @ more {t}.",
        "Then {n} gets @ more {t}.",
        "{He} buys @ more {t} at the {shop}.",
        "{He} finds @ more {t} at home.",
    ),
    "gives": (
        "{He} gives @ {t} to {m}.",
        "Then {n} gives away @ {t}.",
        "{He} loses @ {t} on the way home.",
        "{He} sells @ {t} at the {shop}.",
    ),
    "gives_each": (
        "{He} gives @ friends % {t} each.",
        "Then @ friends get % {t} each from {n}.",
        "{He} has @ friends and gives % {t} to each friend.",
    ),
    "packs": (
        "{n} has @ {bags} with % {t} in each {bag}.",
        "{n} buys @ {bags} of {t}. There are % {t} in each {bag}.",
        "{n} fills @ {bags} with % {t} each.",
    ),
    "packs_too": (
        "{He} also has @ {bins} with % {t} in each {bin}.",
        "{He} also buys @ {bins} of {t}. There are % {t} in each {bin}.",
        "Then {n} fills @ {bins} with % {t} each.",
    ),
    "in_boxes": (
        "{n} has @ {t} in % {boxes}. Each {box} has the same number of {t}.",
        "{n} puts @ {t} into % {boxes}, the same number into each {box}.",
        "There are @ {t} in % {boxes}, the same number in each {box}.",
    ),
    "into": (
        "{He} puts all {his} {t} into @ {boxes}, the same number into each {box}.",
        "Then {n} fills @ {boxes} with all {his} {t}. Each {box} gets the same number.",
        "All {his} {t} go into @ {boxes}, the same number into each {box}.",
    ),
    "each_more": (
        "Then {n} puts @ more {t} into each {box}.",
        "After that {he} finds @ more {t} for each {box}.",
        "Then each {box} gets @ more {t}.",
    ),
    "boxes_of": (
        "{He} puts all {his} {t} into {boxes} of @.",
        "Then {n} fills {boxes} with all {his} {t}, @ {t} in each {box}.",
        "All {his} {t} go into {boxes}, @ {t} into each {box}.",
    ),
    "to_friends": (
        "{He} gives all {his} {t} to @ friends, the same number to each friend.",
        "Then @ friends get all {his} {t}. Each friend gets the same number.",
        "All {his} {t} go to @ friends, the same number to each friend.",
    ),
    "hens": (
        "{n} has @ hens and each hen gives % eggs.",
        "{n} has @ hens. Each hen gives {him} % eggs.",
        "There are @ hens and {n} gets % eggs from each hen.",
    ),
    "eggs_used": ("{He} gives @ eggs to {m}.", "Then {n} uses @ eggs for cakes.", "On the way @ eggs break."),
    "eggs_of": (
        "{He} puts the other eggs into {boxes} of @.",
        "The other eggs go into {boxes}, @ eggs into each {box}.",
        "Then {n} fills {boxes} with the other eggs, @ eggs in each {box}.",
    ),
    "sells_each": (
        "{He} sells each {box} for @ dollars.",
        "Then {n} gets @ dollars for each {box}.",
        "At the market {he} gets @ dollars for each {box}.",
    ),
    # more than one person
    "m_more": (
        "{m} has @ more {t} than {n}.",
        "{m} has as many {t} as {n} and @ more.",
        "{m} owns @ more {t} than {n}.",
    ),
    "m_fewer": (
        "{m} has @ fewer {t} than {n}.",
        "{m} owns @ fewer {t} than {n}.",
        "{n} has @ more {t} than {m}.",
    ),
    "m_times": (
        "{m} has @ times as many {t} as {n}.",
        "{m} owns @ times as many {t} as {n}.",
        "{m} has @ times the number of {t} that {n} has.",
    ),
    "k_more": (
        "{k} has @ more {t} than {m}.",
        "{k} has as many {t} as {m} and @ more.",
        "{k} owns @ more {t} than {m}.",
    ),
    "k_fewer": (
        "{k} has @ fewer {t} than {m}.",
        "{k} owns @ fewer {t} than {m}.",
        "{m} has @ more {t} than {k}.",
    ),
    "they_give": (
        "Together they give away @ {t}.",
        "Then they sell @ of all their {t} at the {shop}.",
        "On the way home they lose @ of all their {t}.",
    ),
    "they_into": (
        "They put all their {t} into @ {boxes}, the same number into each {box}.",
        "Together they fill @ {boxes} with all their {t}. Each {box} gets the same number.",
        "All their {t} go into @ {boxes}, the same number into each {box}.",
    ),
    "age": ("{n} is @ years old.", "Now {n} is @ years old.", "The age of {n} is @ years."),
    "m_older": (
        "{m} is @ years older than {n}.",
        "{m} is older than {n} by @ years.",
        "{m} is older. {m} was @ years old when {n} was born.",
    ),
    # money
    "money": (
        "{n} has @ dollars.",
        "{n} goes to the {shop} with @ dollars.",
        "At first {n} has @ dollars.",
    ),
    "buys": (
        "{n} buys @ {goods} for % dollars each.",
        "{n} buys @ {goods} at the {shop}. Each {good} costs % dollars.",
        "{n} gets @ {goods} and pays % dollars for each {good}.",
    ),
    "buys_too": (
        "{He} also buys @ {wares} for % dollars each.",
        "Then {n} buys @ {wares}. Each {ware} costs % dollars.",
        "{He} also gets @ {wares} and pays % dollars for each {ware}.",
    ),
    "saves": (
        "{n} saves @ dollars a week for % weeks.",
        "Each week {n} saves @ dollars. {He} does this for % weeks.",
        "{n} gets @ dollars a day for % days.",
    ),
    "money_gift": (
        "{m} gives {him} @ more dollars.",
        "Then {n} gets @ more dollars.",
        "{He} finds @ more dollars at home.",
    ),
    "spends": (
        "{He} pays @ dollars for a ticket.",
        "Then {n} gives @ dollars to {m}.",
        "{He} loses @ dollars on the way.",
    ),
    "spends_too": (
        "After that {he} pays @ dollars for food.",
        "In the end {he} gives @ dollars to a friend.",
        "After that {n} loses @ dollars at the {shop}.",
    ),
    # pages of a book
    "book": ("{n} has a book with @ pages.", "The book of {n} has @ pages.", "There are @ pages in the book of {n}."),
    "reads": ("{He} reads @ pages.", "Then {n} reads @ pages.", "On the way home {he} reads @ pages."),
    "reads_daily": (
        "{He} reads @ pages a day for % days.",
        "Each day {he} reads @ pages. {He} does this for % days.",
        "First {he} reads @ pages each day for % days.",
    ),
    "then_daily": (
        "Then {n} reads @ pages a day for % days.",
        "After that {he} reads @ pages each day for % days.",
        "Then {he} reads @ pages each day. {He} does this for % days.",
    ),
    "rest": (
        "After that {he} reads @ pages a day.",
        "From then on {n} reads @ pages each day.",
        "The other pages {he} reads at @ pages a day.",
    ),
    # a bus, a train, a boat
    "ride": (
        "There are @ people on the {ride}.",
        "At first there are @ people on the {ride}.",
        "At the first stop @ people get on the empty {ride}.",
    ),
    "off": (
        "Then @ people get off the {ride}.",
        "At the next stop @ people get off the {ride}.",
        "At the {place} @ people get off the {ride}.",
    ),
    "on": (
        "Then @ more people get on the {ride}.",
        "At the next stop @ more people get on the {ride}.",
        "At the {stop} @ more people get on the {ride}.",
    ),
    # chairs in a hall
    "rows": (
        "The hall of the {hall} has @ rows with % chairs in each row.",
        "There are @ rows of chairs in the hall. Each row has % chairs.",
        "At first the hall has @ rows of % chairs.",
    ),
    "rows_too": (
        "Then {n} puts @ more rows of % chairs into the hall.",
        "After that the hall gets @ more rows with % chairs in each row.",
        "The {hall} buys @ more rows of % chairs for the hall.",
    ),
    "chairs_in": (
        "Then {m} puts @ more chairs into the hall.",
        "After that the hall gets @ more chairs.",
        "The {hall} buys @ more chairs for the hall.",
    ),
    "chairs_out": (
        "Then {n} takes @ chairs out of the hall.",
        "Then the {hall} sells @ chairs from the hall.",
        "After that @ chairs go from the hall to another room.",
    ),
    # questions
    "q_now": (
        "How many {t} does {n} have now?",
        "How many {t} does {he} have in the end?",
        "Find the number of {t} that {n} has now.",
    ),
    "q_left": ("How many {t} are left?", "How many {t} does {n} have left?", "How many {t} does {n} still have?"),
    "q_all": (
        "How many {t} does {n} have in all?",
        "How many {t} are there in all?",
        "Find the number of all the {t}.",
    ),
    "q_friend": (
        "How many {t} does each friend get?",
        "How many {t} does one friend get?",
        "Find the number of {t} that each friend gets.",
    ),
    "q_box": (
        "How many {t} are in each {box}?",
        "How many {t} are there in one {box}?",
        "Find the number of {t} in each {box}.",
    ),
    "q_box_now": (
        "How many {t} are in each {box} now?",
        "How many {t} are there in one {box} in the end?",
        "Find the number of {t} that are now in each {box}.",
    ),
    "q_in_boxes": (
        "How many {t} are in @ of the {boxes}?",
        "How many {t} are there in @ of the {boxes}?",
        "Find the number of {t} in @ of the {boxes}.",
    ),
    "q_boxes": (
        "How many {boxes} does {n} fill?",
        "How many {boxes} does {he} need?",
        "Find the number of {boxes} that {n} needs.",
    ),
    "q_earn": (
        "How many dollars does {n} get for all the {boxes}?",
        "How many dollars does {he} get in all?",
        "Find the number of dollars that {n} gets for the {boxes}.",
    ),
    "q_m": (
        "How many {t} does {m} have?",
        "How many {t} does {m} own?",
        "Find the number of {t} that {m} has.",
    ),
    "q_both": (
        "How many {t} do {n} and {m} have together?",
        "How many {t} do they have together?",
        "Find the number of {t} that {n} and {m} have together.",
    ),
    "q_three": (
        "How many {t} do {n}, {m} and {k} have together?",
        "How many {t} do all three have together?",
        "Find the number of {t} that {n}, {m} and {k} have together.",
    ),
    "q_they": (
        "How many {t} are left?",
        "How many {t} do they have left?",
        "How many {t} do they still have together?",
    ),
    "q_m_age": ("How old is {m}?", "How old is {m} now?", "Find the age of {m}."),
    "q_m_age_in": (
        "How old will {m} be in @ years?",
        "How old will {m} be @ years from now?",
        "Find the age that {m} will have in @ years.",
    ),
    "q_cost": (
        "How many dollars does {n} pay?",
        "How many dollars do the {goods} cost?",
        "Find the number of dollars that {n} pays.",
    ),
    "q_money": (
        "How many dollars are left?",
        "How many dollars does {n} have left?",
        "How many dollars does {he} still have?",
    ),
    "q_pages": (
        "How many pages are left?",
        "How many pages are there still to read?",
        "Find the number of pages that are left.",
    ),
    "q_days": (
        "How many more days does {n} need?",
        "How many more days does {he} read?",
        "Find the number of days that {n} needs for the other pages.",
    ),
    "q_ride": (
        "How many people are on the {ride} now?",
        "How many people are on the {ride} in the end?",
        "Find the number of people on the {ride} now.",
    ),
    "q_chairs": (
        "How many chairs are in the hall now?",
        "How many chairs are there in the hall in the end?",
        "Find the number of chairs in the hall now.",
    ),
}

# Sentences with a number that plays no part, by what a story is about.
DISTRACTORS: dict[str, tuple[str, ...]] = {
    "person": (
        "{n} is @ years old.",
        "{n} also has @ {w} at home.",
        "The walk to the {place} takes @ minutes.",
        "There are @ people in the {shop}.",
    ),
    "people": ("{n} is @ years old.", "{n} also has @ {w} at home.", "{m} also has @ {w} at home."),
    "hens": ("{n} is @ years old.", "The walk to the {place} takes @ minutes.", "There are @ people in the {shop}."),
    "ride": (
        "The {ride} is @ years old.",
        "A ticket costs @ dollars.",
        "The way from the {place} takes @ minutes.",
    ),
    "hall": ("The {hall} is @ years old.", "The {hall} has @ books.", "The walk to the {hall} takes @ minutes."),
}


def words(rng: random.Random) -> dict[str, object]:
    """Names, things and places of one story."""
    own, others, pronouns = (_GIRLS, _BOYS, _SHE) if rng.random() < 0.5 else (_BOYS, _GIRLS, _HE)
    n, k = distinct(rng, own, 2)
    thing, other = distinct(rng, _THINGS, 2)
    (good, goods), (ware, wares) = distinct(rng, _GOODS, 2)
    (bag, bags), (box, boxes), (can, cans) = distinct(rng, _CONTAINERS, 3)
    place, stop = distinct(rng, _PLACES, 2)
    return {
        **pronouns,
        "n": n,
        "m": one(rng, others),
        "k": k,
        "t": thing,
        "w": other,
        "good": good,
        "goods": goods,
        "ware": ware,
        "wares": wares,
        "bag": bag,
        "bags": bags,
        "box": box,
        "boxes": boxes,
        "bin": can,
        "bins": cans,
        "shop": one(rng, _SHOPS),
        "place": place,
        "stop": stop,
        "hall": one(rng, _HALLS),
        "ride": one(rng, _RIDES),
    }
