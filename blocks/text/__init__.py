"""Words without a model: the architect, the describer, the narrator and the chronicle of a world, and text utilities."""
