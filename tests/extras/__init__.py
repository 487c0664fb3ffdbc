"""Tests that need Debian packages; `make check-extras` runs them, `make test` leaves them out."""
