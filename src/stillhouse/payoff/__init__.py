"""Payoff: the scores of a pool of models, sequential evidence about its members, and which of them should decide."""
