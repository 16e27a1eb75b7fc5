"""A policy over HTTP: `app` says what is asked and answered, `batching` computes it."""
