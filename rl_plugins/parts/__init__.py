"""What the steps are made of: the surrogate, directions, pull-backs and first-order steps."""
