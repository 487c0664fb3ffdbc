"""The ground floor: errors, the lazy registry, logging. Standard library only; every other folder may import it."""
