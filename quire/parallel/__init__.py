"""How ranks share a model: the mesh and the rules by which sizes are cut over it."""
