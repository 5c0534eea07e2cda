"""Tests of the six policies."""
