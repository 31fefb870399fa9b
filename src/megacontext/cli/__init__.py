"""The command line: one file per verb, `main` ties them together. Nothing here loads torch before a verb needs it."""
