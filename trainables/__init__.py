"""How one trial trains: losses, variants, models, datasets, teachers, and one trainable per family.

Nothing here knows of Ray or of the search: a trainable is a generator that a plain `for` loop can run.
"""
