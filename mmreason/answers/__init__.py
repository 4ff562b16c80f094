"""What is the answer, is it right: the one copy of this question, for rewards, data builders and evaluation.

`extract` finds the answer of a completion (strictly by an explicit marker, and flexibly), `verify` and `verify_many`
judge it against a gold. Importing this package loads neither sympy nor torch; symbolic comparisons run in worker
processes that are started at the first need and can be killed.

>>> verify("... so the answer is $1,080.", "1080").correct
True
"""

from mmreason.answers.extract import extract, gold_answer
from mmreason.answers.pool import PoolError, shutdown
from mmreason.answers.types import KINDS, Extraction, Judgement, Kind, Verdict
from mmreason.answers.verify import check_gold, equivalent, infer_kind, verify, verify_many
from mmreason.answers.vote import clusters, majority_vote

__all__ = [
    "KINDS",
    "Extraction",
    "Judgement",
    "Kind",
    "PoolError",
    "Verdict",
    "check_gold",
    "clusters",
    "equivalent",
    "extract",
    "gold_answer",
    "infer_kind",
    "majority_vote",
    "shutdown",
    "verify",
    "verify_many",
]
