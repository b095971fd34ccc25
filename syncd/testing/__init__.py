"""Shipped for those who write connectors: a reference connector, the conformance suite, the emulators' frame."""
