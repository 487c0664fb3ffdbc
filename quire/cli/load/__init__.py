"""Load on a running server: what is asked (traffic), when (arrivals), how it went (client), what it means (report)."""
