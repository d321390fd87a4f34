"""The version of this package: its one home. CITATION.cff and CHANGELOG.md name it, too, and a test compares."""

VERSION = "0.2.0"
