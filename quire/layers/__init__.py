"""The parts that models are written with. A layer is told everything by its `Build`; its step is an argument."""
