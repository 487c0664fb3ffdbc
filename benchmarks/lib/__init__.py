"""What the scripts of this folder share: model shapes, bounds, ceilings, engines, profiles, the ledger."""
