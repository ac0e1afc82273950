"""The parts of the steps: the surrogate, natural directions, pull-backs, first-order steps."""
