"""Cases that checks are tried on: small frozen records, whose repr is the counterexample."""
