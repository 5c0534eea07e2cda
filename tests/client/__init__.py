"""Tests of the client library, against a small daemon that speaks the real wire."""
