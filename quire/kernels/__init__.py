"""How ops are computed: one folder per provider, imported only where the platform names it."""
