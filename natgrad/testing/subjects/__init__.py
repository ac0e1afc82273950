"""What is checked, seen alike whatever its calling convention: one file a kind."""
