"""The shipped test kit: tiny models of every family, conformance suites. Nothing shipped imports
it."""
