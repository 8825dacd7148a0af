"""What moves in a notebook: thin ipywidgets over `medshift.viz` and `medshift.translate`, each with a static form.

In a live kernel `show` gives sliders; in a batch run (``MEDSHIFT_STATIC=1``, set by the runner) the same call leaves a
labelled filmstrip and a player that needs neither a kernel nor a network.
"""
