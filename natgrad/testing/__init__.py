"""Properties that mathematics guarantees, for anyone's solver or operator. Needs Hypothesis."""
