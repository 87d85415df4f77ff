"""Retrieval numbers that are stamped with how they were made: ranks by counting, honest ties, both directions."""

from clipreel.evaluation.metrics import Result, evaluate, evaluate_similarity, measures
from clipreel.evaluation.protocol import Stamp, split_hash
from clipreel.evaluation.ranks import order_blind

__all__ = ["Result", "Stamp", "evaluate", "evaluate_similarity", "measures", "order_blind", "split_hash"]
