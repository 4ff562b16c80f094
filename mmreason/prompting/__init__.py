"""Reasoning strategies as data and small functions over a `sample` callable.

>>> from mmreason.prompting.registry import load_strategy
>>> load_strategy({"name": "self_consistency", "k": 8, "language": "zh"}).k
8
"""
