"""The mathematics of a run and its nouns: pure functions and frozen types, no engine, no Ray, no configuration object."""
