"""Methods that learn from pairs: one file each, all of them `Translator`s; they use the core, never each other."""
